//! The math verifier on answers of every kind: gold answer, what a model writes, and the verdict. The last tables hold what
//! recorded verdicts of other graders say differently, one kind a row, and why.

use distill::verify::Outcome;
use distill::verify::math::{MathOptions, check, same};

/// Gold answer and model text.
type Pair = (&'static str, &'static str);

#[rustfmt::skip]
const CORRECT: &[Pair] = &[
    (r"42", r"\boxed{42}"),
    (r"42", r"\boxed{42.0}"),
    (r"42", r"\boxed{+42}"),
    (r"-7", r"\boxed{−7}"),
    (r"7", r"\boxed{７}"),
    (r"1234567", r"\boxed{1{,}234{,}567}"),
    (r"1234567", r"\boxed{1\,234\,567}"),
    (r"1234567", r"\boxed{1 234 567}"),
    (r"1,234,567", r"The answer is 1234567."),
    (r"0.5", r"\boxed{\frac{1}{2}}"),
    (r"\frac{1}{2}", r"\boxed{.5}"),
    (r"\frac{1}{2}", r"\boxed{1/2}"),
    (r"\frac{1}{2}", r"\boxed{½}"),
    (r"\frac{1}{2}", r"\boxed{\frac{2}{4}}"),
    (r"\frac{3}{4}", r"\boxed{75\%}"),
    (r"75\%", r"\boxed{75}"),
    (r"12.5\%", r"\boxed{12.5}"),
    (r"12.5\%", r"\boxed{0.125}"),
    (r"12.5\%", r"\boxed{1/8}"),
    (r"0.125", r"\boxed{12.5\%}"),
    (r"\frac{1}{3}", r"\boxed{0.333333}"),
    (r"\frac{1}{3}", r"\boxed{0.\overline{3}}"),
    (r"\frac{1}{6}", r"\boxed{0.1\overline{6}}"),
    (r"\pi", r"\boxed{3.14159265358979}"),
    (r"\pi", r"\boxed{π}"),
    (r"2\pi", r"\boxed{2π}"),
    (r"2\frac{1}{2}", r"\boxed{2.5}"),
    (r"2.5", r"\boxed{2 1/2}"),
    (r"2\frac{1}{2}", r"\boxed{\frac{5}{2}}"),
    (r"1.5 \times 10^{3}", r"\boxed{1500}"),
    (r"1.5e3", r"\boxed{1500}"),
    (r"2.5E-3", r"\boxed{0.0025}"),
    (r"3 \times 10^8", r"\boxed{3e8}"),
    (r"\sqrt{8}", r"\boxed{2\sqrt{2}}"),
    (r"\sqrt{8}", r"\boxed{√8}"),
    (r"\sqrt{8}", r"\boxed{2√2}"),
    (r"\sqrt{2}+\sqrt{3}", r"\boxed{\sqrt{5+2\sqrt{6}}}"),
    (r"\frac{1}{\sqrt{2}}", r"\boxed{\frac{\sqrt{2}}{2}}"),
    (r"\sqrt[3]{2}", r"\boxed{2^{1/3}}"),
    (r"\sqrt[3]{-8}", r"\boxed{-2}"),
    (r"\sqrt[3]{7+5\sqrt{2}}", r"\boxed{1+\sqrt{2}}"),
    (r"2^{10}", r"\boxed{1024}"),
    (r"2^{-1}", r"\boxed{0.5}"),
    (r"e^{i\pi}", r"\boxed{-1}"),
    (r"i^2", r"\boxed{-1}"),
    (r"3+4i", r"\boxed{4i+3}"),
    (r"\frac{1+i}{\sqrt{2}}", r"\boxed{e^{i\pi/4}}"),
    (r"\pm 3", r"\boxed{3, -3}"),
    (r"\pm 3", r"\boxed{-3 \text{ or } 3}"),
    (r"x = \pm 2", r"\boxed{\{-2, 2\}}"),
    (r"x = \pm 2", r"\boxed{x=2 \text{ or } x=-2}"),
    (r"\{1,2,3\}", r"\boxed{\{3,2,1\}}"),
    (r"\{1,2,3\}", r"\boxed{3, 1, 2}"),
    (r"(1,2)", r"\boxed{(1, 2)}"),
    (r"1 \le x < 2", r"\boxed{[1,2)}"),
    (r"1 \le x < 2", r"\boxed{2 > x \ge 1}"),
    (r"x < 3", r"\boxed{(-\infty, 3)}"),
    (r"x \ge -1", r"\boxed{[-1, \infty)}"),
    (r"|x| < 3", r"\boxed{(-3,3)}"),
    (r"x \ne 2", r"\boxed{(-\infty,2)\cup(2,\infty)}"),
    (r"x \ne 2", r"\boxed{\mathbb{R}\setminus\{2\}}"),
    (r"(-\infty,2)\cup(2,\infty)", r"\boxed{\mathbb{R}\setminus\{2\}}"),
    (r"(0,1]\cup[1,2)", r"\boxed{(0,2)}"),
    (r"(0,1)\cup(2,3)", r"\boxed{(2,3)\cup(0,1)}"),
    (r"(0,1) \cup (2,3)", r"\boxed{(0,1) U (2,3)}"),
    (r"x^2+2x+1", r"\boxed{(x+1)^2}"),
    (r"\frac{x^2-1}{x-1}", r"\boxed{x+1}"),
    (r"2\sin x\cos x", r"\boxed{\sin 2x}"),
    (r"\sin^2 x + \cos^2 x", r"\boxed{1}"),
    (r"\sin^2 x", r"\boxed{1 - \cos^2 x}"),
    (r"\cos 2x", r"\boxed{1 - 2\sin^2 x}"),
    (r"\tan x", r"\boxed{\frac{\sin x}{\cos x}}"),
    (r"\ln 4", r"\boxed{2 \ln 2}"),
    (r"\ln(xy)", r"\boxed{\ln x + \ln y}"),
    (r"\log_2 8", r"\boxed{3}"),
    (r"\log_{10} 100", r"\boxed{2}"),
    (r"\frac{\ln 3}{\ln 2}", r"\boxed{\log_2 3}"),
    (r"e^{2\ln 3}", r"\boxed{9}"),
    (r"5!", r"\boxed{120}"),
    (r"\binom{5}{2}", r"\boxed{10}"),
    (r"\binom{n}{2}", r"\boxed{\frac{n(n-1)}{2}}"),
    (r"(n+1)!", r"\boxed{(n+1) \cdot n!}"),
    (r"\sum_{k=1}^{10} k", r"\boxed{55}"),
    (r"\sin 30^\circ", r"\boxed{\frac{1}{2}}"),
    (r"90^\circ", r"\boxed{90}"),
    (r"90^{\circ}", r"\boxed{90°}"),
    (r"45 \text{ degrees}", r"\boxed{45^\circ}"),
    (r"5 \text{ cm}", r"\boxed{5}"),
    (r"5", r"\boxed{5 \text{ cm}}"),
    (r"100\text{ cm}", r"\boxed{1 \text{ m}}"),
    (r"15\text{ cm}^2", r"\boxed{15\,\text{cm}^2}"),
    (r"\$18", r"\boxed{18}"),
    (r"18", r"\boxed{\$18}"),
    (r"18", r"\boxed{\$18.00}"),
    (r"18", r"\boxed{18 dollars}"),
    (r"60", r"\boxed{60 \text{ mph}}"),
    (r"x = 3", r"\boxed{3}"),
    (r"3", r"\boxed{x = 3}"),
    (r"x=1,y=2", r"\boxed{(1,2)}"),
    (r"(x,y)=(1,2)", r"\boxed{(1,2)}"),
    (r"y=2x+1", r"\boxed{2x+1}"),
    (r"y=2x+1", r"\boxed{2x-y+1=0}"),
    (r"x^2+y^2=1", r"\boxed{2x^2+2y^2=2}"),
    (r"f(x)=x^2", r"\boxed{f(y)=y^2}"),
    (r"f(x)=x^2", r"\boxed{x^2}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\boxed{\begin{bmatrix}1&2\\3&4\end{bmatrix}}"),
    (r"\frac{1}{5}\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix}1/5\\2/5\end{pmatrix}}"),
    (r"\text{Evelyn}", r"\boxed{Evelyn}"),
    (r"\text{Evelyn}", r"\boxed{\text{evelyn}}"),
    (r"\text{(B)}", r"\boxed{B}"),
    (r"204_5", r"\boxed{204_5}"),
    (r"204_5", r"\boxed{204_{5}}"),
    (r"204_5", r"\boxed{204}"),
    (r"0.3", r"\boxed{0.30000000000000004}"),
    (r"12", r"\boxed{3\cdot4=12}"),
    (r"1:2", r"\boxed{2:4}"),
    (r"1:2", r"\boxed{\frac{1}{2}}"),
    (r"1:2:3", r"\boxed{2:4:6}"),
    (r"12:30", r"\boxed{12:30}"),
    (r"a^2 b", r"\boxed{b a^2}"),
    (r"ab", r"\boxed{ba}"),
    (r"\frac{a+b}{2}", r"\boxed{(a+b)/2}"),
    (r"x_1 + x_2", r"\boxed{x_2 + x_1}"),
    (r"\alpha\beta", r"\boxed{αβ}"),
    (r"\infty", r"\boxed{∞}"),
    (r"\emptyset", r"\boxed{\varnothing}"),
    (r"\left(3, \frac{\pi}{2}\right)", r"\boxed{(3,pi/2)}"),
    (r"3\sqrt{13}", r"\boxed{3*sqrt(13)}"),
    (r"p - q", r"\boxed{p-q}"),
    (r"6 - 5i", r"\boxed{6-5i}"),
    (r"f(2)<f(1)<f(4)", r"\boxed{f(2) < f(1) < f(4)}"),
    (r"\lfloor 3.7 \rfloor", r"\boxed{3}"),
    (r"|{-5}|", r"\boxed{5}"),
    (r"|x-2|", r"\boxed{|2-x|}"),
    (r"\sqrt{x^2}", r"\boxed{|x|}"),
    (r"x^{2/3}", r"\boxed{\sqrt[3]{x^2}}"),
    (r"\frac{1}{x^{1/2}}", r"\boxed{\frac{\sqrt{x}}{x}}"),
    (r"a^x b^x", r"\boxed{(ab)^x}"),
    (r"5 \pmod{7}", r"\boxed{5 \pmod 7}"),
    (r"x \equiv 3 \pmod{7}", r"\boxed{x \equiv 10 \pmod{7}}"),
    (r"2.414214", r"\boxed{1 + \sqrt{2}}"),
    (r"\frac{\sqrt{5}-1}{2}", r"\boxed{\frac{2}{1+\sqrt{5}}}"),
    (r"2\cos\frac{2\pi}{7}", r"\boxed{2\cos(2\pi/7)}"),
    (r"\cos 36^\circ", r"\boxed{\frac{1+\sqrt5}{4}}"),
    (r"\arctan 1", r"\boxed{\frac{\pi}{4}}"),
    (r"C_1 e^{x} + C_2 e^{-x}", r"\boxed{C_1 e^x + C_2 e^{-x}}"),
    (r"\frac{\pi}{6} + k\pi", r"\boxed{k\pi + \frac{\pi}{6}}"),
    (r"5 million", r"\boxed{5000000}"),
    (r"5000000", r"\boxed{5 \text{ million}}"),
    (r"100", r"\boxed{10^2}"),
    (r"\text{no solution}", r"\boxed{\text{No solution}}"),
    (r"36", r"So we get **36** apples."),
    (r"140", r"The cost is **\$140**"),
    (r"140", r"**Final Answer:** \$140"),
    (r"7", r"<answer>7</answer>"),
    (r"7", r"<think>8</think><answer>7</answer>"),
    (r"7", r"<answer>\boxed{7}</answer>"),
    (r"7", r"Therefore the answer is $\frac{14}{2}$."),
    (r"3/4", r"the probability is 3/4."),
    (r"0.75", r"the probability is 3/4."),
    (r"72", r"#### 72"),
    (r"A: 18", r"18"),
    (r"# 18", r"18"),
    (r"2x+3", r"The answer is 2x+3."),
    (r"2x+3", r"The answer is $3+2x$."),
    (r"\frac{a}{b}", r"\boxed{a/b}"),
    (r"(2, -3)", r"So the point is $(2,-3)$."),
    (r"-\frac{1}{2}", r"\boxed{\frac{-1}{2}}"),
    (r"-\frac{1}{2}", r"\boxed{\frac{1}{-2}}"),
    (r"-\frac{1}{2}", r"\boxed{- 0.5}"),
    (r"1{,}000.50", r"\boxed{1000.5}"),
    (r"x \in [1,2]", r"\boxed{[1,2]}"),
    (r"[1,2]", r"\boxed{x \in [1,2]}"),
    (r"\left[-\frac12, \infty\right)", r"\boxed{[-0.5, +\infty)}"),
    (r"x=2, y=-1", r"\boxed{y=-1, x=2}"),
    (r"2n\pi", r"\boxed{2 \pi n}"),
    (r"\frac{n(n+1)}{2}", r"\boxed{\frac{n^2+n}{2}}"),
    (r"k=1", r"\boxed{k \approx 1}"),
    (r"\sqrt{3}", r"\boxed{\sqrt{3} \approx 1.732}"),
    (r"\{(1,2),(3,4)\}", r"\boxed{(3,4), (1,2)}"),
    (r"\{x \mid x > 2\}", r"\boxed{\{x : x > 2\}}"),
    (r"\{x \mid x > 2\}", r"\boxed{(2,\infty)}"),
    (r"\{x \mid -2 \le x < 1\}", r"\boxed{[-2,1)}"),
    (r"x > 2", r"\boxed{\{x \mid x > 2\}}"),
    (r"x<1 \text{ or } x>3", r"\boxed{(-\infty,1)\cup(3,\infty)}"),
    (r"0 \le x \le 1", r"\boxed{0 \leq x \leq 1}"),
    (r"3 < x", r"\boxed{x > 3}"),
    (r"2x > 4", r"\boxed{x > 2}"),
    (r"8.5", r"\boxed{8{.}5}"),
    (r"C", r"The correct answer is C"),
    (r"C", r"(C)"),
    (r"C", r"\boxed{\text{C}}"),
    (r"9", r"The answer is \(9\)."),
    (r"27", r"$27$"),
    (r"-3.0 - 3.0i", r"-3.0-3.0i"),
    (r"19", r"the answer is 19 years old"),
    (r"\frac{2}{3}", r"\boxed{\dfrac23}"),
    (r"11/24", r"11/24"),
    (r"\cot x", r"\boxed{1/\tan x}"),
    (r"\sec^2 x - 1", r"\boxed{\tan^2 x}"),
    (r"\sinh x", r"\boxed{\frac{e^x-e^{-x}}{2}}"),
    (r"\max(2,3)", r"\boxed{3}"),
    (r"\gcd(12,18)", r"\boxed{6}"),
    (r"3\%", r"\boxed{3\%}"),
    (r"3\%", r"\boxed{0.03}"),
    (r"99", r"\boxed{99^{\circ}}"),
    (r"2^{100}", r"\boxed{1267650600228229401496703205376}"),
    (r"\frac{1}{2}\ln 2", r"\boxed{\ln\sqrt{2}}"),
    (r"x(x+1)", r"\boxed{x^2+x}"),
    (r"(x-1)(x-2)", r"\boxed{x^2-3x+2}"),
];

