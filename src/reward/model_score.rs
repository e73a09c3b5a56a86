//! A trained reward model as a reward: what of a sample it sees, and scores in batches. It runs on the CPU in f32.
//!
//! The model's own tokenizer and chat template render the question as a user's turn and the sample as the assistant's, as the
//! rows of its training were rendered; the rollouts' system prompt and instructions are no part of it.

use super::{Group, Scored};
use crate::model::{LoadOptions, RewardModel};
use crate::recipe::reward_model::{RewardModelReward, Scope};
use crate::tokenize::{Chat, Message, MissingEnd, TrainOn};
use crate::verify::answer_part;
use crate::{Error, Result};
use candle_core::{DType, Device};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fs;
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
    fs::write(&path, text + "\n").map_err(|e| Error::io("writing", &path, e))
}

/// The model with what it needs.
pub struct ModelScorer {
    model: RewardModel,
    chat: Chat,
    scope: Scope,
    sigmoid: bool,
}

/// A score, or why there is none.
pub type Score = std::result::Result<f64, String>;

impl ModelScorer {
    /// Loads a folder as a `reward-model` stage leaves it, or as transformers saves one.
    ///
    /// # Errors
    /// A folder that holds no reward model with a tokenizer; a reference to a stage that nobody resolved.
    pub fn open(settings: &RewardModelReward) -> Result<Self> {
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
            scope: settings.scope.unwrap_or(seen.scope),
            sigmoid: settings.sigmoid,
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
        let samples = samples.into_iter().flatten();
        for (sample, score) in samples.zip(self.scores(&groups)?) {
            let part = &mut sample.parts[at];
            (part.value, part.missing) = match score {
                Ok(value) => (Some(value), None),
                Err(why) => (None, Some(why)),
            };
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
        let rendered: Vec<std::result::Result<Vec<u32>, Score>> = samples
            .par_iter()
            .map(|(group, text)| self.render(group, text))
            .collect();
        let mut scores: Vec<Score> = Vec::with_capacity(rendered.len());
        let mut open: Vec<(usize, &Vec<u32>)> = Vec::new();
        for (i, found) in rendered.iter().enumerate() {
            match found {
                Ok(tokens) => {
                    open.push((i, tokens));
                    scores.push(Ok(0.0));
                }
                Err(score) => scores.push(score.clone()),
            }
        }
        // those of one length together, so that the largest batch is known
        open.sort_by_key(|(i, tokens)| (tokens.len(), *i));
        while !open.is_empty() {
            let mut num_tokens = 0;
            let together = open
                .iter()
                .take_while(|(_, tokens)| {
                    num_tokens += tokens.len();
                    num_tokens <= MAX_TOKENS
                })
                .count()
                .max(1);
            let batch: Vec<(usize, &Vec<u32>)> = open.drain(..together).collect();
            let tokens: Vec<u32> = batch.iter().flat_map(|(_, t)| t.iter().copied()).collect();
            let lengths: Vec<usize> = batch.iter().map(|(_, t)| t.len()).collect();
            let found = self.model.scores(&tokens, &lengths)?;
            for ((i, _), score) in batch.iter().zip(found) {
                let score = f64::from(score);
                scores[*i] = match score.is_finite() {
                    true if self.sigmoid => Ok(1.0 / (1.0 + (-score).exp())),
                    true => Ok(score),
                    false => Err("the reward model's score is not finite".into()),
                };
            }
        }
        Ok(scores)
    }

    /// What the model sees, or the score of a sample of which it sees nothing.
    fn render(&self, group: &Group<'_>, text: &str) -> std::result::Result<Vec<u32>, Score> {
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
        let tokens = row.map_err(|e| Err(e.to_string()))?.tokens;
        let config = self.model.weights().config();
        if tokens.len() > config.max_position_embeddings {
            return Err(Err("longer than the reward model's positions".into()));
        }
        if tokens.iter().any(|&t| t as usize >= config.vocab_size) {
            return Err(Err(
                "a token is outside the reward model's vocabulary".into()
            ));
        }
        Ok(tokens)
    }
}
