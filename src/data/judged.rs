//! Rows of preferences and of labelled answers to tokens.
//!
//! | row | meaning |
//! |---|---|
//! | `prompt` or `messages`, `chosen`, `rejected` | two answers to one prompt; `margin` where one is known |
//! | `prompt` or `messages`, `completion`, `label` | one answer, good or not |
//!
//! As in TRL, a conversation is a list of messages, answers are texts or lists that the assistant's turn ends, and a list
//! that begins with a user's or system's turn holds the prompt too. A prompt that is a text goes without chat template,
//! and `eos_token` follows the answer. Rows stay in memory: preferences are few.

use super::columns::{self, Values};
use super::report::Dropped;
use super::rows;
use crate::progress::Stop;
use crate::recipe::reward_model::{RewardLoss, Scope};
use crate::recipe::{OnBad, OverLength};
use crate::tokenize::{Chat, Message, Tokenized, TrainOn};
use crate::verify::answer_part;
use crate::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Names kept of the rows dropped for one reason.
const NUM_EXAMPLES: usize = 5;

/// What rows have to be.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct JudgedOptions {
    pub rows: RewardLoss,
    /// What of the answers is seen.
    pub scope: Scope,
    /// A row's `question` is asked in place of the prompt, without system prompt and instructions: what a judge reads, and
    /// what a reward model knows of a sample. A prompt that is a text is a user's turn then, as a reward model is always asked
    /// by its chat template.
    pub bare_question: bool,
    /// Longest sequence in tokens.
    pub max_length: usize,
    pub over_length: OverLength,
    pub on_bad: OnBad,
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct JudgedRow {
    /// Where it came from, for messages.
    pub name: String,
    pub judged: Judged,
}

/// What a row says.
#[derive(Clone, Debug, PartialEq)]
pub enum Judged {
    Pair {
        chosen: Tokenized,
        rejected: Tokenized,
        /// By how much, in a reward model's scores.
        margin: f64,
    },
    Labelled {
        answer: Tokenized,
        label: bool,
    },
}

impl JudgedRow {
    /// Its one or two sequences, the chosen one first.
    pub fn sequences(&self) -> impl Iterator<Item = &Tokenized> {
        let (first, second) = match &self.judged {
            Judged::Pair {
                chosen, rejected, ..
            } => (chosen, Some(rejected)),
            Judged::Labelled { answer, .. } => (answer, None),
        };
        std::iter::once(first).chain(second)
    }

    /// The tokens before what is judged; answers of one prompt have the same.
    pub fn prompt(&self) -> &[u32] {
        let first = match &self.judged {
            Judged::Pair { chosen, .. } => chosen,
            Judged::Labelled { answer, .. } => answer,
        };
        let end = first.trained.iter().position(|&trained| trained);
        &first.tokens[..end.unwrap_or(first.tokens.len())]
    }

    /// Tokens of all its sequences.
    pub fn num_tokens(&self) -> usize {
        self.sequences().map(|s| s.tokens.len()).sum()
    }
}

/// What became of the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct JudgedReport {
    pub kept: u64,
    /// Rows left out, by reason, the most frequent one first.
    pub dropped: Vec<Dropped>,
    /// Tokens of all kept rows.
    pub tokens: u64,
    /// The longest kept sequence.
    pub longest: u64,
}

impl JudgedReport {
    /// Rows left out, for whatever reason, in words: `3 rows are too long, 1 ...`.
    pub fn reasons(&self) -> String {
        let all: Vec<String> = self
            .dropped
            .iter()
            .map(|d| format!("{} {}", d.count, d.reason))
            .collect();
        all.join(", ")
    }
}

/// Why a row is left out.
enum Unfit {
    TooLong(usize),
    Bad(Error),
    /// Names its place.
    Unreadable(Error),
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        Self::Bad(error)
    }
}

