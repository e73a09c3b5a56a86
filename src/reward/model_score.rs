//! A trained reward model as a reward: what of a sample it sees, and scores in batches. It runs on the CPU in f32.
//!
//! The model's own tokenizer and chat template render the question as a user's turn and the sample as the assistant's, as the
//! rows of its training were rendered; the rollouts' system prompt and instructions are no part of it. With `steps = true`
//! it reads the whole sample once, and each step is worth what the head gives at the last token of that step.

use super::{Group, Scored};
use crate::model::{LoadOptions, RewardModel};
use crate::recipe::reward_model::{RewardModelReward, Scope};
use crate::tokenize::{Chat, Message, MissingEnd, Tokenized, TrainOn, text_ends, tokens_at};
use crate::verify::answer_part;
use crate::{Error, Result};
use candle_core::{DType, Device};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::path::Path;

/// In a reward model's folder: what it was trained to see.
const SEEN: &str = "reward_model.json";
/// Tokens that go through the model together; a longer sequence goes alone.
const MAX_TOKENS: usize = 8192;

/// `reward_model.json`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub scope: Scope,
}

/// Writes what the model in `folder` was trained to see.
///
/// # Errors
/// The disk refuses.
pub fn save_seen(folder: &Path, seen: &Seen) -> Result<()> {
    let path = folder.join(SEEN);
    let text = serde_json::to_string_pretty(seen)
        .map_err(|e| Error::input(format!("`{}`: {e}", path.display())))?;
    let synced = || {
        let mut file = fs::File::create(&path)?;
        file.write_all((text + "\n").as_bytes())?;
        file.sync_all()
    };
    synced().map_err(|e| Error::io("writing", &path, e))
}

/// The model with what it needs.
pub struct ModelScorer {
    model: RewardModel,
    chat: Chat,
    scope: Scope,
    sigmoid: bool,
    of_steps: bool,
}

/// A score, or why there is none.
pub type Score = std::result::Result<f64, String>;

impl ModelScorer {
    /// Loads a folder as a `reward-model` stage leaves it, or as transformers saves one.
    ///
    /// # Errors
    /// A folder that holds no reward model with a tokenizer; a reference to a stage that nobody resolved.
    pub fn open(settings: &RewardModelReward) -> Result<Self> {
        if settings.steps && settings.scope == Some(Scope::Summary) {
            return Err(Error::input(
                "`steps = true` and `scope = \"summary\"` contradict each other",
            )
            .with_hint("steps are those of the reasoning too: leave `scope` out"));
        }
        if settings.model.starts_with('@') {
            return Err(Error::input(format!(
                "`model = \"{}\"` names a stage, and there are none here",
                settings.model
            ))
            .with_hint("give the folder of the reward model"));
        }
        let folder = Path::new(&settings.model);
        let options = LoadOptions {
            device: Device::Cpu,
            dtype: DType::F32,
        };
        let path = folder.join(SEEN);
        let seen = match path.exists() {
            false => Seen::default(),
            true => {
                let bytes = fs::read(&path).map_err(|e| Error::io("reading", &path, e))?;
                serde_json::from_slice(&bytes)
                    .map_err(|e| Error::input(format!("`{}` is damaged: {e}", path.display())))?
            }
        };
        let mut chat = Chat::load(folder, None)?;
        // a student whose template ends no turn was trained so, or not at all
        chat.missing_end = MissingEnd::AppendEos;
        Ok(Self {
            model: RewardModel::load(folder, &options)?,
            chat,
            scope: match settings.steps {
                true => Scope::All,
                false => settings.scope.unwrap_or(seen.scope),
            },
            sigmoid: settings.sigmoid,
            of_steps: settings.steps,
        })
    }

