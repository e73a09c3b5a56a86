//! Properties of the math verifier over generated formulas, mutated texts and hostile input. Everything is drawn from fixed
//! seeds.

use std::time::Duration;

use distill::verify::Outcome;
use distill::verify::math::{MathOptions, check, same};

/// splitmix64
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }
}

/// A formula of numbers, letters, fractions, roots, powers and functions.
fn formula(random: &mut Random, depth: usize) -> String {
    if depth == 0 {
        let number = random.below(20) + 1;
        return match random.below(4) {
            0 | 1 => number.to_string(),
            2 => random.pick(&["x", "y", "a", "n"]).to_string(),
            _ => format!("{}.{}", number, random.below(9) + 1),
        };
    }
    let a = formula(random, depth - 1);
    let b = formula(random, depth - 1);
    match random.below(9) {
        0 => format!("{a} + {b}"),
        1 => format!("\\left({a}\\right) - \\left({b}\\right)"),
        2 => format!("({a}) \\cdot ({b})"),
        3 => format!("\\frac{{{a}}}{{{b}}}"),
        4 => format!("\\sqrt{{{a}}}"),
        5 => format!("({a})^{{{}}}", random.below(3) + 2),
        6 => format!("\\sin({a})"),
        7 => format!("\\ln\\left({a}\\right)"),
        _ => format!("-({a})"),
    }
}

#[test]
fn every_formula_is_itself() {
    let (mut random, options) = (Random(1), MathOptions::default());
    for i in 0..3_000 {
        let x = formula(&mut random, 1 + i % 4);
        for gold in [x.clone(), format!("${x}$"), format!("\\boxed{{{x}}}")] {
            let verdict = check(&format!("It is $\\boxed{{{x}}}$."), &gold, &options);
            assert!(verdict.is_correct(), "{gold}: {verdict:?}");
            assert!(check(&gold, &gold, &options).is_correct(), "{gold}");
        }
    }
}

#[test]
fn rewritten_formulas_are_equal_and_changed_ones_are_not() {
    let (mut random, options) = (Random(2), MathOptions::default());
    let mut num_equal = 0;
    for i in 0..1_500 {
        let (x, y) = (formula(&mut random, i % 3), formula(&mut random, i % 3));
        let rewritten = [
            (format!("({x}) + ({y})"), format!("({y}) + ({x})")),
            (format!("({x}) ({y})"), format!("({y}) \\cdot ({x})")),
            (
                format!("({x})"),
                format!("\\frac{{6({x})}}{{4}} - \\frac{{{x}}}{{2}}"),
            ),
            (format!("(({x}) + 1)^2"), format!("({x})^2 + 2({x}) + 1")),
        ];
        for (a, b) in &rewritten {
            // a formula such as ln(-(...)) of numbers, or one that divides by zero, has no value to compare
            let equal = check(&format!("\\boxed{{{b}}}"), a, &options).is_correct();
            num_equal += usize::from(equal);
            assert_eq!(same(a, b), same(b, a), "{a} {b}");
            let changed = format!("\\boxed{{{b} + 3}}");
            assert!(
                !check(&changed, a, &options).is_correct(),
                "{a} <- {changed}"
            );
            let negated = format!("\\boxed{{\\frac{{{b}}}{{2}} + \\pi}}");
            assert!(
                !check(&negated, a, &options).is_correct(),
                "{a} <- {negated}"
            );
        }
    }
    assert!(
        num_equal > 5_700,
        "{num_equal} of 6000 rewritten formulas are found equal"
    );
}

/// Kept texts that mutations start from: each kind of answer once.
const CORPUS: &[&str] = &[
    r"\boxed{42}",
    r"<think>a</think>The answer is $\frac{1}{2}$.",
    r"<answer>\boxed{(-\infty, 3] \cup \{5\}}</answer>",
    r"x_1 = 10^{\frac{-5+\sqrt{13}}{6}}, \quad x_{2} = \sqrt[3]{7}",
    r"$\begin{pmatrix} 1 & \frac{2}{3} \\ -4 & x^2 \end{pmatrix}$",
    r"\{(1,2),(3,4)\} \text{ and } \pm 3",
    r"12{,}345.67\% or 5 \text{ cm}^2",
    r"f(2) < f(1) \le 0.1\overline{6} \ne |x - \lfloor 3.7 \rfloor|",
    r"\sum_{k=1}^{n} \binom{n}{k} k! - \int_0^1 \sin^2 x \, dx",
    r"**Final Answer:** \$140, 7:32, 90^\circ, 204_5, x \equiv 3 \pmod 7",
    "√8 × ½ − π² ≤ ∞ ∈ ℝ，７。",
    r"\{x \mid -2 \le x < 1\} = \mathbb{R} \setminus \emptyset",
    r"Final answer: either 3 or 4 million. I hope it is correct.",
];

