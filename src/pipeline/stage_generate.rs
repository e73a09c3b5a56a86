//! The `generate` stage of a pipeline: several samples a prompt, scored where the stage names rewards, as JSON lines in the
//! order of the prompts. Rows are those of the prompts with
//!
//! | field | holds |
//! |---|---|
//! | `id`, `question`, `messages` | which prompt, what is asked, the conversation before the answer |
//! | `gold`, `options`, `domain`, `opening` | where there are any; `opening` is what the template wrote before the answer |
//! | `generations` | `[{text, tokens, logprobs, finish_reason, reward?, correct?, parts?}]` |

use super::graph::{Opening, StageContext};
use super::run::interrupted;
use super::stage_select::TRACES;
use super::student::Student;
use crate::data::{self, Prompt, builtin, hash_file};
use crate::generate::row_log::{Asked, Generation, RowLog, check_length, sample_in_order};
use crate::generate::{FinishReason, LocalEngine, Sampling};
use crate::progress::Stop;
use crate::recipe::graph::{Job, StagePlan};
use crate::recipe::reward::{RewardKind, RewardTable};
use crate::recipe::stage::{Prompts, SamplingTable};
use crate::reward::{Group, Rewards, Scored, Tools};
use crate::verify::sandbox::Sandbox;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// What the stage leaves.
pub const GENERATIONS: &str = "generations.jsonl";

/// Sources that need no file.
pub const BUILTIN: &str = "builtin:";
/// Columns of a prompt's row that are about other answers.
const STALE: [&str; 8] = [
    "generations",
    "opening",
    "reward",
    "rewards",
    "correct",
    "parts",
    "num_tokens",
    "finish_reason",
];
/// Prompts that are tokens at the same time. Between two such chunks the batch runs empty once.
const CHUNK: usize = 4096;
/// Prompts whose answers are scored together: a judge is asked about all of them side by side.
const NUM_SCORED_TOGETHER: usize = 16;

/// What the samples depend on besides the model.
pub fn inputs(opening: &Opening, stage: &StagePlan, student: &Student) -> Result<Value> {
    let Job::Generate {
        prompts,
        sampling,
        rewards,
    } = &stage.job
    else {
        return Ok(json!({}));
    };
    Ok(json!({
        "prompts": prompt_inputs(opening, stage, prompts)?,
        // sequences side by side change nothing
        "sampling": SamplingTable { batch_size: 0, ..sampling.clone() },
        "rewards": rewards.as_ref().map(RewardTable::learned),
        "template": student.chat().template()?.source(),
        "tokenizer": student.tokenizer_hash(),
    }))
}

/// What stands for sources of prompts in a stage's key, under `prompts`: how they are read, and the content of their files.
///
/// # Errors
/// A source that is not there.
pub fn prompt_inputs(opening: &Opening, stage: &StagePlan, prompts: &[Prompts]) -> Result<Value> {
    let mut all = Vec::new();
    for spec in prompts {
        if let Some(key) = opening.key_of(&spec.source)? {
            all.push(json!({"spec": spec, "key": key}));
            continue;
        }
        let revision = spec.revision.as_deref();
        let config = spec.config.as_deref();
        let paths = opening.files(stage, &spec.source, config, &spec.split, revision)?;
        let hashes: Vec<String> = paths
            .iter()
            .map(|path| hash_file(path, opening.stop))
            .collect::<Result<_>>()?;
        // content counts, not where it came from
        let mut how = spec.clone();
        if !paths.is_empty() {
            how.source = String::new();
            how.revision = None;
        }
        let mut one = json!({"spec": how, "files": hashes});
        if spec.source.starts_with(BUILTIN) {
            one["builtin"] = json!(builtin::VERSION);
        }
        all.push(one);
    }
    Ok(json!(all))
}

/// All prompts of a stage, in order; there is at least one. Of traces that an earlier stage selected, each problem is asked
/// once.
///
/// # Errors
/// A source that cannot be read; a row that is no prompt.
pub fn read_prompts(context: &StageContext, sources: &[Prompts]) -> Result<Vec<Prompt>> {
    let mut all = Vec::new();
    for spec in sources {
        let Some(path) = context.left(&spec.source, TRACES) else {
            let revision = spec.revision.as_deref();
            let config = spec.config.as_deref();
            let paths = context.files(&spec.source, config, &spec.split, revision)?;
            for prompt in data::prompts(spec, &paths, context.stage.seed)? {
                all.push(prompt?);
            }
            continue;
        };
        let mut seen = HashSet::new();
        let unlimited = Prompts {
            limit: None,
            ..spec.clone()
        };
        let mut left = spec.limit.unwrap_or(usize::MAX);
        for prompt in data::prompts(&unlimited, &[path], context.stage.seed)? {
            let prompt = prompt?;
            if left > 0 && seen.insert(json!(prompt.messages).to_string()) {
                all.push(prompt);
                left -= 1;
            }
        }
    }
    match all.is_empty() {
        true => Err(Error::input("the sources of prompts hold no prompt")),
        false => Ok(all),
    }
}

