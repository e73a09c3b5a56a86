//! How teachers mark where the reasoning ends and the answer begins, and the one form that is trained.
//!
//! | form | of |
//! |---|---|
//! | `<think>…</think>…`, the opening mark often missing | R1 and most others |
//! | <code><\|begin_of_thought\|>…<\|end_of_thought\|></code>, the same with `solution` | Sky-T1, Bespoke-Stratos, OpenThoughts |
//! | a line `think`, …, a line `answer`, … | s1.1 |
//!
//! An answer within `<answer>` tags or marks of a solution ends where they do; words behind them go. Words before the mark
//! that begins the reasoning are its first ones. A text that holds more marks than these is told by [`has_stray_mark`].

use std::borrow::Cow;

/// A text cut at its marks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    pub reasoning: Option<String>,
    /// None where there is none, or only white space.
    pub answer: Option<String>,
    /// False where the reasoning was begun and never ended.
    pub complete: bool,
}

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";
const THOUGHT: [&str; 2] = ["<|begin_of_thought|>", "<|end_of_thought|>"];
const SOLUTION: [&str; 2] = ["<|begin_of_solution|>", "<|end_of_solution|>"];
const ANSWER: [&str; 2] = ["<answer>", "</answer>"];

/// Cuts a text. `opened` says that the prompt ended with `<think>`, so that a text without any mark never closed it.
pub fn split(text: &str, opened: bool) -> Parts {
    let text = text.trim();
    let body = text.strip_prefix(OPEN);
    if let Some((reasoning, answer)) = body.unwrap_or(text).split_once(CLOSE) {
        return finished(&unmarked(reasoning), answer);
    }
    if body.is_some() || text.contains("\n<think>") {
        return unfinished(&unmarked(text));
    }
    if let Some((reasoning, answer)) = text.split_once(THOUGHT[1]) {
        return finished(&unmarked(reasoning), answer);
    }
    if text.contains(THOUGHT[0]) {
        return unfinished(&unmarked(text));
    }
    if let Some(body) = text.strip_prefix("think\n") {
        return match body.rsplit_once("\nanswer\n") {
            Some((reasoning, answer)) => finished(reasoning, answer),
            None => unfinished(body),
        };
    }
    if opened {
        return unfinished(text);
    }
    Parts {
        reasoning: None,
        answer: some(text),
        complete: true,
    }
}

/// Reasoning and answer that stand apart. An answer may hold the same reasoning once more.
pub fn pair(reasoning: Option<&str>, answer: Option<&str>) -> Parts {
    let reasoning = reasoning.and_then(|text| {
        let text = text.trim();
        let ended = [CLOSE, THOUGHT[1]]
            .iter()
            .find_map(|mark| text.strip_suffix(mark));
        some(&unmarked(ended.unwrap_or(text)))
    });
    let answer = answer.unwrap_or_default();
    let whole = split(answer, false);
    let same = whole.reasoning.is_none() || whole.reasoning == reasoning;
    if reasoning.is_none() || whole.complete && same {
        return Parts {
            reasoning: reasoning.or(whole.reasoning),
            answer: whole.answer.and_then(|text| unwrapped(&text)),
            complete: whole.complete,
        };
    }
    Parts {
        reasoning,
        answer: unwrapped(answer),
        complete: true,
    }
}

/// Whether the text closes a `<think>`, or a mark like it, that it does not open: the prompt of its teacher ended with it.
pub fn closes_unopened(text: &str) -> bool {
    [[OPEN, CLOSE], THOUGHT].iter().any(|[open, close]| {
        text.split_once(close)
            .is_some_and(|(before, _)| !before.contains(open))
    })
}

/// Whether a text holds a mark of reasoning.
pub fn has_mark(text: &str) -> bool {
    let marks = [[OPEN, CLOSE], THOUGHT, SOLUTION];
    let marks = marks.as_flattened();
    text.match_indices('<')
        .any(|(at, _)| marks.iter().any(|mark| text[at..].starts_with(mark)))
}