#[test]
fn mutated_texts_get_verdicts() {
    const PIECES: &[&str] = &[
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "|",
        "\\",
        "$",
        "^",
        "_",
        ",",
        ";",
        "=",
        "<",
        "-",
        "+",
        "/",
        "!",
        "%",
        ".",
        " ",
        "\n",
        "1",
        "999999999",
        "x",
        "\\frac",
        "\\sqrt",
        "\\text{",
        "\\boxed{",
        "\\left",
        "\\pm",
        "\\sin",
        "\\begin{matrix}",
        "&",
        "\\\\",
        "é",
        "数",
        "½",
        "²",
        "\u{0}",
        "\u{202e}",
        "<think>",
        "</think>",
        "<answer>",
        "####",
        "or",
        "answer",
        "\\log_",
        "...",
    ];
    let (mut random, options) = (Random(3), MathOptions::default());
    for round in 0..8_000 {
        let mut text: Vec<char> = CORPUS[round % CORPUS.len()].chars().collect();
        for _ in 0..=random.below(6) {
            let at = random.below(text.len() + 1);
            match random.below(4) {
                0 if at < text.len() => {
                    text.remove(at);
                }
                1 if at < text.len() => {
                    let end = (at + 1 + random.below(8)).min(text.len());
                    let copied: Vec<char> = text[at..end].to_vec();
                    text.splice(at..at, copied);
                }
                2 => {
                    let other: Vec<char> = CORPUS[random.below(CORPUS.len())].chars().collect();
                    let from = random.below(other.len());
                    text.splice(at..at, other[from..].iter().copied());
                }
                _ => {
                    let piece: Vec<char> = random.pick(PIECES).chars().collect();
                    text.splice(at..at, piece);
                }
            }
            if text.is_empty() {
                text.push('x');
            }
        }
        let text: String = text.into_iter().collect();
        let gold = CORPUS[random.below(CORPUS.len())];
        check(&text, gold, &options);
        check(gold, &text, &options);
        assert_eq!(same(&text, gold), same(gold, &text), "{text:?} {gold:?}");
        let itself = check(
            &format!("\\boxed{{{text}}}"),
            &format!("\\boxed{{{text}}}"),
            &options,
        );
        // tags and boxes inside the text make it another text than the gold field is
        let plain = ["think>", "think >", "answer>", "box", "####"]
            .iter()
            .all(|mark| !text.contains(mark));
        assert!(
            !plain || itself.outcome != Outcome::Wrong,
            "{text:?} is not itself: {itself:?}"
        );
    }
}