/// Samples every prompt; leaves [`GENERATIONS`].
///
/// # Errors
/// A prompt that the template refuses or that is too long, a reward that cannot be had, a full disk;
/// [`Error::Interrupted`] after a stop, with all whole rows kept.
pub fn run(context: &StageContext) -> Result<Value> {
    let Job::Generate {
        prompts: sources,
        sampling: table,
        rewards,
    } = &context.stage.job
    else {
        return Err(Error::input("the stage does not generate"));
    };
    let rewards = match rewards {
        Some(table) => Some(open_rewards(table, context.root, None, context.stop)?),
        None => None,
    };
    let student = context.student()?;
    let prompts = read_prompts(context, sources)?;
    let n = table.num_samples;
    context.reporter.stage(
        &context.stage.name,
        &format!("{} prompts, {n} samples each", prompts.len()),
    );
    let mut log = RowLog::open(&context.dir.join(GENERATIONS))?;
    let mut summary = Summary::default();
    let path = log.path().to_path_buf();
    let num_kept = log.keep(
        |line, number| {
            serde_json::from_slice::<Row>(line).map_err(|e| {
                Error::input(format!("`{}` line {number}: {e}", path.display()))
                    .with_hint("delete the file to sample all prompts again")
            })
        },
        |_, row| {
            row.generations.iter().for_each(|one| summary.add(one));
            Ok(())
        },
    )?;
    if num_kept > 0 {
        context.reporter.note(&format!(
            "going on after {num_kept} of {} prompts",
            prompts.len()
        ));
    }
    let rest = prompts.get(num_kept..).unwrap_or_default();
    if !rest.is_empty() {
        let model = context.model()?;
        let mut engine = LocalEngine::new(&model, &student.chat().tokenizer, table.batch_size);
        let sampling = sampling(table, student.chat().stop_ids(), context.stage.seed)?;
        let task = context
            .reporter
            .task("samples", Some((prompts.len() * n) as u64), "samples");
        task.set_position((num_kept * n) as u64);
        let num_positions = model.config().max_position_embeddings;
        for (i, chunk) in rest.chunks(CHUNK).enumerate() {
            let mut rendered = Vec::with_capacity(chunk.len());
            let mut openings = Vec::with_capacity(chunk.len());
            for prompt in chunk {
                let one = prompt.render(student.chat())?;
                check_length(one.tokens.len(), num_positions)
                    .map_err(|e| Error::input(format!("prompt `{}`: {e}", prompt.id)))?;
                rendered.push(one.tokens);
                openings.push(one.opening);
            }
            let mut writer = Writer {
                prompts: chunk,
                openings: &openings,
                rewards: rewards.as_ref(),
                log: &mut log,
                waiting: Vec::new(),
                summary: &mut summary,
            };
            let sampled = sample_in_order(
                &mut engine,
                Asked {
                    prompts: rendered,
                    first: num_kept + i * CHUNK,
                    n,
                    sampling: &sampling,
                    keep_sampled: false,
                },
                &mut || task.advance(1),
                &mut |at, answers| writer.row(at, answers),
                context.stop,
            );
            match sampled {
                Ok(()) => writer.flush()?,
                Err(Error::Interrupted { .. }) => {
                    // what was sampled is kept; a judge that was stopped too is no other error
                    writer.flush().or_else(|flushed| match flushed {
                        Error::Interrupted { .. } => Ok(()),
                        other => Err(other),
                    })?;
                    return Err(interrupted(context.root));
                }
                Err(e) => return Err(e),
            }
        }
    }
    log.finish()?;
    let result = summary.result(prompts.len());
    context.reporter.note(&summary.line());
    Ok(result)
}

/// The engine's settings.
pub fn sampling(table: &SamplingTable, stop_ids: &[u32], seed: u64) -> Result<Sampling> {
    let sampling = Sampling {
        temperature: table.temperature,
        top_p: table.top_p,
        top_k: table.top_k,
        min_p: table.min_p,
        repetition_penalty: table.repetition_penalty,
        max_new_tokens: table.max_new_tokens,
        stop: table.stop.clone(),
        stop_ids: stop_ids.to_vec(),
        seed,
    };
    sampling.validate()?;
    Ok(sampling)
}

/// The rewards of a stage, with what they need; `step_separator` where steps can be rewarded.
///
/// # Errors
/// As [`Rewards::build`]; no sandbox where programs are run.
pub fn open_rewards(
    table: &RewardTable,
    root: &Path,
    step_separator: Option<&str>,
    stop: &Stop,
) -> Result<Rewards> {
    let table = &with_folders(table, root);
    let sandbox = match table.needs_sandbox() {
        true => Some(Sandbox::open()?),
        false => None,
    };
    let tools = Tools {
        sandbox,
        stop: stop.clone(),
        step_separator: step_separator.map(str::to_string),
    };
    Rewards::build(table, tools)
}