/// Reads and tokenises the rows of files, in order.
///
/// # Errors
/// A file that cannot be read; a row that is left out where the options say that this is an error; no row left.
pub fn judged_rows(
    files: &[PathBuf],
    chat: &Chat,
    options: &JudgedOptions,
    stop: &Stop,
) -> Result<(Vec<JudgedRow>, JudgedReport)> {
    let mut kept = Vec::new();
    let mut report = JudgedReport::default();
    let mut dropped: BTreeMap<String, (u64, Vec<String>)> = BTreeMap::new();
    for path in files {
        for row in rows::open(path)? {
            if stop.requested() {
                return Err(Error::Interrupted {
                    message: "while reading pairs; the same command begins again".into(),
                });
            }
            let (place, found) = match row {
                Ok(row) => {
                    let found = judged(&row.values, chat, options);
                    (row.place, found)
                }
                Err(bad) if bad.fatal => return Err(*bad.error),
                Err(bad) => (bad.place, Err(Unfit::Unreadable(*bad.error))),
            };
            let reason = match found {
                Ok(judged) => {
                    let row = JudgedRow {
                        name: place,
                        judged,
                    };
                    report.tokens += row.num_tokens() as u64;
                    let longest = row.sequences().map(|s| s.tokens.len()).max();
                    report.longest = report.longest.max(longest.unwrap_or(0) as u64);
                    kept.push(row);
                    continue;
                }
                Err(Unfit::TooLong(length)) if options.over_length != OverLength::Drop => {
                    return Err(Error::input(format!(
                        "`{place}` has {length} tokens, and `max_length` is {}",
                        options.max_length
                    ))
                    .with_hint("raise `max_length`, or set `over_length = \"drop\"`"));
                }
                Err(Unfit::TooLong(_)) => "longer than `max_length`".to_string(),
                Err(Unfit::Unreadable(error)) if options.on_bad == OnBad::Error => {
                    return Err(error);
                }
                Err(Unfit::Unreadable(_)) => "a row that cannot be read".to_string(),
                Err(Unfit::Bad(error)) if options.on_bad == OnBad::Error => {
                    return Err(error.at(format!("`{place}`")));
                }
                // without what differs from row to row
                Err(Unfit::Bad(error)) => {
                    let text = error.to_string();
                    text.split(';').next().unwrap_or_default().to_string()
                }
            };
            let (count, examples) = dropped.entry(reason).or_default();
            *count += 1;
            if examples.len() < NUM_EXAMPLES {
                examples.push(place);
            }
        }
    }
    report.kept = kept.len() as u64;
    report.dropped = dropped
        .into_iter()
        .map(|(reason, (count, examples))| Dropped {
            reason,
            count,
            examples,
        })
        .collect();
    report.dropped.sort_by_key(|d| std::cmp::Reverse(d.count));
    if kept.is_empty() {
        let why = match report.dropped.is_empty() {
            true => "the files hold none".to_string(),
            false => format!("dropped: {}", report.reasons()),
        };
        return Err(Error::input(format!("there is no row to train on: {why}")));
    }
    Ok((kept, report))
}

fn judged(
    row: &Values,
    chat: &Chat,
    options: &JudgedOptions,
) -> std::result::Result<Judged, Unfit> {
    let context = Context::read(row)?;
    match options.rows {
        RewardLoss::Pairwise => {
            let (chosen, rejected) = (
                context.answer(row, "chosen")?,
                context.answer(row, "rejected")?,
            );
            if !chosen.asks_the_same(&rejected) {
                return Err(
                    Error::input("`chosen` and `rejected` answer different prompts").into(),
                );
            }
            let chosen = chosen.tokenize("chosen", row, chat, options)?;
            let rejected = rejected.tokenize("rejected", row, chat, options)?;
            if chosen.tokens == rejected.tokens {
                return Err(Error::input("`chosen` and `rejected` are the same").into());
            }
            let margin = match columns::get(row, "margin") {
                None => 0.0,
                Some(value) => value
                    .as_f64()
                    .ok_or_else(|| columns::wrong_type("margin", value, "a number"))?,
            };
            Ok(Judged::Pair {
                chosen,
                rejected,
                margin,
            })
        }
        RewardLoss::Pointwise => {
            let answer = context.answer(row, "completion")?;
            let label = match columns::get(row, "label") {
                None => return Err(columns::missing(row, "label").into()),
                Some(value) => columns::verdict(value).ok_or_else(|| {
                    Error::input(format!(
                        "column `label` holds {}, expected a bool",
                        columns::kind(value)
                    ))
                })?,
            };
            Ok(Judged::Labelled {
                answer: answer.tokenize("completion", row, chat, options)?,
                label,
            })
        }
    }
}

/// What comes before the answers.
enum Context {
    /// The answers bring it along.
    None,
    Text(String),
    Turns(Vec<Message>),
}

/// An answer with what comes before it.
#[derive(PartialEq)]
enum Answer {
    Text { prompt: String, text: String },
    Turns(Vec<Message>),
}

impl Context {
    fn read(row: &Values) -> Result<Self> {
        for path in ["messages", "prompt"] {
            match columns::get(row, path) {
                None => {}
                Some(Value::Array(_)) => return Ok(Self::Turns(columns::messages(row, path)?)),
                Some(_) => return Ok(Self::Text(columns::required(row, path)?)),
            }
        }
        Ok(Self::None)
    }