/// Processor time of this thread: other programs on the machine do not count.
fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes one `timespec`, which lives here
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn hostile_input_takes_little_time_and_stack() {
    let boxed = |inner: String| format!("\\boxed{{{inner}}}");
    let many = |piece: &str, n: usize| piece.repeat(n);
    let cases = vec![
        (
            boxed(many("{", 10_000) + "5" + &many("}", 10_000)),
            "6".to_string(),
        ),
        (many("{", 1_000_000), "5".into()),
        (many("(", 1_000_000), "5".into()),
        (boxed(many("(", 9_000)), "5".into()),
        (boxed("9^(9^9)".into()), "5".into()),
        (boxed("9^{9^{9^{9}}}".into()), "9^{9^{9^{8}}}".into()),
        (boxed("2^{100000}".into()), "2^{100001}".into()),
        (boxed("(10^9)!".into()), "5".into()),
        (boxed("((((1000!)!)!)!)!".into()), "1000!".into()),
        (boxed(r"\binom{1000000000}{500000000}".into()), "5".into()),
        (many("7", 1_000_000), "5".into()),
        (boxed(many("7", 3_900)), many("7", 3_899) + "8"),
        (boxed(many("1,", 4_900) + "1"), many("1,", 4_900) + "2"),
        (
            boxed(many("x^2+1,", 1_500) + "1"),
            many("(x^2-1),", 1_000) + "2",
        ),
        (boxed(many("\\sqrt", 1_900) + "2"), "5".into()),
        (boxed(many("\\frac", 1_900) + "2"), "5".into()),
        (
            boxed(many("\\sin x+", 1_200) + "5"),
            "5+1200 \\sin x".into(),
        ),
        (boxed(many("x*", 3_000) + "5"), "5x^{3000}".into()),
        (boxed(many("1/", 4_000) + "2"), "5".into()),
        (boxed(many("-", 9_000) + "5"), "5x".into()),
        (boxed(many("1\\pm", 2_000) + "1"), "5".into()),
        (boxed(many("|", 9_000)), "5".into()),
        (boxed("5".to_string() + &many("!", 9_000)), "5".into()),
        (boxed("x".to_string() + &many("^x", 4_000)), "5".into()),
        (boxed("x".to_string() + &many("_x", 4_000)), "5".into()),
        (boxed(many("x=", 4_000) + "5"), "6".into()),
        (boxed(many("x<", 4_000) + "5"), "x<5".into()),
        (boxed(many("(1,2)\\cup", 900) + "(1,2)"), "(1,3)".into()),
        (boxed(many("\\text{", 1_500)), "5".into()),
        (boxed(r"\sum_{k=1}^{1000000000} k".into()), "5".into()),
        (
            boxed(r"\sum_{i=1}^{400}\sum_{j=1}^{400}\sum_{k=1}^{400} \sin(ijk)".into()),
            "5".into(),
        ),
        (
            boxed(r"\begin{pmatrix}".to_string() + &many("1&", 4_000) + r"\end{pmatrix}"),
            "5".into(),
        ),
        (boxed(many("(x+y+z)^{20}", 300)), many("(x+y+z)^{20}", 299)),
        (boxed(r"\sin(10^{1000})".into()), r"\sin(10^{1001})".into()),
        (many("\\boxed{", 140_000), "5".into()),
        (many("\\boxed{5}", 110_000), "6".into()),
        (
            (0..60_000).map(|i| format!("\\boxed{{{i}}}")).collect(),
            "5".into(),
        ),
        (many("$", 1_000_000), "5".into()),
        (many("$1$ and ", 120_000), "5".into()),
        (many("\\[", 500_000), "5".into()),
        (many("final answer is ", 60_000), "5".into()),
        (many("<answer>", 120_000), "5".into()),
        (many("<think>", 140_000), "5".into()),
        (many("5 or ", 200_000), "6".into()),
        (many("1+", 400_000), "5".into()),
        (many("\\frac{1}{2}", 90_000), "5".into()),
        (many("½", 300_000), "5".into()),
        (many("\0", 1_000_000), "5".into()),
        (many("\\", 1_000_000), "5".into()),
        ("5".into(), many("(", 1_000_000)),
        ("5".into(), many("\\boxed{6} and ", 60_000)),
    ];
    let run = move || {
        let options = MathOptions::default();
        // unoptimised code is slower
        let limit = Duration::from_millis(if cfg!(debug_assertions) { 2_500 } else { 250 });
        let mut slowest = Duration::ZERO;
        for (prediction, gold) in &cases {
            let start = thread_time();
            let verdict = check(prediction, gold, &options);
            let took = thread_time() - start;
            slowest = slowest.max(took);
            let shown: String = prediction.chars().take(40).collect();
            assert!(
                !verdict.is_correct() || shown.contains("x*") || shown.contains("sin x"),
                "{shown}: {verdict:?}"
            );
            assert!(took < limit, "{shown} takes {took:?}");
        }
        slowest
    };
    // a small stack: deep nesting must not need more
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(run);
    let slowest = thread
        .expect("a thread")
        .join()
        .expect("no panic and no overflow");
    assert!(slowest > Duration::ZERO);
}