/// The table with the folders that stages of the run in `root` leave in place of their names.
fn with_folders(table: &RewardTable, root: &Path) -> RewardTable {
    let mut rewards = table.rewards();
    for reward in &mut rewards {
        if let RewardKind::RewardModel(settings) = &mut reward.kind
            && let Some(name) = settings.model.strip_prefix('@')
        {
            settings.model = root.join(name).join("model").display().to_string();
        }
    }
    RewardTable::List(rewards)
}

/// The value of each reward, null where it does not apply.
pub fn parts(scored: &Scored) -> Map<String, Value> {
    let parts = scored.parts.iter();
    parts
        .map(|part| (part.name.to_string(), Value::from(part.value)))
        .collect()
}

/// Scores rows when there are enough of them, and writes them.
struct Writer<'a> {
    prompts: &'a [Prompt],
    openings: &'a [String],
    rewards: Option<&'a Rewards>,
    log: &'a mut RowLog,
    waiting: Vec<(usize, Vec<Generation>)>,
    summary: &'a mut Summary,
}

impl Writer<'_> {
    fn row(&mut self, at: usize, answers: Vec<Generation>) -> Result<()> {
        self.waiting.push((at, answers));
        let most = match self.rewards {
            Some(_) => NUM_SCORED_TOGETHER,
            None => 1,
        };
        match self.waiting.len() < most {
            true => Ok(()),
            false => self.flush(),
        }
    }

    fn flush(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        let scored = match self.rewards {
            None => vec![Vec::new(); waiting.len()],
            Some(rewards) => {
                let groups: Vec<Group<'_>> = waiting
                    .iter()
                    .map(|(at, answers)| {
                        Group::of(&self.prompts[*at], &self.openings[*at], answers)
                    })
                    .collect();
                rewards.score_groups(&groups)?
            }
        };
        for ((at, answers), scored) in waiting.into_iter().zip(scored) {
            let (prompt, opening) = (&self.prompts[at], &self.openings[at]);
            let row = Row::new(prompt, opening, &answers, &scored);
            let line = serde_json::to_string(&row)
                .map_err(|e| Error::input(format!("prompt `{}`: its samples: {e}", prompt.id)))?;
            row.generations.iter().for_each(|one| self.summary.add(one));
            self.log.append(&line)?;
        }
        Ok(())
    }
}

/// A row of [`GENERATIONS`].
#[derive(Deserialize, Serialize)]
struct Row {
    generations: Vec<Scores>,
    /// The prompt.
    #[serde(flatten)]
    fields: Map<String, Value>,
}

/// A sample with what it earned.
#[derive(Deserialize, Serialize)]
struct Scores {
    #[serde(flatten)]
    answer: Generation,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reward: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correct: Option<bool>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    parts: Map<String, Value>,
}

impl Row {
    fn new(prompt: &Prompt, opening: &str, answers: &[Generation], scored: &[Scored]) -> Self {
        let mut fields = prompt.row.clone();
        STALE.iter().for_each(|name| _ = fields.remove(*name));
        fields.insert("id".into(), json!(prompt.id));
        fields.insert("question".into(), json!(prompt.question));
        fields.insert("messages".into(), json!(prompt.messages));
        match &prompt.golds[..] {
            [] => {}
            [only] => _ = fields.insert("gold".into(), json!(only)),
            all => _ = fields.insert("gold".into(), json!(all)),
        }
        if !prompt.options.is_empty() {
            fields.insert("options".into(), json!(prompt.options));
        }
        if let Some(domain) = &prompt.domain {
            fields.insert("domain".into(), json!(domain));
        }
        if !opening.is_empty() {
            fields.insert("opening".into(), json!(opening));
        }
        let with_scores = |(i, answer): (usize, &Generation)| {
            let scored = scored.get(i);
            Scores {
                answer: answer.clone(),
                reward: scored.and_then(Scored::reward),
                correct: scored.and_then(Scored::is_correct),
                parts: scored.map(parts).unwrap_or_default(),
            }
        };
        Self {
            generations: answers.iter().enumerate().map(with_scores).collect(),
            fields,
        }
    }
}

/// Counts over the rows.
#[derive(Default)]
struct Summary {
    num_samples: u64,
    num_tokens: u64,
    num_truncated: u64,
    num_judged: u64,
    num_correct: u64,
    num_scored: u64,
    /// Samples that no reward applies to.
    num_unrewarded: u64,
    reward_sum: f64,
    /// Value and number by reward.
    parts: BTreeMap<String, (f64, u64)>,
    /// Samples by the rewards that do not apply to them.
    missing: BTreeMap<String, u64>,
}

