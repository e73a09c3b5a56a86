//! The tables of [`super`]: gold, answer, verdict.

use super::*;
use Outcome::{Correct, Unparsable, Wrong};

#[test]
fn verdicts() {
    let cases = [
        // gold, prediction, verdict
        ("B", "Answer: B", Correct),
        ("B", "answer: b", Correct),
        ("B", "ANSWER: $B$", Correct),
        ("B", "**Answer:** **B**", Correct),
        ("B", "Answer:\n\nB", Correct),
        ("B", "The answer is (B).", Correct),
        (
            "B",
            "the correct option is B, because of the second law",
            Correct,
        ),
        ("B", "The final answer is $\\boxed{B}$.", Correct),
        ("B", r"\boxed{\text{(B)}}", Correct),
        ("B", r"\boxed{b}", Correct),
        ("B", r"\boxed{\textbf{(B)}\ 12}", Correct),
        ("B", r"\boxed{B. Paris}", Correct),
        ("B", "<answer>B</answer>", Correct),
        ("B", "<think>it is A</think>\nAnswer: B", Correct),
        ("B", "{\"reasoning\": \"x\", \"answer\": \"B\"}", Correct),
        ("B", "B", Correct),
        ("B", "(b)", Correct),
        ("B", "B) Paris", Correct),
        ("B", "I would go with B.", Correct),
        ("B", "B is correct.", Correct),
        ("B", "Option B is the right answer.", Correct),
        ("B", "The answer is not A but B", Correct),
        (
            "B",
            "A is wrong. C cannot hold either. The answer is B.",
            Correct,
        ),
        ("J", "the answer is (J)", Correct),
        ("A", "A.", Correct),
        ("A", "The answer is A because it is larger", Correct),
        ("U", "The answer is U.", Correct),
        ("b", "Answer: B", Correct),
        (r"\boxed{B}", "Answer: B", Correct),
        // lighteval's forms
        (
            "C",
            "going through it, I think the correct answer is C",
            Correct,
        ),
        (
            "B",
            "One by one. It's not A because that is too small, therefore I think it's B",
            Correct,
        ),
        ("D", "The answer is for sure D, it can't be A or C", Correct),
        ("D", "The answer: D, there is no reason for A or C", Correct),
        ("D", "D. it can't be A or B", Correct),
        ("(D) Maria", "D", Correct),
        ("(A) Ludmila", "C", Wrong),
        ("C Ludmila", "C", Correct),
        ("Maria, so the answer is\n(C) Ludmila", "C", Correct),
        ("A Boris\nLudmila", "A", Correct),
        ("C", "la réponse est C non A", Correct),
        ("B", "B。 不是 A", Correct),
        ("B", "B不是 A", Correct),
        ("B", "答案是B", Correct),
        ("A", "A. Because B does not hold", Correct),
        ("B", "Because B holds", Correct),
        // other letters, no letter
        ("B", "Answer: C", Wrong),
        ("B", "The answer is not B", Unparsable),
        ("B", "No idea at all", Unparsable),
        ("B", "", Unparsable),
        ("B", "<think>Answer: B", Unparsable),
        ("A", "A good question", Unparsable),
        ("A", "a", Correct),
        ("I", "I think so", Unparsable),
        ("C", "C++ is a language", Unparsable),
        ("A", "The answer is:\n(a) 49 m/s\n(b) 3 m", Wrong),
        ("A", "A. one\nB. two\nC. three", Wrong),
        ("B", "The answer is A or B", Wrong),
        ("B", "Answer: a, b", Wrong),
        ("B", r"\boxed{A B} Answer: B", Wrong),
        ("Paris", "Answer: B", Unparsable),
        ("", "Answer: B", Unparsable),
    ];
    let wrong: Vec<String> = cases
        .iter()
        .map(|(gold, prediction, expected)| (check(prediction, gold), gold, prediction, expected))
        .filter(|(verdict, .., expected)| verdict.outcome != **expected)
        .map(|(verdict, gold, prediction, _)| format!("{gold:?} {prediction:?}: {verdict:?}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn texts_of_options_stand_for_their_letters() {
    let options: Vec<String> = ["London", "Paris", "Rome"].map(String::from).to_vec();
    let cases = [
        ("B", r"\boxed{Paris}", Correct),
        ("Paris", "Answer: B", Correct),
        ("B", "paris", Correct),
        ("B", r"\boxed{Rome}", Wrong),
        ("B", r"\boxed{Paris} \boxed{Rome}", Wrong),
        // there are three options
        ("B", "Answer: D", Unparsable),
    ];
    for (gold, prediction, expected) in cases {
        let verdict = check_among(prediction, gold, &options);
        assert_eq!(
            verdict.outcome, expected,
            "{gold:?} {prediction:?}: {verdict:?}"
        );
    }
}

#[test]
fn long_texts_conclude_at_their_end() {
    let long = "We look at the causes one by one. ".repeat(30);
    let cases = [
        ("the most likely explanation is (F) projection.", Correct),
        (
            "the most fitting one is:\n\nF. Projection\n\nIt fits.",
            Correct,
        ),
        ("the pair is (F) or (G).", Wrong),
        ("vitamin F is needed.", Unparsable),
    ];
    for (end, expected) in cases {
        let verdict = check(&format!("{long}{end}"), "F");
        assert_eq!(verdict.outcome, expected, "{end:?}: {verdict:?}");
    }
}

#[test]
fn gold_that_names_no_letter_is_said() {
    assert!(check("Answer: B", "Paris").gold_unreadable);
    assert!(!check("no", "B").gold_unreadable);
}

#[test]
fn hostile_texts_end() {
    for text in [
        "A ".repeat(200_000),
        r"\boxed{".repeat(100_000),
        "answer is ".repeat(100_000),
        "answer: A or B ".repeat(30_000),
        "{".repeat(500_000),
        "é选".repeat(100_000),
    ] {
        assert_ne!(check(&text, "B").outcome, Correct);
    }
}

#[test]
fn who_hedges_or_takes_back_has_not_chosen() {
    for text in [
        "Answer: B C",
        "Answer: B C D",
        "Answer: B A C D",
        "Answer: **B** **C**",
        "Answer: B or maybe C",
        "Answer: B\n\nor maybe C",
        "Answer: B, though C is also correct",
        "Answer: B — also C",
        "Answer: B is incorrect",
        "The answer is B, no wait, it's C",
        "Answer: B\n\nCorrection: C",
        "I exclude B",
        "Anything but B",
        "Answer: none. B",
    ] {
        let verdict = check(text, "B");
        assert_ne!(verdict.outcome, Correct, "{text}: {verdict:?}");
    }
    for text in [
        "Answer: Ｂ",
        "Answer: B. Also, A is too small.",
        "Answer: B\nA describes the past.",
        "Answer: B, not C",
        "Nothing but B",
    ] {
        let verdict = check(text, "B");
        assert_eq!(verdict.outcome, Correct, "{text}: {verdict:?}");
    }
}

#[test]
fn options_by_their_text_and_several_right_ones() {
    let options = ["red".to_string(), "blue".into(), "dark green".into()];
    for (text, outcome) in [
        ("Answer: blue", Correct),
        ("The answer is blue.", Correct),
        (r"\boxed{\text{blue}}", Correct),
        ("Answer: Dark Green", Wrong),
        ("Answer: bluish", Unparsable),
        (r"\boxed{B) red}", Wrong),
        (r"\boxed{B) blue}", Correct),
        ("Answer: blue\nAnswer: red", Wrong),
    ] {
        let verdict = check_among(text, "B", &options);
        assert_eq!(verdict.outcome, outcome, "{text}: {verdict:?}");
    }
    for (gold, text, outcome) in [
        ("ABD", "Answer: A, B, D", Correct),
        ("A, B, D", r"\boxed{ABD}", Correct),
        ("ABD", "Answer: A, B", Wrong),
        ("ABD", "Answer: A", Wrong),
        ("AB", "Answer: A, B, C", Wrong),
    ] {
        let verdict = check(text, gold);
        assert_eq!(verdict.outcome, outcome, "{gold} {text}: {verdict:?}");
    }
}
