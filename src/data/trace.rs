//! One trace: a problem, how it was reasoned about, what was answered, and what is known about both. Whatever schema a row
//! had, this is what the rest of the program sees.

use super::thinking::{self, Parts};
use crate::tokenize::Message;

/// One trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// Where it stands: `file.jsonl:17`, or `file.parquet row 17 trace 2`; rows and traces count from 1.
    pub name: String,
    pub problem: String,
    /// What stands inside `<think>`, without the marks.
    pub reasoning: Option<String>,
    /// What stands after it.
    pub answer: Option<String>,
    /// The right answer, as the source gives it.
    pub gold: Option<String>,
    pub system: Option<String>,
    /// The whole conversation, where it has more than a problem and its answer.
    pub messages: Option<Vec<Message>>,
    pub source: Option<String>,
    pub domain: Option<String>,
    pub verdicts: Vec<Verdict>,
    /// Whether the reasoning came to an end; unknown where nobody says.
    pub complete: Option<bool>,
    /// Why sampling stopped: `stop`, `length`.
    pub finish_reason: Option<String>,
}

/// What somebody says about the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Who: a column or a label file.
    pub by: String,
    pub correct: Option<bool>,
}

impl Trace {
    /// The conversation that is trained: system, problem, and `<think>` with the answer.
    pub fn messages(&self) -> Vec<Message> {
        if let Some(messages) = &self.messages {
            return messages.clone();
        }
        let mut messages = Vec::with_capacity(3);
        if let Some(system) = &self.system {
            messages.push(Message::new("system", system.as_str()));
        }
        messages.push(Message::new("user", self.problem.as_str()));
        let answer = self.answer.as_deref().unwrap_or_default();
        let content = thinking::join(self.reasoning.as_deref(), answer);
        messages.push(Message::new("assistant", content));
        messages
    }

    /// All verdicts in one: right where anybody says right, else wrong where anybody says wrong, else unknown.
    pub fn correct(&self) -> Option<bool> {
        let said = |what: bool| self.verdicts.iter().any(|v| v.correct == Some(what));
        match (said(true), said(false)) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        }
    }

    /// Puts in what a marked text holds; what the row says elsewhere about the end stays.
    pub(super) fn set_parts(&mut self, parts: Parts) {
        self.reasoning = parts.reasoning;
        self.answer = parts.answer;
        if !parts.complete {
            self.complete = Some(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_right_verdict_is_enough() {
        let trace = |verdicts: &[Option<bool>]| Trace {
            verdicts: verdicts
                .iter()
                .map(|&correct| Verdict {
                    by: "x".into(),
                    correct,
                })
                .collect(),
            ..Trace::default()
        };
        assert_eq!(trace(&[Some(false), Some(true)]).correct(), Some(true));
        assert_eq!(trace(&[Some(false), None]).correct(), Some(false));
        assert_eq!(trace(&[None]).correct(), None);
        assert_eq!(trace(&[]).correct(), None);
    }

    #[test]
    fn the_conversation_has_the_reasoning_inside() {
        let trace = Trace {
            problem: "1+1?".into(),
            system: Some("Be brief.".into()),
            reasoning: Some("one and one".into()),
            answer: Some("2".into()),
            ..Trace::default()
        };
        let said: Vec<_> = trace
            .messages()
            .into_iter()
            .map(|m| (m.role, m.content))
            .collect();
        let expected = [
            ("system", "Be brief."),
            ("user", "1+1?"),
            ("assistant", "<think>\none and one\n</think>\n\n2"),
        ];
        assert_eq!(said, expected.map(|(r, c)| (r.to_string(), c.to_string())));
    }
}