impl Summary {
    fn add(&mut self, one: &Scores) {
        self.num_samples += 1;
        self.num_tokens += one.answer.tokens.len() as u64;
        self.num_truncated += u64::from(one.answer.finish_reason == FinishReason::Length);
        if let Some(correct) = one.correct {
            self.num_judged += 1;
            self.num_correct += u64::from(correct);
        }
        if let Some(reward) = one.reward {
            self.num_scored += 1;
            self.reward_sum += reward;
        } else if !one.parts.is_empty() {
            self.num_unrewarded += 1;
        }
        for (name, value) in &one.parts {
            match value.as_f64() {
                Some(value) => {
                    let (sum, num) = self.parts.entry(name.clone()).or_default();
                    *sum += value;
                    *num += 1;
                }
                None => *self.missing.entry(name.clone()).or_default() += 1,
            }
        }
    }

    fn result(&self, num_prompts: usize) -> Value {
        let share = |n: u64, of: u64| (of > 0).then(|| n as f64 / of as f64);
        let means: Map<String, Value> = self
            .parts
            .iter()
            .map(|(name, (sum, num))| (name.clone(), json!(sum / *num as f64)))
            .collect();
        json!({
            "num_prompts": num_prompts,
            "num_samples": self.num_samples,
            "num_tokens_mean": share(self.num_tokens, self.num_samples),
            "truncated_share": share(self.num_truncated, self.num_samples),
            "correct_share": share(self.num_correct, self.num_judged),
            "reward_mean": (self.num_scored > 0).then(|| self.reward_sum / self.num_scored as f64),
            "reward_parts_mean": means,
            "num_unrewarded": self.num_unrewarded,
            "rewards_missing": self.missing,
        })
    }

    fn line(&self) -> String {
        let mut text = format!("{} samples, {} tokens", self.num_samples, self.num_tokens);
        if self.num_judged > 0 {
            let share = 100.0 * self.num_correct as f64 / self.num_judged as f64;
            text += &format!(", {share:.1}% correct");
        }
        if self.num_truncated > 0 {
            text += &format!(", {} cut off", self.num_truncated);
        }
        if self.num_unrewarded > 0 {
            text += &format!(", {} without a reward", self.num_unrewarded);
        }
        for (name, num) in &self.missing {
            text += &format!("; `{name}` does not apply to {num}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::stage::FromSource;

    #[test]
    fn a_row_keeps_nothing_of_other_answers() {
        let row = json!({"problem": "6*7?", "gold": "42", "tests": ["assert 1"], "reward": [0.5], "rewards": [{}], "opening": "<think>\n", "generations": [{"text": "old"}]});
        let Value::Object(values) = row else { panic!() };
        let spec = Prompts::from_source(String::new());
        let prompt = data::prompts::of_row(values, &spec, 3).unwrap();
        let answer = Generation {
            text: "41".into(),
            tokens: vec![1],
            logprobs: Vec::new(),
            sampled_logprobs: Vec::new(),
            finish_reason: FinishReason::Stop,
        };
        // no reward applies: that is no reward of 0
        let scored = Scored {
            total: 0.0,
            parts: Vec::new(),
            verdict: None,
            step_ends: Vec::new(),
        };
        let row = json!(Row::new(&prompt, "", &[answer], &[scored]));
        let keys: Vec<&str> = row
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let mut expected = [
            "generations",
            "gold",
            "id",
            "messages",
            "problem",
            "question",
            "tests",
        ];
        expected.sort_by_key(|key| keys.iter().position(|k| k == key));
        assert_eq!(keys, expected);
        let one = row["generations"][0].as_object().unwrap();
        assert_eq!(one["text"], "41");
        assert!(!one.contains_key("reward"));
    }

    #[test]
    fn what_no_reward_applies_to_is_counted() {
        let mut summary = Summary::default();
        for (reward, parts) in [
            (Some(0.5), json!({"accuracy": 0.5, "judge": null})),
            (None, json!({"accuracy": null, "judge": null})),
        ] {
            let mut one = json!({"text": "", "tokens": [1], "finish_reason": FinishReason::Stop, "parts": parts});
            one["reward"] = json!(reward);
            summary.add(&serde_json::from_value(one).unwrap());
        }
        let result = summary.result(1);
        assert_eq!(result["num_unrewarded"], 1);
        assert_eq!(result["reward_mean"], 0.5);
        assert_eq!(
            result["rewards_missing"],
            json!({"accuracy": 1, "judge": 2})
        );
        assert_eq!(
            summary.line(),
            "2 samples, 2 tokens, 1 without a reward; `accuracy` does not apply to 1; `judge` does not apply to 2"
        );
    }
}
