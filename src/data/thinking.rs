//! How teachers mark where the reasoning ends and the answer begins, and the one form that is trained.
//!
//! | form | of |
//! |---|---|
//! | `<think>…</think>…`, the opening mark often missing | R1 and most others; `<answer>` tags around the answer fall away |
//! | <code><\|begin_of_thought\|>…<\|end_of_thought\|></code>, the same with `solution` | Sky-T1, Bespoke-Stratos, OpenThoughts |
//! | a line `think`, …, a line `answer`, … | s1.1 |

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
    if let Some(body) = text.strip_prefix(THOUGHT[0]) {
        let Some((reasoning, answer)) = body.split_once(THOUGHT[1]) else {
            return unfinished(body);
        };
        let answer = answer.trim();
        let answer = answer.strip_prefix(SOLUTION[0]).unwrap_or(answer);
        return finished(
            reasoning,
            answer.trim().strip_suffix(SOLUTION[1]).unwrap_or(answer),
        );
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

/// Whether the text closes a `<think>` that it does not open: the prompt of its teacher ended with the mark.
pub fn closes_unopened(text: &str) -> bool {
    text.split_once(CLOSE)
        .is_some_and(|(before, _)| !before.contains(OPEN))
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

/// Reasoning without opening marks. Words before the mark stay as its first ones: a mark inside would be trained as text.
fn unmarked(reasoning: &str) -> Cow<'_, str> {
    if !reasoning.contains(OPEN) {
        return Cow::Borrowed(reasoning);
    }
    let parts: Vec<String> = reasoning.split(OPEN).filter_map(some).collect();
    Cow::Owned(parts.join("\n"))
}

fn finished(reasoning: &str, answer: &str) -> Parts {
    let answer = answer.trim();
    let untagged = answer
        .strip_prefix("<answer>")
        .map(|a| a.strip_suffix("</answer>").unwrap_or(a));
    Parts {
        reasoning: some(reasoning),
        answer: some(untagged.unwrap_or(answer)),
        complete: true,
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
        let table: [(&str, Option<&str>, Option<&str>, bool); 15] = [
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
