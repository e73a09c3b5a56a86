//! The `select` stage of a pipeline: rejection sampling. Samples that are right and can be read become traces, at most a few
//! a problem; traces of other sources are mixed in. Every sample that is not kept is counted by the first reason that
//! applies.
//!
//! Which samples of a row are fit is found in [`super::sample_rows`].

use super::folder::write_json;
use super::graph::{Opening, StageContext};
use super::run::interrupted;
use super::sample_rows::{Candidate, SampleRow, judge, read_rows};
use super::stage_generate::{BUILTIN, GENERATIONS, open_rewards};
use crate::data::{self, Item, builtin, hash_file};
use crate::recipe::Traces;
use crate::recipe::graph::{Job, StagePlan};
use crate::recipe::reward::RewardTable;
use crate::recipe::select::{Order, Select};
use crate::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// What the stage leaves for `[[stage.traces]]`.
pub const TRACES: &str = "traces.jsonl";
/// The counts.
pub const COUNTS: &str = "select.json";
/// Rows that are judged together.
const CHUNK: usize = 256;
/// Samples of each reason that are named.
const NUM_EXAMPLES: usize = 5;

/// `select.json`
#[derive(Debug, Default, Serialize)]
pub struct Counts {
    pub num_prompts: u64,
    /// Prompts of which at least one sample is kept.
    pub num_prompts_kept: u64,
    pub num_samples: u64,
    pub num_kept: u64,
    /// Mean over the prompts whose samples have verdicts.
    pub pass_rate_mean: Option<f64>,
    pub num_tokens_mean: Option<f64>,
    /// By reason, the most frequent first.
    pub dropped: Vec<Dropped>,
    pub mix: Vec<Mixed>,
    /// Kept samples and mixed traces.
    pub num_traces: u64,
}

/// Samples that are not kept for one reason.
#[derive(Debug, Serialize)]
pub struct Dropped {
    pub reason: String,
    pub count: u64,
    /// `id` of the prompt and number of the sample, from 1.
    pub examples: Vec<String>,
}

/// Traces of another source.
#[derive(Debug, Serialize)]
pub struct Mixed {
    pub source: String,
    /// How many were asked for; none is all.
    pub wanted: Option<u64>,
    pub num_traces: u64,
    /// Rows that were passed over because they could not be used.
    pub num_dropped: u64,
}

/// What the traces depend on.
pub fn inputs(opening: &Opening, stage: &StagePlan) -> Result<Value> {
    let Job::Select {
        samples,
        select,
        rewards,
        mix,
    } = &stage.job
    else {
        return Ok(json!({}));
    };
    let of_samples = samples
        .iter()
        .map(|source| match opening.key_of(source)? {
            Some(key) => Ok(json!({ "key": key })),
            None => Ok(json!({ "file": hash_file(Path::new(source), opening.stop)? })),
        })
        .collect::<Result<Vec<_>>>()?;
    let mut mixed = Vec::new();
    for spec in mix {
        let mut how = spec.clone();
        if let Some(key) = opening.key_of(&spec.source)? {
            let mut one = json!({"spec": how, "key": key});
            if let Some(hash) = label_hash(opening, spec)? {
                one["labels"] = json!(hash);
            }
            mixed.push(one);
            continue;
        }
        let revision = spec.revision.as_deref();
        let config = spec.config.as_deref();
        let paths = opening.files(stage, &spec.source, config, &spec.split, revision)?;
        let hash = |path: &PathBuf| hash_file(path, opening.stop);
        let mut hashes = paths.iter().map(hash).collect::<Result<Vec<_>>>()?;
        hashes.extend(label_hash(opening, spec)?);
        if !paths.is_empty() {
            how.source = String::new();
            how.revision = None;
        }
        let mut one = json!({"spec": how, "files": hashes});
        if spec.source.starts_with(BUILTIN) {
            one["builtin"] = json!(builtin::VERSION);
        }
        mixed.push(one);
    }
    Ok(json!({
        "samples": of_samples,
        "select": select,
        "rewards": rewards.as_ref().map(RewardTable::learned),
        "mix": mixed,
    }))
}

