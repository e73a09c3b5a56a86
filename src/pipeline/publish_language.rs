//! In which languages a model answers, or traces are written, where nobody says: by what most of a text is in.

use crate::verify::language::main_language;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Texts that are looked at.
const MAX_TEXTS: u64 = 500;
/// A language that fewer of the texts are in is not named.
const MIN_SHARE: f64 = 0.05;

/// Counts texts by language.
#[derive(Clone, Debug, Default)]
pub struct Languages {
    num_texts: u64,
    by_code: BTreeMap<&'static str, u64>,
}

impl Languages {
    /// Looks at one more text, while few have been looked at.
    pub fn add(&mut self, text: &str) {
        if self.num_texts < MAX_TEXTS
            && let Some((language, _)) = main_language(text)
        {
            self.num_texts += 1;
            *self.by_code.entry(language.code()).or_default() += 1;
        }
    }

    /// Looks at what a row of traces or samples says: its last answer, or its first generation.
    pub fn add_row(&mut self, row: &Value) {
        let last = row["messages"].as_array().and_then(|list| list.last());
        let text = last.map_or(&row["generations"][0]["text"], |turn| &turn["content"]);
        if let Some(text) = text.as_str().or(row["text"].as_str()) {
            self.add(text);
        }
    }

    /// Codes, the most frequent first.
    pub fn codes(&self) -> Vec<String> {
        let least = self.num_texts as f64 * MIN_SHARE;
        let mut found: Vec<(&str, u64)> = self
            .by_code
            .iter()
            .filter(|(_, num)| **num as f64 >= least)
            .map(|(code, num)| (*code, *num))
            .collect();
        found.sort_by_key(|(code, num)| (std::cmp::Reverse(*num), *code));
        found
            .into_iter()
            .map(|(code, _)| code.to_string())
            .collect()
    }
}

/// The languages of the answers in the `samples.jsonl` of evaluations; what cannot be read says nothing.
pub fn of_samples<'a>(files: impl Iterator<Item = &'a Path>) -> Vec<String> {
    let mut languages = Languages::default();
    for path in files {
        let Ok(file) = File::open(path) else { continue };
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        for line in lines.take(MAX_TEXTS as usize) {
            if let Ok(row) = serde_json::from_str::<Value>(&line) {
                languages.add_row(&row);
            }
        }
    }
    languages.codes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn languages_by_their_share_of_the_texts() {
        let mut languages = Languages::default();
        let english =
            "Let me think about this step by step: first we add the two numbers together.";
        let chinese = "我一步一步来算。先算九减三等于六，然后再乘以二，最后的答案是十二。";
        for _ in 0..30 {
            languages.add_row(&json!({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": english}]}));
            languages.add_row(&json!({"generations": [{"text": english}]}));
        }
        assert_eq!(languages.codes(), ["en"]);
        languages.add(chinese);
        assert_eq!(languages.codes(), ["en"]);
        for _ in 0..5 {
            languages.add_row(&json!({"text": chinese}));
        }
        assert_eq!(languages.codes(), ["en", "zh"]);
    }
}