#[rustfmt::skip]
const WRONG: &[Pair] = &[
    (r"\frac{1}{3}", r"\boxed{0.333}"),
    (r"0.3", r"\boxed{0.\overline{3}}"),
    (r"\pi", r"\boxed{3.14}"),
    (r"\pi", r"\boxed{\frac{22}{7}}"),
    (r"2\pi", r"\boxed{6.28}"),
    (r"\sqrt{8}", r"\boxed{√6}"),
    (r"\sqrt{2}+\sqrt{3}", r"\boxed{\sqrt{10}}"),
    (r"3+4i", r"\boxed{3-4i}"),
    (r"\pm 3", r"\boxed{3}"),
    (r"3", r"\boxed{\pm 3}"),
    (r"\{1,2,3\}", r"\boxed{\{1,2\}}"),
    (r"1, 2", r"\boxed{1, 2, 3}"),
    (r"(1,2)", r"\boxed{(2, 1)}"),
    (r"(1,2)", r"\boxed{[1, 2]}"),
    (r"(1,2]", r"\boxed{(1, 2)}"),
    (r"[1,2)", r"\boxed{1 \le x < 2}"),
    (r"x \ge -1", r"\boxed{(-1, \infty)}"),
    (r"(0,1)\cup(1,2)", r"\boxed{(0,2)}"),
    (r"x^2+2x+1", r"\boxed{(x-1)^2}"),
    (r"\sin x", r"\boxed{\cos x}"),
    (r"5\text{ cm}", r"\boxed{5 \text{ m}}"),
    (r"3x", r"\boxed{3}"),
    (r"3", r"\boxed{3x}"),
    (r"5m", r"\boxed{5}"),
    (r"x = 3", r"\boxed{x = 4}"),
    (r"x=3", r"\boxed{y=3}"),
    (r"y=2x+1", r"\boxed{y=2x-1}"),
    (r"x^2+y^2=1", r"\boxed{x^2+y^2=2}"),
    (r"2x+z=1", r"\boxed{1}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\boxed{\begin{pmatrix}1&2\\3&5\end{pmatrix}}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix}1&2\end{pmatrix}}"),
    (r"\text{Evelyn}", r"\boxed{Carla}"),
    (r"\text{even}", r"\boxed{odd}"),
    (r"\text{(B)}", r"\boxed{\text{(C)}}"),
    (r"204_5", r"\boxed{204_6}"),
    (r"204", r"\boxed{204_5}"),
    (r"7", r"\boxed{7.0000001}"),
    (r"7", r"\boxed{6.9999999}"),
    (r"12", r"\boxed{3\cdot5=12}"),
    (r"5", r"\boxed{2x+3=5}"),
    (r"101_2", r"\boxed{5}"),
    (r"1:2", r"\boxed{2:1}"),
    (r"x_1 + x_2", r"\boxed{x_1 + x_3}"),
    (r"-\infty", r"\boxed{\infty}"),
    (r"f(2)<f(1)<f(4)", r"\boxed{f(1) < f(2) < f(4)}"),
    (r"\sqrt{x^2}", r"\boxed{x}"),
    (r"1 + \sqrt{2}", r"\boxed{2.414}"),
    (r"2.414", r"\boxed{1 + \sqrt{2}}"),
    (r"0.0000001", r"\boxed{0.0000002}"),
    (r"10^{-20}", r"\boxed{0}"),
    (r"e^{\pi\sqrt{163}}", r"\boxed{262537412640768744}"),
    (r"10000000000000000000000", r"\boxed{10000000000000000000001}"),
    (r"x=2, y=-1", r"\boxed{x=-1, y=2}"),
    (r"\sqrt{3}", r"\boxed{1.732}"),
    (r"\{(1,2),(3,4)\}", r"\boxed{(2,1), (3,4)}"),
    (r"x<1 \text{ or } x>3", r"\boxed{(1,3)}"),
    (r"2", r"\boxed{x=1, x=2}"),
    (r"3.0 - 3.0i", r"-3.0-3.0i"),
    (r"3\%", r"\boxed{300}"),
];

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
    (r"$x \in [-2,7]$", r"$-2 \le x \le 7$", false, "Math-Verify mv-0193: an option that lets inequalities answer intervals", "off by default, as recorded in mv-0194; `relation_for_set` gives the other verdict"),
    ("$f(x)$", "$f(y)$", false, "Math-Verify mv-0261: an option that ignores names", "on by default, as recorded in mv-0260; `strict = false` gives the other verdict"),
    (r"\boxed{1} and and and or thus but \boxed{2} and \boxed{3}", r"$\boxed{2,3}$", false, "lighteval og-0230", "boxes with an \"and\" between them are one list; Math-Verify 0.9 agrees with us"),
    (r"\boxed{1} and and and or thus but \boxed{2} and \boxed{3}", r"$\boxed{1,2,3}$", true, "lighteval og-0231", "the same"),
];

#[test]
fn verdicts() {
    let options = MathOptions::default();
    let mut failed = Vec::new();
    let tables = [
        (CORRECT, Outcome::Correct),
        (WRONG, Outcome::Wrong),
        (UNPARSABLE, Outcome::Unparsable),
    ];
    for (table, expected) in tables {
        for (gold, prediction) in table {
            let verdict = check(prediction, gold, &options);
            if verdict.outcome != expected {
                failed.push(format!("{gold} <- {prediction}: {verdict:?}"));
            }
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
        relation_for_set: true,
        ..default()
    };
    assert!(check(r"$-2 \le x \le 7$", r"$x \in [-2,7]$", relations));
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
