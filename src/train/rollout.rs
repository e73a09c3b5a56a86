//! Rollouts: which prompts, their completions and rewards. Each group is on the disk as soon as it and those before it are
//! sampled, so that a killed run samples nothing twice.
//!
//! Prompts come in an order that is a function of the seed, each epoch another; draws are keyed by a prompt's place in that
//! order, so that a rollout is a function of the weights, the seed and the place it begins at.

use super::advantage::{self, StepReward, Steps, is_flat};
use super::non_finite::listed;
use super::order;
use crate::data::Prompt;
use crate::generate::row_log::{Asked, Generation, RowLog, sample_in_order};
use crate::generate::{Engine, Sampling};
use crate::progress::Stop;
use crate::recipe::grpo::Grpo;
use crate::recipe::grpo::Supervision;
use crate::reward::{Group as RewardGroup, Rewards, Scored};
use crate::tokenize::{TextTokenizer, text_ends, tokens_at};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A prompt as the policy gets it.
#[derive(Clone, Debug, PartialEq)]
pub struct GrpoPrompt {
    pub prompt: Prompt,
    /// With the generation prompt.
    pub tokens: Vec<u32>,
    /// What the template wrote behind the question and belongs to the answer.
    pub opening: String,
}

/// The completions of one prompt.
#[derive(Clone, Debug)]
pub struct Group {
    /// Index of the prompt.
    pub prompt: usize,
    pub answers: Vec<Generation>,
    pub scored: Vec<Scored>,
    /// Of each completion; under process supervision the mean over its tokens.
    pub advantages: Vec<f64>,
    /// Of each token of each completion, under process supervision.
    pub token_advantages: Vec<Vec<f64>>,
    /// Updates between the weights that sampled and those that the rollout's first update is made to.
    pub staleness: usize,
}

/// What the updates are made from.
#[derive(Clone, Debug, Default)]
pub struct Rollout {
    pub groups: Vec<Group>,
    /// Prompts that were drawn, with those of groups that were replaced.
    pub num_drawn: usize,
    /// Groups that were all right or all wrong, and were left out.
    pub num_dropped: usize,
    /// Of all groups that were drawn, those whose completions are all right, and all wrong.
    pub num_right: usize,
    pub num_wrong: usize,
    /// Tokens of the completions of all groups that were drawn.
    pub num_tokens: usize,
    pub rollout_s: f64,
    pub reward_s: f64,
}

impl Rollout {
    /// Shares of the groups that were drawn whose completions are all right, and all wrong.
    pub fn shares(&self) -> (f64, f64) {
        let n = self.num_drawn.max(1) as f64;
        (self.num_right as f64 / n, self.num_wrong as f64 / n)
    }

    /// Rewards that apply to no completion, each with the reason of the first one.
    pub fn never_applied(&self) -> Vec<(&str, &str)> {
        let all = || self.groups.iter().flat_map(|group| &group.scored);
        let names = all().next().into_iter().flat_map(|s| &s.parts);
        let of = |at: usize| all().filter_map(move |s| s.parts.get(at));
        let never = names
            .enumerate()
            .filter(|(at, _)| of(*at).all(|part| part.value.is_none()));
        never
            .map(|(_, part)| {
                (
                    &*part.name,
                    part.missing.as_deref().unwrap_or("it has no value"),
                )
            })
            .collect()
    }
}

impl Group {
    /// Whether each completion is right, where that is known.
    pub fn correct(&self) -> impl Iterator<Item = Option<bool>> + Clone {
        self.scored.iter().map(Scored::is_correct)
    }

    /// Whether steps are rewarded.
    pub fn is_of_steps(&self) -> bool {
        let parts = self.scored.iter().flat_map(|s| &s.parts);
        parts.into_iter().any(|part| part.is_of_steps)
    }