/// The content of the file of verdicts that stands beside traces.
pub fn label_hash(opening: &Opening, spec: &Traces) -> Result<Option<String>> {
    let labels = spec.labels.as_ref();
    labels
        .map(|labels| hash_file(Path::new(&labels.file), opening.stop))
        .transpose()
}

/// Selects and mixes; leaves [`TRACES`] and [`COUNTS`].
///
/// # Errors
/// Samples that cannot be read, a judge that gives no verdict, nothing left, a full disk.
pub fn run(context: &StageContext) -> Result<Value> {
    let Job::Select {
        samples,
        select,
        rewards,
        mix,
    } = &context.stage.job
    else {
        return Err(Error::input("the stage does not select"));
    };
    let what = format!(
        "samples to traces, at most {} a problem",
        select.max_per_problem
    );
    context.reporter.stage(&context.stage.name, &what);
    let rewards = match rewards {
        Some(table) => Some(open_rewards(table, context.root, None, context.stop)?),
        None => None,
    };
    let mut selection = Selection::new(select, context.stage.seed, &context.dir)?;
    let task = context.reporter.task("select", None, "prompts");
    for source in samples {
        let path = context
            .left(source, GENERATIONS)
            .unwrap_or_else(|| PathBuf::from(source));
        let mut rows = read_rows(&path)?;
        loop {
            if context.stop.requested() {
                return Err(interrupted(context.root));
            }
            let chunk: Vec<SampleRow> = rows.by_ref().take(CHUNK).collect::<Result<_>>()?;
            if chunk.is_empty() {
                break;
            }
            let judged = judge(&chunk, select, rewards.as_ref())?;
            for (row, candidates) in chunk.iter().zip(judged) {
                selection.row(row, candidates)?;
            }
            task.advance(chunk.len() as u64);
        }
    }
    let mut counts = selection.finish()?;
    for spec in mix {
        let mixed = mix_in(context, spec, &mut selection.out, counts.num_kept)?;
        counts.num_traces += mixed.num_traces;
        counts.mix.push(mixed);
    }
    if counts.num_traces == 0 {
        return Err(Error::input(format!(
            "stage `{}` keeps no trace: {}",
            context.stage.name,
            reasons(&counts)
        ))
        .with_hint("sample more, or loosen `[stage.select]`"));
    }
    selection.out.finish()?;
    write_json(&context.dir.join(COUNTS), &counts)?;
    context.reporter.note(&summary(&counts));
    Ok(json!({
        "num_prompts": counts.num_prompts,
        "num_prompts_kept": counts.num_prompts_kept,
        "num_samples": counts.num_samples,
        "num_kept": counts.num_kept,
        "num_traces": counts.num_traces,
    }))
}

fn summary(counts: &Counts) -> String {
    let mut text = format!(
        "{} of {} samples kept, for {} of {} prompts",
        counts.num_kept, counts.num_samples, counts.num_prompts_kept, counts.num_prompts
    );
    if !counts.dropped.is_empty() {
        text += &format!("; dropped: {}", reasons(counts));
    }
    for mixed in &counts.mix {
        text += &format!("; {} traces of `{}`", mixed.num_traces, mixed.source);
    }
    text
}

fn reasons(counts: &Counts) -> String {
    let reasons = counts.dropped.iter();
    let all: Vec<String> = reasons
        .map(|d| format!("{} {}", d.count, d.reason))
        .collect();
    match all.is_empty() {
        true => "there are no samples".into(),
        false => all.join(", "),
    }
}

/// The traces while they are chosen.
struct Selection<'a> {
    select: &'a Select,
    seed: u64,
    out: Output,
    counts: Counts,
    /// Number and examples.
    reasons: BTreeMap<&'static str, (u64, Vec<String>)>,
    /// Hashes of prompts with their kept or passed over texts.
    seen: HashSet<[u8; 16]>,
    /// Kept samples by hash of the prompt.
    per_problem: HashMap<[u8; 16], usize>,
    /// Sum and number.
    pass_rates: (f64, u64),
    num_tokens: u64,
}

