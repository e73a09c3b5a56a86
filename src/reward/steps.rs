//! Steps of a completion, for process supervision (arXiv 2402.03300, section 4.1.3): where they end in its text, and the
//! rules that reward each of them. A model that rewards steps is in [`super::model_score`]; from a place in the text to the
//! token that ends there, in [`crate::tokenize::text_ends`].
//!
//! A step goes up to and with the separator after it. What has nothing but white space belongs to the step before it, at
//! the start of a text to the one after it. A text that does not end with a separator ends with a step, also where it was
//! cut off; a text without a separator is one step; a text without a visible character has none.

use super::{Group, Scored};
use crate::verify::language::{self, Language};

/// Where each step of `text` ends, in bytes; the last one at its end. `separator` is not empty.
pub fn ends(text: &str, separator: &str) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let end = match text[start..].find(separator) {
            Some(at) if !separator.is_empty() => start + at + separator.len(),
            _ => text.len(),
        };
        let is_visible = text[start..end].chars().any(|c| !c.is_whitespace());
        match (is_visible, ends.last_mut()) {
            (true, _) => ends.push(end),
            (false, Some(last)) => *last = end,
            (false, None) => {}
        }
        start = end;
    }
    ends
}

/// The steps themselves.
pub fn texts<'a>(text: &'a str, ends: &'a [usize]) -> impl Iterator<Item = &'a str> {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(ends).map(|(start, &end)| &text[start..end])
}

/// Language consistency of each step, as part `at` of every sample. `target` is the language to be in; none is the prompt's.
pub(super) fn put_consistency(
    groups: &[Group<'_>],
    scored: &mut [Vec<Scored>],
    at: usize,
    target: Option<Language>,
    is_for: impl Fn(&Group<'_>) -> bool,
) {
    let all = groups.iter().zip(scored);
    for (group, scored) in all.filter(|(group, _)| is_for(group)) {
        let target = target.or_else(|| Language::of(group.prompt.unwrap_or_default()));
        for (sample, scored) in group.samples.iter().zip(scored) {
            let found = match target {
                None => Err("the language of the prompt cannot be told".to_string()),
                Some(target) => Ok(texts(sample.text, &scored.step_ends)
                    .map(|step| language::consistency(step, target).share())
                    .collect()),
            };
            scored.parts[at].put_steps(found);
            scored.sum_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_end_with_their_separator() {
        let table: [(&str, &str, &[&str]); 10] = [
            ("a\nb\nc", "\n", &["a\n", "b\n", "c"]),
            ("a\nb\n", "\n", &["a\n", "b\n"]),
            // no separator, one that is not there
            ("abc", "\n", &["abc"]),
            ("a\nb", "\n\n", &["a\nb"]),
            ("a\nb\n\nc", "\n\n", &["a\nb\n\n", "c"]),
            // white space is no step
            ("\n\na\n \nb\n\n", "\n", &["\n\na\n \n", "b\n\n"]),
            ("", "\n", &[]),
            (" \n\t", "\n", &[]),
            ("一步。两步。完", "。", &["一步。", "两步。", "完"]),
            (
                "\n\nStep 1\nStep 2",
                "\nStep",
                &["\n\nStep", " 1\nStep", " 2"],
            ),
        ];
        for (text, separator, expected) in table {
            let ends = ends(text, separator);
            let found: Vec<&str> = texts(text, &ends).collect();
            assert_eq!(found, expected, "{text:?} by {separator:?}");
        }
    }
}