    /// Puts the scores of every group that the reward `is_for` into part `at` of its samples.
    pub(super) fn put(
        &self,
        groups: &[Group<'_>],
        scored: &mut [Vec<Scored>],
        at: usize,
        is_for: impl Fn(&Group<'_>) -> bool,
    ) -> Result<()> {
        let samples = groups.iter().zip(scored);
        let samples = samples.filter(|(group, _)| is_for(group));
        let (groups, samples): (Vec<Group<'_>>, Vec<&mut Vec<Scored>>) = samples
            .map(|(group, samples)| (group.clone(), samples))
            .unzip();
        if self.of_steps {
            let found = self.scores_of_steps(&groups, &samples)?;
            for (sample, found) in samples.into_iter().flatten().zip(found) {
                sample.parts[at].put_steps(found);
                sample.sum_up();
            }
            return Ok(());
        }
        let found = self.scores(&groups)?;
        for (sample, score) in samples.into_iter().flatten().zip(found) {
            sample.parts[at].put(score);
            sample.sum_up();
        }
        Ok(())
    }

    /// The score of every sample of every group, in order.
    ///
    /// # Errors
    /// A model that cannot be run.
    pub fn scores(&self, groups: &[Group<'_>]) -> Result<Vec<Score>> {
        let samples: Vec<(&Group<'_>, &str)> = groups
            .iter()
            .flat_map(|group| group.samples.iter().map(move |sample| (group, sample.text)))
            .collect();
        let rendered: Vec<std::result::Result<Asked, Score>> = samples
            .par_iter()
            .map(|(group, text)| {
                let tokens = self.render(group, text)?.tokens;
                Ok(Asked {
                    tokens,
                    places: None,
                })
            })
            .collect();
        let found = self.ask(rendered.iter().map(|one| one.as_ref().ok()))?;
        let scores = rendered.iter().zip(found);
        Ok(scores
            .map(|(asked, found)| match asked {
                Err(score) => score.clone(),
                Ok(_) => match found?[..] {
                    [score] => Ok(score),
                    _ => Err("the reward model gave no score".into()),
                },
            })
            .collect())
    }

    /// The scores of the steps of every sample, read where the last token of each ends.
    fn scores_of_steps(
        &self,
        groups: &[Group<'_>],
        scored: &[&mut Vec<Scored>],
    ) -> Result<Vec<std::result::Result<Vec<f64>, String>>> {
        let samples: Vec<(&Group<'_>, &str, &Scored)> = groups
            .iter()
            .zip(scored)
            .flat_map(|(group, scored)| {
                let texts = group.samples.iter().map(|sample| sample.text);
                texts
                    .zip(scored.iter())
                    .map(move |(text, one)| (group, text, one))
            })
            .collect();
        let asked: Vec<std::result::Result<Asked, String>> = samples
            .par_iter()
            .map(|(group, text, one)| self.render_steps(group, text, &one.step_ends))
            .collect();
        let found = self.ask(asked.iter().map(|one| one.as_ref().ok()))?;
        let all = asked.into_iter().zip(found);
        Ok(all.map(|(asked, found)| asked.and(found)).collect())
    }

    /// The scores at the places of each sequence; none for what is not asked.
    fn ask<'a>(
        &self,
        all: impl Iterator<Item = Option<&'a Asked>>,
    ) -> Result<Vec<std::result::Result<Vec<f64>, String>>> {
        let mut open: Vec<(usize, &Asked)> = Vec::new();
        let mut scores = Vec::new();
        for (i, asked) in all.enumerate() {
            open.extend(asked.map(|asked| (i, asked)));
            scores.push(Ok(Vec::new()));
        }
        // those of one length together, so that the largest batch is known
        open.sort_by_key(|(i, asked)| (asked.tokens.len(), *i));
        while !open.is_empty() {
            let mut num_tokens = 0;
            let together = open
                .iter()
                .take_while(|(_, asked)| {
                    num_tokens += asked.tokens.len();
                    num_tokens <= MAX_TOKENS
                })
                .count()
                .max(1);
            let batch: Vec<(usize, &Asked)> = open.drain(..together).collect();
            let each = batch.iter().map(|(_, asked)| *asked);
            let tokens: Vec<u32> = each.clone().flat_map(|a| a.tokens.clone()).collect();
            let lengths: Vec<usize> = each.clone().map(|a| a.tokens.len()).collect();
            let found = match each.clone().any(|a| a.places.is_some()) {
                false => self.model.scores(&tokens, &lengths)?,
                true => {
                    let starts = lengths.iter().scan(0, |end, length| {
                        *end += length;
                        Some((*end - length) as u32)
                    });
                    let places = each.zip(starts).flat_map(|(asked, start)| {
                        let places = asked.places.iter().flatten();
                        places.map(move |&place| start + place as u32)
                    });
                    let places = places.collect();
                    self.model.scores_at(&tokens, &lengths, places)?
                }
            };
            let mut found = found.into_iter().map(f64::from);
            for (i, asked) in batch {
                let num = asked.places.as_ref().map_or(1, Vec::len);
                let own: Vec<f64> = found.by_ref().take(num).collect();
                scores[i] = match own.iter().all(|score| score.is_finite()) {
                    false => Err("the reward model's score is not finite".into()),
                    true => Ok(own.into_iter().map(|score| self.shown(score)).collect()),
                };
            }
        }
        Ok(scores)
    }

    fn shown(&self, score: f64) -> f64 {
        match self.sigmoid {
            true => 1.0 / (1.0 + (-score).exp()),
            false => score,
        }
    }

    /// What the model sees of a sample, and the tokens of that with which its steps end.
    fn render_steps(
        &self,
        group: &Group<'_>,
        text: &str,
        step_ends: &[usize],
    ) -> std::result::Result<Asked, String> {
        if step_ends.is_empty() {
            return Err("there is no step".into());
        }
        let row = match self.render(group, text) {
            Ok(row) => row,
            Err(score) => return Err(score.err().unwrap_or_else(|| "there is no step".into())),
        };
        let whole = format!("{}{text}", group.opening);
        let seen = whole.trim();
        // the text begins here in what is seen
        let cut = (whole.len() - whole.trim_start().len()) as isize;
        let shift = group.opening.len() as isize - cut;
        let first = row.trained.iter().position(|&trained| trained).unwrap_or(0);
        let tokenizer = &self.chat.tokenizer;
        let answer = &row.tokens[first..];
        let failed = |e: Error| e.to_string();
        let written = tokenizer.decode(answer, false).map_err(failed)?;
        let Some(at) = written.find(seen) else {
            return Err("the reward model's chat template changes the answer".into());
        };
        let ends = text_ends(tokenizer, answer, false).map_err(failed)?;
        let places = step_ends.iter().map(|&end| {
            let end = (end as isize + shift).clamp(1, seen.len() as isize);
            at + end as usize
        });
        let places = tokens_at(&ends, places);
        Ok(Asked {
            places: Some(places.into_iter().map(|place| first + place).collect()),
            tokens: row.tokens,
        })
    }

    /// What the model sees, or the score of a sample of which it sees nothing.
    fn render(&self, group: &Group<'_>, text: &str) -> std::result::Result<Tokenized, Score> {
        let Some(question) = group.prompt else {
            return Err(Err("the prompt is not known".into()));
        };
        let whole = format!("{}{text}", group.opening);
        let seen = match self.scope {
            Scope::All => Some(whole.as_str()),
            Scope::Summary => answer_part(&whole),
        };
        let Some(seen) = seen.map(str::trim).filter(|seen| !seen.is_empty()) else {
            // nothing to read is worth as little as there is, where there is a least
            return Err(match self.sigmoid {
                true => Ok(0.0),
                false => Err("there is no answer after the thinking".into()),
            });
        };
        let turns = [
            Message::new("user", question),
            Message::new("assistant", seen),
        ];
        let row = self.chat.tokenize(&turns, TrainOn::LastAssistant);
        let row = row.map_err(|e| Err(e.to_string()))?;
        let tokens = &row.tokens;
        let config = self.model.weights().config();
        if tokens.len() > config.max_position_embeddings {
            return Err(Err("longer than the reward model's positions".into()));
        }
        if tokens.iter().any(|&t| t as usize >= config.vocab_size) {
            return Err(Err(
                "a token is outside the reward model's vocabulary".into()
            ));
        }
        Ok(row)
    }
}

/// A sequence for the model, and where it is read: at its end where that is not said.
struct Asked {
    tokens: Vec<u32>,
    places: Option<Vec<usize>>,
}