    /// The advantage of each token of a completion.
    pub fn advantages_of(&self, answer: usize) -> Vec<f64> {
        match self.token_advantages.get(answer) {
            Some(each) => each.clone(),
            None => vec![self.advantages[answer]; self.answers[answer].tokens.len()],
        }
    }

    /// Whether all are right, or all wrong; where that is not known, whether all rewards are equal. Where steps are
    /// rewarded, whether neither they nor the rewards of the whole differ.
    pub fn is_degenerate(&self) -> bool {
        if self.is_of_steps() {
            let steps: Vec<f64> = self.scored.iter().flat_map(Scored::steps).collect();
            let whole: Vec<f64> = self.scored.iter().filter_map(Scored::outcome).collect();
            return is_flat(&steps) && is_flat(&whole);
        }
        let known: Option<Vec<bool>> = self.correct().collect();
        match known {
            Some(known) => known.iter().all(|c| *c) || !known.contains(&true),
            None => is_flat(
                &self
                    .scored
                    .iter()
                    .filter_map(Scored::reward)
                    .collect::<Vec<_>>(),
            ),
        }
    }
}

/// A line of the file of a rollout.
#[derive(Serialize, Deserialize)]
struct Row {
    /// Place in the order of prompts.
    position: usize,
    /// The update that left the weights that sampled; none where that was the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weights_step: Option<usize>,
    generations: Vec<Generation>,
}

/// What rollouts are made with.
pub struct Rollouts<'a> {
    pub engine: &'a mut dyn Engine,
    pub prompts: &'a [GrpoPrompt],
    pub rewards: &'a Rewards,
    /// Of the policy.
    pub tokenizer: &'a TextTokenizer,
    pub settings: &'a Grpo,
    pub sampling: Sampling,
    /// Where the files are.
    pub dir: PathBuf,
    /// Of the run; files of another are not read.
    pub key: String,
    pub stop: &'a Stop,
}

