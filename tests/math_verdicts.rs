//! The math verifier on answers of every kind: gold answer, what a model writes, and the verdict. The last tables hold what
//! recorded verdicts of other graders say differently, one kind a row, and why.

use distill::verify::Outcome;
use distill::verify::math::{MathOptions, check, same};

/// Gold answer and model text.
type Pair = (&'static str, &'static str);

/// Cases of every kind, one a line.
const CASES: &str = include_str!("data/math_verdicts.txt");

/// Texts without an answer.
#[rustfmt::skip]
const UNPARSABLE: &[Pair] = &[
    ("4", r"\boxed{}"),
    ("4", r"<think>\boxed{4}"),
    ("4", ""),
    ("4", "I don't know."),
];

/// Where a recorded verdict is another one: gold, model text, whether it is correct here, whose record, and why.
#[rustfmt::skip]
const DISAGREEMENTS: &[(&str, &str, bool, &str, &str)] = &[
    ("$9$", "Answer $ \n 9 \n $", true, "Math-Verify mv-0031, og-0068: its options there take formulas only, and no formula on several lines", "the number stands there, and the default takes numbers too; so does Math-Verify's own default"),
    ("$9$", "Answer \\( \n 9 \n \\)", true, "Math-Verify mv-0032, og-0069", "the same"),
    (r"$\frac{1}{3}$", "0.3333$", false, "Math-Verify mv-0132: compares 4 decimal places there", "6 places by default; `float_rounding = 4` gives the recorded verdict"),
    (r"$\begin{pmatrix}\frac{1}{3}\end{pmatrix}$", r"$\begin{pmatrix}0.33\end{pmatrix}$", false, "Math-Verify mv-0140, og-0150: 2 decimal places", "the same"),
    (r"$(\frac{3}{5},\frac{8}{3}]$", "$(0.6,2.6667]$", false, "Math-Verify mv-0146, og-0156: 2 decimal places", "the same; the record of another grader (og-0322) says wrong too"),
    (r"$x \in [-2,7]$", r"$-2 \le x \le 7$", true, "Math-Verify mv-0194: without the option that lets inequalities answer intervals", "on by default, as recorded in mv-0193: both say the same; `relation_for_set = false` gives the other verdict"),
    ("$f(x)$", "$f(y)$", false, "Math-Verify mv-0261: an option that ignores names", "on by default, as recorded in mv-0260; `strict = false` gives the other verdict"),
    (r"\boxed{1} and and and or thus but \boxed{2} and \boxed{3}", r"$\boxed{2,3}$", false, "lighteval og-0230", "boxes with an \"and\" between them are one list; Math-Verify 0.9 agrees with us"),
    (r"\boxed{1} and and and or thus but \boxed{2} and \boxed{3}", r"$\boxed{1,2,3}$", true, "lighteval og-0231", "the same"),
];

#[test]
fn verdicts() {
    let options = MathOptions::default();
    let mut failed = Vec::new();
    let mut num_cases = 0;
    for line in CASES.lines().filter(|line| !line.starts_with("//")) {
        let parts: Vec<&str> = line.split(" | ").collect();
        let [gold, prediction, expected] = parts[..] else {
            panic!("`{line}` has no three parts");
        };
        let verdict = check(prediction, gold, &options);
        num_cases += 1;
        if verdict.is_correct() != (expected == "correct") {
            failed.push(format!("{line}: {verdict:?}"));
        }
    }
    assert!(num_cases > 500);
    for (gold, prediction) in UNPARSABLE {
        let verdict = check(prediction, gold, &options);
        if verdict.outcome != Outcome::Unparsable {
            failed.push(format!("{gold} <- {prediction}: {verdict:?}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn recorded_verdicts_that_we_do_not_share() {
    let options = MathOptions::default();
    for (gold, prediction, correct, record, reason) in DISAGREEMENTS {
        let verdict = check(prediction, gold, &options);
        assert_eq!(
            verdict.is_correct(),
            *correct,
            "{record} ({reason}): {verdict:?}"
        );
    }
}

#[test]
fn options_give_the_other_verdicts() {
    let check = |prediction: &str, gold: &str, options: MathOptions| {
        check(prediction, gold, &options).is_correct()
    };
    let default = MathOptions::default;
    let few = MathOptions {
        float_rounding: 2,
        ..default()
    };
    assert!(check("$(0.6,2.6667]$", r"$(\frac{3}{5},\frac{8}{3}]$", few));
    let relations = MathOptions {
        relation_for_set: false,
        ..default()
    };
    assert!(!check(r"$-2 \le x \le 7$", r"$x \in [-2,7]$", relations));
    let loose = MathOptions {
        strict: false,
        ..default()
    };
    assert!(check("$f(y)$", "$f(x)$", loose));
    let text = r"First \boxed{4}. Then much more is written about it, so that the box stands far from the end of the text; the \
                 final answer is $5$. I hope it is correct.";
    assert!(check(text, "5", default()));
}

/// What is taken for the answer, and in plain words why the verdict is what it is.
#[test]
fn verdicts_say_what_was_extracted() {
    let options = MathOptions::default();
    let cases = [
        (r"so \boxed{ 7 }.", "7", Some("7"), "the same text"),
        (r"so \boxed{7.0}.", "7", Some("7.0"), "the same value"),
        (r"so \boxed{8}.", "7", Some("8"), "another value"),
        (r"\boxed{7} \boxed{8}", "7", Some("7, 8"), "another value"),
        ("<answer>7</answer>", "7", Some("7"), "the same text"),
        ("I get 3 apples", "3", Some("3"), "the same text"),
        ("<think>7", "7", None, "the thinking never ends"),
        (r"\boxed{}", "7", None, "the box is empty"),
    ];
    for (prediction, gold, extracted, reason) in cases {
        let verdict = check(prediction, gold, &options);
        assert_eq!(verdict.extracted.as_deref(), extracted, "{prediction}");
        assert_eq!(verdict.reason, reason, "{prediction}");
    }
}

#[test]
fn votes() {
    for (a, b) in [
        ("0.5", r"\frac12"),
        ("x=3", "3"),
        ("(1,2)", "(1, 2)"),
        ("50\\%", "1/2"),
        (r"\sqrt 8", r"2\sqrt2"),
    ] {
        assert!(same(a, b) && same(b, a), "{a} {b}");
    }
    for (a, b) in [("0.5", "0.6"), ("(1,2)", "(2,1)"), ("3", "3x"), ("", "3")] {
        assert!(!same(a, b) && !same(b, a), "{a} {b}");
    }
}