/// Whether an answer in the form that is trained holds a mark besides those of the form.
pub fn has_stray_mark(content: &str) -> bool {
    let body = content.strip_prefix(OPEN);
    match body.and_then(|body| body.split_once(CLOSE)) {
        Some((reasoning, answer)) => has_mark(reasoning) || has_mark(answer),
        None => has_mark(content),
    }
}

/// The form that is trained.
pub fn join(reasoning: Option<&str>, answer: &str) -> String {
    match reasoning {
        Some(reasoning) => format!("{OPEN}\n{}\n{CLOSE}\n\n{}", reasoning.trim(), answer.trim()),
        None => answer.trim().to_string(),
    }
}

/// Whether a system prompt asks for marks that are written as `<think>` here, and would teach the wrong thing.
pub fn asks_for_other_marks(system: &str) -> bool {
    system.contains(THOUGHT[0])
}

/// Whether a system prompt is more than white space and does not ask for other marks.
pub fn is_usable(system: &str) -> bool {
    !system.trim().is_empty() && !asks_for_other_marks(system)
}

/// Reasoning without opening marks. Words before the mark stay as its first ones: a mark inside would be trained as text.
fn unmarked(reasoning: &str) -> Cow<'_, str> {
    without(reasoning, OPEN).map_or_else(
        || without(reasoning, THOUGHT[0]).map_or(Cow::Borrowed(reasoning), Cow::Owned),
        Cow::Owned,
    )
}

/// The text without a mark, None where it has none.
fn without(text: &str, mark: &str) -> Option<String> {
    if !text.contains(mark) {
        return None;
    }
    let parts: Vec<String> = text.split(mark).filter_map(some).collect();
    Some(parts.join("\n"))
}

fn finished(reasoning: &str, answer: &str) -> Parts {
    Parts {
        reasoning: some(reasoning),
        answer: unwrapped(answer),
        complete: true,
    }
}

/// An answer without the tags around it.
fn unwrapped(answer: &str) -> Option<String> {
    let until = |text: &'_ str, mark: &str| text.find(mark).unwrap_or(text.len());
    let answer = answer.trim();
    let answer = &answer[..until(answer, SOLUTION[1])];
    if let Some(answer) = without(answer, SOLUTION[0]) {
        return some(&answer);
    }
    match answer.strip_prefix(ANSWER[0]) {
        Some(body) => some(&body[..until(body, ANSWER[1])]),
        None => some(answer),
    }
}

fn unfinished(reasoning: &str) -> Parts {
    Parts {
        reasoning: some(reasoning),
        answer: None,
        complete: false,
    }
}