impl<'a> Selection<'a> {
    fn new(select: &'a Select, seed: u64, dir: &Path) -> Result<Self> {
        Ok(Self {
            select,
            seed,
            out: Output::create(dir)?,
            counts: Counts::default(),
            reasons: BTreeMap::new(),
            seen: HashSet::new(),
            per_problem: HashMap::new(),
            pass_rates: (0.0, 0),
            num_tokens: 0,
        })
    }

    /// One prompt with its samples, each with the reason why it is not fit.
    fn row(&mut self, row: &SampleRow, mut candidates: Vec<Candidate>) -> Result<()> {
        self.counts.num_prompts += 1;
        self.counts.num_samples += candidates.len() as u64;
        let judged: Vec<bool> = candidates.iter().filter_map(|c| c.correct).collect();
        if !judged.is_empty() {
            let num_correct = judged.iter().filter(|correct| **correct).count();
            let rate = num_correct as f64 / judged.len() as f64;
            self.pass_rates = (self.pass_rates.0 + rate, self.pass_rates.1 + 1);
        }
        let prompt = hash(&[&json!(row.messages).to_string()]);
        if self.select.drop_duplicates {
            for candidate in candidates.iter_mut().filter(|c| c.reason.is_none()) {
                let text = &row.samples[candidate.sample].text;
                if !self.seen.insert(hash(&[&hex::encode(prompt), text])) {
                    candidate.reason = Some("duplicate");
                }
            }
        }
        let mut fit: Vec<usize> = (0..candidates.len())
            .filter(|&i| candidates[i].reason.is_none())
            .collect();
        self.sort(row, &candidates, &mut fit);
        let kept = self.per_problem.entry(prompt).or_default();
        let free = self.select.max_per_problem.saturating_sub(*kept);
        for &i in fit.iter().skip(free) {
            candidates[i].reason = Some("over_max_per_problem");
        }
        fit.truncate(free);
        *kept += fit.len();
        self.counts.num_prompts_kept += u64::from(!fit.is_empty());
        for &i in &fit {
            let candidate = &candidates[i];
            self.counts.num_kept += 1;
            self.num_tokens += candidate.num_tokens as u64;
            self.out.write(&row.trace(candidate))?;
        }
        for candidate in &candidates {
            if let Some(reason) = candidate.reason {
                let (count, examples) = self.reasons.entry(reason).or_default();
                *count += 1;
                if examples.len() < NUM_EXAMPLES {
                    examples.push(format!("{} sample {}", row.id, candidate.sample + 1));
                }
            }
        }
        Ok(())
    }

    /// Puts those that are fit into the order in which they are taken; equal ones stay as they were sampled.
    fn sort(&self, row: &SampleRow, candidates: &[Candidate], fit: &mut [usize]) {
        match self.select.order {
            Order::First => {}
            Order::Shortest => fit.sort_by_key(|&i| candidates[i].num_tokens),
            Order::Reward => fit.sort_by(|&a, &b| {
                let reward = |i: usize| candidates[i].reward.unwrap_or(f64::NEG_INFINITY);
                reward(b).total_cmp(&reward(a))
            }),
            Order::Random => {
                fit.sort_by_key(|&i| hash(&[&self.seed.to_string(), &row.id, &i.to_string()]))
            }
        }
    }

    fn finish(&mut self) -> Result<Counts> {
        let mut counts = std::mem::take(&mut self.counts);
        let (sum, num) = self.pass_rates;
        counts.pass_rate_mean = (num > 0).then(|| sum / num as f64);
        let kept = counts.num_kept;
        counts.num_tokens_mean = (kept > 0).then(|| self.num_tokens as f64 / kept as f64);
        counts.num_traces = kept;
        counts.dropped = std::mem::take(&mut self.reasons)
            .into_iter()
            .map(|(reason, (count, examples))| Dropped {
                reason: reason.into(),
                count,
                examples,
            })
            .collect();
        counts.dropped.sort_by_key(|d| std::cmp::Reverse(d.count));
        Ok(counts)
    }
}