impl Rollouts<'_> {
    /// Rollout `number`, from the prompt at `first` on, for the updates after `step`.
    ///
    /// # Errors
    /// What the engine or a reward returns; [`Error::Interrupted`] after a stop, with all whole groups kept.
    pub fn take(&mut self, number: usize, first: usize, step: usize) -> Result<Rollout> {
        fs::create_dir_all(&self.dir).map_err(|e| Error::io("creating", &self.dir, e))?;
        let mut log = RowLog::open(&self.path(number))?;
        let mut kept: Vec<Row> = Vec::new();
        let path = log.path().to_path_buf();
        let (group_size, num_prompts) = (self.settings.group_size, self.prompts.len());
        log.keep(
            |line, number| {
                serde_json::from_slice::<Row>(line).map_err(|e| {
                    Error::input(format!("`{}` line {number}: {e}", path.display()))
                        .with_hint("delete the file to sample this rollout again")
                })
            },
            |i, row| {
                if row.position != first + i || row.generations.len() != group_size {
                    return Err(Error::input(format!(
                        "`{}` line {} is of another rollout",
                        path.display(),
                        i + 1
                    ))
                    .with_hint("delete the file to sample this rollout again"));
                }
                kept.push(row);
                Ok(())
            },
        )?;
        let mut kept = kept.into_iter();
        let mut all = Rollout::default();
        let wanted = self.settings.num_prompts_per_rollout();
        let mut degenerate = Vec::new();
        for round in 0..=self.settings.dynamic_sampling_rounds {
            let started = Instant::now();
            let missing = wanted - all.groups.len();
            let start = first + all.num_drawn;
            let mut rows: Vec<Row> = kept.by_ref().take(missing).collect();
            let places = self.prompts_at(start..start + missing);
            self.sample(start, &places, step, &mut rows, &mut log)?;
            all.num_drawn += missing;
            all.rollout_s += started.elapsed().as_secs_f64();
            let started = Instant::now();
            for group in self.score(&places, step, rows)? {
                let whole = |wanted: bool| group.correct().all(|c| c == Some(wanted));
                all.num_right += usize::from(whole(true));
                all.num_wrong += usize::from(whole(false));
                all.num_tokens += group.answers.iter().map(|a| a.tokens.len()).sum::<usize>();
                match self.settings.dynamic_sampling_rounds > 0 && group.is_degenerate() {
                    true => degenerate.push(group),
                    false => all.groups.push(group),
                }
            }
            all.reward_s += started.elapsed().as_secs_f64();
            if all.groups.len() == wanted || round == self.settings.dynamic_sampling_rounds {
                break;
            }
        }
        log.finish()?;
        all.num_dropped = degenerate.len();
        if all.groups.is_empty() {
            // nothing to learn, but something to report
            degenerate.truncate(wanted);
            all.groups = degenerate;
        }
        if all.groups.is_empty() || num_prompts == 0 {
            return Err(Error::input("there is no prompt to sample from"));
        }
        self.advantages(&mut all)?;
        Ok(all)
    }

    /// Deletes the files of rollouts before `number`, and those of other runs.
    ///
    /// # Errors
    /// The folder cannot be read or changed.
    pub fn forget_before(&self, number: usize) -> Result<()> {
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|e| Error::io("listing", &self.dir, e))?,
        };
        for entry in entries {
            let path = entry
                .map_err(|e| Error::io("listing", &self.dir, e))?
                .path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let own = name
                .strip_suffix(&format!("-{}.jsonl", self.short_key()))
                .and_then(|rest| rest.strip_prefix("rollout-"))
                .and_then(|number| number.parse::<usize>().ok());
            if own.is_none_or(|own| own < number) {
                fs::remove_file(&path).map_err(|e| Error::io("deleting", &path, e))?;
            }
        }
        Ok(())
    }

    fn path(&self, number: usize) -> PathBuf {
        let name = format!("rollout-{number:06}-{}.jsonl", self.short_key());
        Path::new(&self.dir).join(name)
    }

    fn short_key(&self) -> &str {
        self.key.get(..12).unwrap_or(&self.key)
    }

    /// Which prompts are at these places of the order.
    fn prompts_at(&self, positions: Range<usize>) -> Vec<usize> {
        let n = self.prompts.len().max(1);
        let mut of_epoch = (usize::MAX, Vec::new());
        positions
            .map(|position| {
                let epoch = position / n;
                if of_epoch.0 != epoch {
                    let order = order::epoch_order(n, true, self.sampling.seed, epoch);
                    of_epoch = (epoch, order);
                }
                of_epoch.1[position % n]
            })
            .collect()
    }

    /// Adds to `rows` those that are not there yet.
    fn sample(
        &mut self,
        start: usize,
        places: &[usize],
        step: usize,
        rows: &mut Vec<Row>,
        log: &mut RowLog,
    ) -> Result<()> {
        let first = start + rows.len();
        let prompts: Vec<Vec<u32>> = places[rows.len()..]
            .iter()
            .map(|&place| self.prompts[place].tokens.clone())
            .collect();
        if prompts.is_empty() {
            return Ok(());
        }
        let weights_step = self.engine.hand_over(step)?;
        let asked = Asked {
            prompts,
            first,
            n: self.settings.group_size,
            sampling: &self.sampling,
            keep_sampled: true,
        };
        let mut on_row = |at: usize, generations: Vec<Generation>| {
            let row = Row {
                position: first + at,
                weights_step: (weights_step != step).then_some(weights_step),
                generations,
            };
            let line = serde_json::to_string(&row)
                .map_err(|e| Error::input(format!("a group cannot be written: {e}")))?;
            log.append(&line)?;
            rows.push(row);
            Ok(())
        };
        sample_in_order(self.engine, asked, &mut || (), &mut on_row, self.stop).map_err(|e| {
            let open = places[rows.len()..].iter();
            let names = open.map(|&place| format!("`{}`", self.prompts[place].prompt.id));
            let names: Vec<String> = names.collect();
            match e {
                e @ Error::NonFinite { .. } => {
                    e.at(format!("sampling for {}", listed(&names, "prompts")))
                }
                e => e,
            }
        })
    }

    fn score(&self, places: &[usize], step: usize, rows: Vec<Row>) -> Result<Vec<Group>> {
        let groups: Vec<RewardGroup> = places
            .iter()
            .zip(&rows)
            .map(|(&place, row)| {
                let GrpoPrompt {
                    prompt, opening, ..
                } = &self.prompts[place];
                RewardGroup::of(prompt, opening, &row.generations)
            })
            .collect();
        let name = |at: usize| format!("prompt `{}`", self.prompts[places[at]].prompt.id);
        let scored = self.rewards.score_groups_at(&groups, name)?;
        drop(groups);
        let all = places.iter().zip(rows).zip(scored);
        Ok(all
            .map(|((&prompt, row), scored)| Group {
                prompt,
                staleness: step.saturating_sub(row.weights_step.unwrap_or(step)),
                answers: row.generations,
                scored,
                advantages: Vec::new(),
                token_advantages: Vec::new(),
            })
            .collect())
    }

    /// A completion that no reward applies to has no part in the mean of its group, and an advantage of 0. Under process
    /// supervision the advantages of rewards of the whole are added to those of the steps.
    fn advantages(&self, rollout: &mut Rollout) -> Result<()> {
        let is_process = self.settings.supervision == Supervision::Process;
        let value = |s: &Scored| match is_process {
            true => s.outcome(),
            false => s.reward(),
        };
        let rewards: Vec<Vec<f64>> = rollout
            .groups
            .iter()
            .map(|g| g.scored.iter().filter_map(value).collect())
            .collect();
        let scale = self.settings.advantage;
        let advantages = advantage::outcome(&rewards, scale);
        for (group, advantages) in rollout.groups.iter_mut().zip(advantages) {
            let mut advantages = advantages.into_iter();
            let each = group.scored.iter().map(|s| match value(s) {
                Some(_) => advantages.next().unwrap_or(0.0),
                None => 0.0,
            });
            group.advantages = each.collect();
        }
        if !is_process {
            return Ok(());
        }
        let steps: Vec<Vec<Steps>> = rollout
            .groups
            .iter()
            .map(|group| {
                let all = group.answers.iter().zip(&group.scored);
                all.map(|(answer, scored)| self.steps(answer, scored))
                    .collect::<Result<_>>()
            })
            .collect::<Result<_>>()?;
        let of_steps = advantage::process(&steps, scale);
        for (group, mut of_steps) in rollout.groups.iter_mut().zip(of_steps) {
            for (of_whole, tokens) in group.advantages.iter_mut().zip(&mut of_steps) {
                tokens.iter_mut().for_each(|a| *a += *of_whole);
                if !tokens.is_empty() {
                    *of_whole = tokens.iter().sum::<f64>() / tokens.len() as f64;
                }
            }
            group.token_advantages = of_steps;
        }
        Ok(())
    }

    /// The rewarded steps of a completion with the tokens they end with: the last one with the completion itself, so that
    /// the token which ends the turn is learnt too.
    fn steps(&self, answer: &Generation, scored: &Scored) -> Result<Steps> {
        let num_tokens = answer.tokens.len();
        let rewards = scored.steps();
        let mut steps = Vec::new();
        if !rewards.is_empty() && num_tokens > 0 {
            let ends = text_ends(self.tokenizer, &answer.tokens, true)?;
            let ends = tokens_at(&ends, scored.step_ends.iter().copied());
            steps.extend(
                ends.into_iter()
                    .zip(rewards)
                    .map(|(end, reward)| StepReward { end, reward }),
            );
        }
        if let Some(last) = steps.last_mut() {
            last.end = num_tokens - 1;
        }
        Ok(Steps { steps, num_tokens })
    }
}