    fn answer(&self, row: &Values, path: &str) -> Result<Answer> {
        if let Some(Value::Array(_)) = columns::get(row, path) {
            let turns = columns::messages(row, path)?;
            if turns.last().is_none_or(|turn| turn.role != "assistant") {
                return Err(Error::input(format!(
                    "column `{path}` does not end with a turn of the assistant"
                )));
            }
            let is_whole = turns.iter().any(|turn| turn.role != "assistant");
            return match self {
                _ if is_whole => Ok(Answer::Turns(turns)),
                Self::Turns(context) => Ok(Answer::Turns([context.clone(), turns].concat())),
                Self::Text(prompt) => {
                    let asked = vec![Message::new("user", prompt)];
                    Ok(Answer::Turns([asked, turns].concat()))
                }
                Self::None => Err(columns::missing(row, "prompt")),
            };
        }
        let text = columns::required(row, path)?;
        match self {
            Self::Turns(context) => {
                let mut turns = context.clone();
                turns.push(Message::new("assistant", text));
                Ok(Answer::Turns(turns))
            }
            Self::Text(prompt) => Ok(Answer::Text {
                prompt: prompt.clone(),
                text,
            }),
            Self::None => Err(columns::missing(row, "prompt")),
        }
    }
}

impl Answer {
    fn asks_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text { prompt: a, .. }, Self::Text { prompt: b, .. }) => a == b,
            (Self::Turns(a), Self::Turns(b)) => a.iter().rev().skip(1).eq(b.iter().rev().skip(1)),
            _ => false,
        }
    }

    /// As a reward model is asked later, by the chat template: `question`, where there is one, in place of what came before
    /// the answer.
    fn of_question(self, question: Option<String>) -> Self {
        let (question, answer) = match (self, question) {
            (Self::Turns(turns), None) => return Self::Turns(turns),
            (Self::Turns(mut turns), Some(question)) => {
                (question, turns.split_off(turns.len().saturating_sub(1)))
            }
            (Self::Text { prompt, text }, question) => {
                let answer = vec![Message::new("assistant", text)];
                (question.unwrap_or(prompt), answer)
            }
        };
        Self::Turns([vec![Message::new("user", question)], answer].concat())
    }

    fn tokenize(
        mut self,
        path: &str,
        row: &Values,
        chat: &Chat,
        options: &JudgedOptions,
    ) -> std::result::Result<Tokenized, Unfit> {
        if options.scope == Scope::Summary {
            let text = match &mut self {
                Self::Text { text, .. } => Some(text),
                Self::Turns(turns) => turns.last_mut().map(|turn| &mut turn.content),
            };
            if let Some(text) = text {
                *text = summary(text)
                    .ok_or_else(|| Error::input(format!("the thinking in `{path}` never ends")))?
                    .to_string();
            }
        }
        if options.bare_question {
            self = self.of_question(columns::text(row, "question")?);
        }
        let tokenized = match &self {
            Self::Turns(turns) => chat.tokenize(turns, TrainOn::LastAssistant),
            Self::Text { prompt, text } => raw(chat, prompt, text),
        };
        let tokenized = tokenized.map_err(|e| e.at(format!("`{path}`")))?;
        if tokenized.tokens.len() > options.max_length {
            return Err(Unfit::TooLong(tokenized.tokens.len()));
        }
        Ok(tokenized)
    }
}

/// What a reward model for summaries sees of an answer; none where the thinking never ends.
pub fn summary(text: &str) -> Option<&str> {
    answer_part(text).map(str::trim)
}

/// A prompt and its answer without a template.
fn raw(chat: &Chat, prompt: &str, text: &str) -> Result<Tokenized> {
    let mut tokens = chat.tokenizer.encode_with_special(prompt)?;
    let num_prompt = tokens.len();
    tokens.extend(chat.tokenizer.encode(text)?);
    if tokens.len() == num_prompt {
        return Err(Error::input("the answer is empty"));
    }
    if num_prompt == 0 {
        return Err(Error::input("the prompt is empty"));
    }
    if let Some(eos) = chat.tokenizer.special_id("eos_token")
        && tokens.last() != Some(&eos)
    {
        tokens.push(eos);
    }
    Ok(Tokenized {
        trained: (0..tokens.len()).map(|t| t >= num_prompt).collect(),
        tokens,
        joint_differs: false,
    })
}