/// Appends traces of another source: all, `limit` of them, or `weight` times as many as were selected.
fn mix_in(
    context: &StageContext,
    spec: &Traces,
    out: &mut Output,
    num_selected: u64,
) -> Result<Mixed> {
    let by_weight = spec
        .weight
        .map(|w| (w * num_selected as f64).round() as u64);
    let by_limit = spec.limit.map(|n| n as u64);
    let wanted = match (by_weight, by_limit) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let mut spec = spec.clone();
    let name = spec.source.clone();
    let paths = match context.left(&name, TRACES) {
        Some(path) => {
            spec.source = path.display().to_string();
            vec![path]
        }
        None => {
            let revision = spec.revision.as_deref();
            context.files(&name, spec.config.as_deref(), &spec.split, revision)?
        }
    };
    let mut mixed = Mixed {
        source: name.clone(),
        wanted,
        num_traces: 0,
        num_dropped: 0,
    };
    let mut per_problem: HashMap<[u8; 16], usize> = HashMap::new();
    let most = spec.max_per_problem.unwrap_or(usize::MAX);
    for item in data::open(&spec, &paths, context.stage.seed)? {
        if wanted.is_some_and(|wanted| mixed.num_traces >= wanted) {
            break;
        }
        if context.stop.requested() {
            return Err(interrupted(context.root));
        }
        match item? {
            Item::Dropped { .. } => mixed.num_dropped += 1,
            Item::Trace(trace) => {
                let kept = per_problem.entry(hash(&[&trace.problem])).or_default();
                if *kept >= most {
                    mixed.num_dropped += 1;
                    continue;
                }
                *kept += 1;
                let mut row = Map::new();
                row.insert("id".into(), json!(trace.name));
                row.insert("messages".into(), json!(trace.messages()));
                row.insert(
                    "source".into(),
                    json!(trace.source.as_ref().unwrap_or(&name)),
                );
                for (key, value) in [("domain", &trace.domain), ("gold", &trace.gold)] {
                    if let Some(value) = value {
                        row.insert(key.into(), json!(value));
                    }
                }
                out.write(&Value::Object(row))?;
                mixed.num_traces += 1;
            }
        }
    }
    if wanted.is_some_and(|wanted| mixed.num_traces < wanted) {
        context.reporter.warn(&format!(
            "`{name}` has only {} traces to mix in, not {}",
            mixed.num_traces,
            wanted.unwrap_or_default()
        ));
    }
    Ok(mixed)
}

/// The file of traces, which has its name when it is whole.
struct Output {
    path: PathBuf,
    beside: PathBuf,
    file: BufWriter<File>,
}

impl Output {
    fn create(dir: &Path) -> Result<Self> {
        let (path, beside) = (dir.join(TRACES), dir.join("traces.partial"));
        let file = File::create(&beside).map_err(|e| Error::io("creating", &beside, e))?;
        Ok(Self {
            path,
            beside,
            file: BufWriter::with_capacity(1 << 20, file),
        })
    }

    fn write(&mut self, row: &Value) -> Result<()> {
        writeln!(self.file, "{row}").map_err(|e| Error::io("writing", &self.beside, e))
    }

    fn finish(mut self) -> Result<()> {
        let io = |e| Error::io("writing", &self.beside, e);
        self.file.flush().map_err(io)?;
        self.file.get_ref().sync_all().map_err(io)?;
        std::fs::rename(&self.beside, &self.path).map_err(|e| Error::io("writing", &self.path, e))
    }
}

fn hash(parts: &[&str]) -> [u8; 16] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let digest = hasher.finalize();
    std::array::from_fn(|i| digest[i])
}