fn some(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_cut_at_its_marks() {
        #[rustfmt::skip]
        let table: [(&str, Option<&str>, Option<&str>, bool); 23] = [
            ("<think>\nab\n</think>\n\nc", Some("ab"), Some("c"), true),
            ("ab\n</think>\n\nc", Some("ab"), Some("c"), true),
            ("<think>\nab", Some("ab"), None, false),
            ("<think>\n\n</think>\n\nc", None, Some("c"), true),
            ("<think>ab</think>", Some("ab"), None, true),
            ("<think>ab</think><answer>c</answer>", Some("ab"), Some("c"), true),
            ("<|begin_of_thought|>\n\nab\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nc\n\n<|end_of_solution|>",
                Some("ab"), Some("c"), true),
            ("<|begin_of_thought|> ab", Some("ab"), None, false),
            ("think\nab\nanswer\nAnswer: c", Some("ab"), Some("Answer: c"), true),
            ("think\nab, the answer", Some("ab, the answer"), None, false),
            ("thinking of it, c", None, Some("thinking of it, c"), true),
            ("  ", None, None, true),
            ("Okay.\n<think>ab</think>c", Some("Okay.\nab"), Some("c"), true),
            ("<think>\n<think>ab</think>c", Some("ab"), Some("c"), true),
            ("Okay.\n<think>ab", Some("Okay.\nab"), None, false),
            ("<think>ab</think><answer>c</answer>\nDone.", Some("ab"), Some("c"), true),
            ("<think>ab</think><answer>c", Some("ab"), Some("c"), true),
            ("<|begin_of_thought|>ab<|end_of_thought|><|begin_of_solution|>c<|end_of_solution|> ok",
                Some("ab"), Some("c"), true),
            ("Okay.\n<|begin_of_thought|>ab<|end_of_thought|>\n<|begin_of_solution|>c<|end_of_solution|>",
                Some("Okay.\nab"), Some("c"), true),
            ("ab<|end_of_thought|>c<|end_of_solution|>", Some("ab"), Some("c"), true),
            ("ab<|end_of_thought|>So:\n<|begin_of_solution|>\nc", Some("ab"), Some("So:\nc"), true),
            ("Okay. <|begin_of_thought|> ab", Some("Okay.\nab"), None, false),
            ("<think>ab</think><answer></answer>", Some("ab"), None, true),
        ];
        for (text, reasoning, answer, complete) in table {
            let expected = Parts {
                reasoning: reasoning.map(String::from),
                answer: answer.map(String::from),
                complete,
            };
            assert_eq!(split(text, false), expected, "{text}");
        }
    }

    #[test]
    fn a_text_without_marks_is_unfinished_where_the_prompt_opened_the_thinking() {
        assert!(!split("and so on", true).complete);
        assert_eq!(
            split("ab</think>c", true),
            split("<think>ab</think>c", false)
        );
        assert!(closes_unopened("ab</think>c") && !closes_unopened("<think>ab</think>c"));
        assert!(!closes_unopened("Okay.\n<think>ab</think>c"));
    }

    #[test]
    fn marks_that_are_left_are_told() {
        for (text, stray) in [
            ("<think>\na < b\n</think>\n\nc <b>d</b>", false),
            ("c", false),
            ("<think>\na\n</think>\n\nb<think>c</think>d", true),
            ("<think>\na <think>\n</think>\n\nb", true),
            ("a</think>b", true),
            ("a ü<|end_of_solution|>", true),
            ("<think>a", true),
        ] {
            assert_eq!(has_stray_mark(text), stray, "{text}");
        }
        let parts = split("<think>a</think>b<think>c</think>d", false);
        assert!(parts.answer.is_some_and(|answer| has_mark(&answer)));
    }

    #[test]
    fn two_texts_are_cut_at_the_marks_left_in_them() {
        #[rustfmt::skip]
        let table: [(&str, &str, Option<&str>, Option<&str>); 8] = [
            ("ab", "c", Some("ab"), Some("c")),
            ("<think>\nab\n</think>", "<answer>c</answer>", Some("ab"), Some("c")),
            ("Okay.\n<think>ab</think>", "c", Some("Okay.\nab"), Some("c")),
            ("ab", "<think>ab</think>c", Some("ab"), Some("c")),
            ("ab", "<think>\n\n</think>\n\nc", Some("ab"), Some("c")),
            ("", "<think>ab</think>c", Some("ab"), Some("c")),
            ("", "<think>ab", Some("ab"), None),
            ("ab", "<think>other</think>c", Some("ab"), Some("<think>other</think>c")),
        ];
        for (thought, said, reasoning, answer) in table {
            let expected = Parts {
                reasoning: reasoning.map(String::from),
                answer: answer.map(String::from),
                complete: answer.is_some(),
            };
            let found = pair(Some(thought), Some(said));
            assert_eq!(found, expected, "{thought} | {said}");
        }
    }

    #[test]
    fn joined_and_cut_again_is_the_same() {
        let text = join(Some("ab"), "c");
        assert_eq!(text, "<think>\nab\n</think>\n\nc");
        let parts = split(&text, false);
        assert_eq!(
            (parts.reasoning.as_deref(), parts.answer.as_deref()),
            (Some("ab"), Some("c"))
        );
    }
}