#[cfg(test)]
mod tests {
    use super::super::sample_rows;
    use super::*;

    /// The texts that are kept of these rows, and the counts.
    fn kept(select: &Select, rows: &[Value]) -> (Vec<String>, Counts) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.jsonl");
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        std::fs::write(&path, lines).unwrap();
        let rows: Vec<SampleRow> = read_rows(&path).unwrap().map(|r| r.unwrap()).collect();
        let judged = sample_rows::judge(&rows, select, None).unwrap();
        let mut selection = Selection::new(select, 1, dir.path()).unwrap();
        for (row, candidates) in rows.iter().zip(judged) {
            selection.row(row, candidates).unwrap();
        }
        let counts = selection.finish().unwrap();
        selection.out.finish().unwrap();
        let text = std::fs::read_to_string(dir.path().join(TRACES)).unwrap();
        let answer = |line: &str| {
            let row: Value = serde_json::from_str(line).unwrap();
            row["messages"][1]["content"].as_str().unwrap().to_string()
        };
        (text.lines().map(answer).collect(), counts)
    }

    fn row(question: &str, samples: &[(&str, usize, f64)]) -> Value {
        let generations: Vec<Value> = samples
            .iter()
            .map(|(text, tokens, reward)| {
                json!({"text": text, "tokens": tokens, "reward": reward, "correct": true})
            })
            .collect();
        json!({"problem": question, "generations": generations})
    }

    #[test]
    fn orders_limits_and_duplicates() {
        let rows = [
            row(
                "a?",
                &[("a", 3, 0.1), ("b", 1, 0.2), ("a", 3, 0.1), ("c", 2, 0.9)],
            ),
            row("b?", &[("a", 5, 0.5)]),
            // the first problem again
            row("a?", &[("d", 1, 1.0), ("b", 1, 0.2)]),
        ];
        for (order, max, want) in [
            (Order::First, 2, vec!["a", "b", "a"]),
            (Order::Shortest, 2, vec!["b", "c", "a"]),
            (Order::Reward, 1, vec!["c", "a"]),
            (Order::Shortest, 4, vec!["b", "c", "a", "a", "d"]),
        ] {
            let select = Select {
                order,
                max_per_problem: max,
                ..Select::default()
            };
            let (texts, counts) = kept(&select, &rows);
            assert_eq!(texts, want, "{order:?} {max}");
            assert_eq!((counts.num_samples, counts.num_prompts), (7, 3));
            let dropped: u64 = counts.dropped.iter().map(|d| d.count).sum();
            assert_eq!(dropped + counts.num_kept, 7);
            let of = |reason: &str| counts.dropped.iter().find(|d| d.reason == reason);
            assert_eq!(of("duplicate").unwrap().count, 2);
        }
        // by the seed: the same each time, and not always the first
        let select = Select {
            order: Order::Random,
            ..Select::default()
        };
        let many: Vec<Value> = (0..20)
            .map(|i| row(&format!("{i}?"), &[("a", 1, 0.0), ("b", 1, 0.0)]))
            .collect();
        let (first, _) = kept(&select, &many);
        assert_eq!(first, kept(&select, &many).0);
        let num_a = first.iter().filter(|t| *t == "a").count();
        assert!((3..=17).contains(&num_a), "{num_a} of 20");
    }

    #[test]
    fn a_pass_rate_is_counted_over_prompts() {
        let mut mixed = row("a?", &[("a", 1, 0.0), ("b", 1, 0.0)]);
        mixed["generations"][1]["correct"] = json!(false);
        let (_, counts) = kept(&Select::default(), &[mixed, row("b?", &[("c", 3, 0.0)])]);
        assert_eq!(counts.pass_rate_mean, Some(0.75));
        assert_eq!((counts.num_kept, counts.num_tokens_mean), (2, Some(2.0)));
        assert_eq!(counts.dropped[0].examples, ["1 sample 2"]);
    }
}
