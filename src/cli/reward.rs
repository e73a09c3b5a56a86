//! `distill reward`: the weighted sum of rewards for every row of a file, with the part of each.

use super::cases;
use super::rows::Row;
use super::stream::{self, Added, json_text};
use super::{Session, stdout};
use crate::progress::Reporter;
use crate::recipe::reward::{LengthUnit, Preset, RewardKind, RewardSettings, RewardTable};
use crate::reward::{Group, Rewards, Sample, Scored, Tools, Usage, length_unit};
use crate::verify::code::Tests;
use crate::verify::sandbox::Sandbox;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Score answers: a weighted sum of rewards for every row of a JSON lines file
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  distill reward --preset r1 --input answers.jsonl --output scored.jsonl
  distill reward --reward accuracy --reward cosine=0.5,max_length=4096 --input answers.jsonl --output scored.jsonl

Input rows are {\"prompt\"?, \"gold\", \"prediction\"} or {\"prompt\"?, \"gold\", \"generations\": [{\"text\", \"tokens\"?,
\"finish_reason\"?}], \"opening\"?} as `distill generate` writes them; the generations of a row are a group. Output rows are the input
rows with \"reward\", the weighted sum, and \"rewards\", the value of each before its weight; both are lists, one entry a
generation, where there are generations. A value is null where a reward does not apply; that is counted.
Presets:
  r1       accuracy + format + language_consistency
  classic  +1 right, -1 wrong, 0 no answer; +0.5 format
  dapo     +1 right, -1 wrong; soft_overlong
  open-r1  accuracy + format + tag_count
Rewards:
  accuracy format tag_count reasoning_steps length cosine repetition_penalty soft_overlong code binary_code code_format
  language_consistency judge reward_model")]
pub struct Args {
    /// What is scored, JSON lines; `-` is stdin
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where the rows with their rewards go; `-` is stdout
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Rewards that go together: r1, classic, dapo or open-r1
    #[arg(long)]
    preset: Option<String>,
    /// A reward, beside those of the preset or in place of the one of its name; may be repeated
    #[arg(long = "reward", value_name = "NAME[=WEIGHT][,KEY=VALUE...]")]
    rewards: Vec<String>,
    /// Rows that are scored at the same time [default: one a core]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads: Option<u32>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    stream::check_standard_output(&args.output, args.json)?;
    let table = table(args)?;
    let sandbox = match table.needs_sandbox() {
        true => Some(Sandbox::open()?),
        false => None,
    };
    let tools = Tools {
        sandbox,
        stop: session.stop.clone(),
        step_separator: None,
    };
    let rewards = Rewards::build(&table, tools)?;
    let scorer = Scorer {
        needs_gold: table
            .rewards()
            .iter()
            .any(|reward| needs_gold(&reward.kind)),
        units: table
            .rewards()
            .iter()
            .filter_map(|reward| unit(&reward.kind))
            .collect(),
        rewards,
    };
    session.stop_on_signals()?;
    let mut summary = Summary::new(&scorer.rewards);
    stream::in_pool(args.threads, || {
        stream::map_rows(
            &args.input,
            &args.output,
            "reward",
            session,
            |rows, place| scorer.score(rows, place, &mut summary),
        )
    })?;
    let summary = summary.finished(&scorer.rewards);
    if args.json {
        return stdout::json(&summary);
    }
    for line in summary.lines() {
        session.terminal.note(&line);
    }
    Ok(())
}

/// The rewards of the preset, and those listed.
fn table(args: &Args) -> Result<RewardTable> {
    let mut list = match &args.preset {
        None => Vec::new(),
        Some(name) => {
            let preset = Preset::NAMES.into_iter().find(|(other, _)| other == name);
            let (_, preset) = preset.ok_or_else(|| {
                Error::input(format!("unknown preset `{name}`"))
                    .with_hint("the presets are r1, classic, dapo and open-r1")
            })?;
            preset.rewards()
        }
    };
    for text in &args.rewards {
        let reward = parse(text).map_err(|e| e.at(format!("`--reward {text}`")))?;
        match list
            .iter_mut()
            .find(|other| other.kind.label() == reward.kind.label())
        {
            Some(other) => *other = reward,
            None => list.push(reward),
        }
    }
    if list.is_empty() {
        return Err(Error::input("no rewards are given")
            .with_hint("give `--preset r1`, or `--reward NAME`"));
    }
    Ok(RewardTable::List(list))
}

/// `cosine=0.5,max_length=4096`.
fn parse(text: &str) -> Result<RewardSettings> {
    let mut parts = text.split(',');
    let first = parts.next().unwrap_or_default();
    let mut table = Map::new();
    let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    match first.split_once('=') {
        None => {
            table.insert("name".into(), first.into());
        }
        Some((name, weight)) => {
            table.insert("name".into(), name.into());
            table.insert("weight".into(), value(weight));
        }
    }
    for part in parts {
        let Some((key, text)) = part.split_once('=') else {
            return Err(Error::input(format!("`{part}` is no `KEY=VALUE`")));
        };
        table.insert(key.into(), value(text));
    }
    RewardSettings::deserialize(Value::Object(table)).map_err(|e| Error::input(e.to_string()))
}

fn needs_gold(kind: &RewardKind) -> bool {
    matches!(
        kind,
        RewardKind::Accuracy(_)
            | RewardKind::Length(_)
            | RewardKind::Cosine(_)
            | RewardKind::Judge(_)
    )
}

fn unit(kind: &RewardKind) -> Option<LengthUnit> {
    match kind {
        RewardKind::Length(s) => Some(s.unit),
        RewardKind::Cosine(s) => Some(s.unit),
        RewardKind::SoftOverlong(s) => Some(s.unit),
        _ => None,
    }
}

/// What is done with a chunk of rows.
struct Scorer {
    rewards: Rewards,
    needs_gold: bool,
    /// Of the rewards that count a length.
    units: Vec<LengthUnit>,
}

/// A row as its group's texts.
struct Input {
    prompt: Option<String>,
    opening: String,
    golds: Vec<String>,
    options: Vec<String>,
    samples: Vec<Generation>,
    /// A single `prediction`, not a list.
    is_single: bool,
}

/// One answer, as `generate` writes it; of a row with a `prediction`, the same fields of the row.
#[derive(Deserialize)]
struct Generation {
    text: String,
    #[serde(default)]
    tokens: Option<Tokens>,
    #[serde(default)]
    finish_reason: Option<String>,
}

/// Token ids, or their number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Tokens {
    Number(usize),
    Ids(Vec<u32>),
}

impl Generation {
    fn sample(&self) -> Sample<'_> {
        Sample {
            text: &self.text,
            num_tokens: self.tokens.as_ref().map(|tokens| match tokens {
                Tokens::Number(n) => *n,
                Tokens::Ids(ids) => ids.len(),
            }),
            truncated: self.finish_reason.as_deref() == Some("length"),
        }
    }
}

impl Scorer {
    fn input(&self, row: &Row, place: &Path) -> Result<Input> {
        let is_single = row.has("prediction");
        let samples = if is_single {
            let text = cases::prediction(row, place)?;
            vec![Generation {
                text,
                tokens: tokens(row, place)?,
                finish_reason: row.get("finish_reason", place)?,
            }]
        } else {
            row.get("generations", place)?
                .ok_or_else(|| row.no_field_of("`prediction` or `generations`", place))?
        };
        let golds = match row.has("gold") || (self.needs_gold && !Tests::are_in(&row.fields)) {
            true => cases::golds(row, place)?,
            false => Vec::new(),
        };
        Ok(Input {
            prompt: cases::prompt(row, place)?,
            opening: cases::opening(row, place)?,
            golds,
            options: cases::options(row, place)?,
            samples,
            is_single,
        })
    }

    fn score(&self, rows: &[Row], place: &Path, summary: &mut Summary) -> Result<Vec<Added>> {
        let inputs = rows
            .iter()
            .map(|row| self.input(row, place))
            .collect::<Result<Vec<_>>>()?;
        let groups: Vec<Group<'_>> = inputs
            .iter()
            .zip(rows)
            .map(|(input, row)| Group {
                prompt: input.prompt.as_deref(),
                opening: &input.opening,
                golds: &input.golds,
                options: &input.options,
                row: Some(&row.fields),
                domain: row.fields.get("domain").and_then(Value::as_str),
                samples: input.samples.iter().map(Generation::sample).collect(),
            })
            .collect();
        let at = |number: usize| cases::place_of(&rows[number], place);
        let scored = self.rewards.score_groups_at(&groups, at)?;
        let mut out = Vec::with_capacity(rows.len());
        for ((scored, group), input) in scored.iter().zip(&groups).zip(&inputs) {
            for unit in &self.units {
                *summary
                    .lengths_in
                    .entry(length_unit(group, *unit))
                    .or_default() += 1;
            }
            for sample in scored {
                summary.add(sample);
            }
            out.push(match (scored.as_slice(), input.is_single) {
                ([only], true) => vec![
                    ("reward", json_text(&only.reward())?),
                    ("rewards", json_text(&breakdown(only))?),
                ],
                (all, _) => {
                    let totals: Vec<Option<f64>> = all.iter().map(Scored::reward).collect();
                    let parts: Vec<_> = all.iter().map(breakdown).collect();
                    vec![
                        ("reward", json_text(&totals)?),
                        ("rewards", json_text(&parts)?),
                    ]
                }
            });
        }
        Ok(out)
    }
}

/// The field `tokens` of a row: ids or their number.
fn tokens(row: &Row, place: &Path) -> Result<Option<Tokens>> {
    match row.fields.get("tokens") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => Tokens::deserialize(value)
            .map(Some)
            .map_err(|_| row.error(place, "`tokens`: expected token ids or their number")),
    }
}

/// Value by name, null where there is none, in the order of the rewards.
fn breakdown(scored: &Scored) -> Map<String, Value> {
    let parts = scored.parts.iter();
    parts
        .map(|part| (part.name.to_string(), Value::from(part.value)))
        .collect()
}

/// Means over all samples.
#[derive(Serialize)]
struct Summary {
    num_samples: usize,
    /// Of the weighted sum, over the samples that a reward applies to; null where there are none.
    reward_mean: Option<f64>,
    rewards: Vec<PartSummary>,
    /// What lengths were counted in: prompts by unit.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    lengths_in: BTreeMap<&'static str, usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    judge: Option<Usage>,
    #[serde(skip)]
    sum: f64,
    #[serde(skip)]
    num_rewarded: usize,
}

#[derive(Serialize)]
struct PartSummary {
    name: String,
    /// Over the samples that have a value.
    mean: Option<f64>,
    /// Samples without a value, by reason.
    missing: BTreeMap<String, usize>,
    #[serde(skip)]
    sum: f64,
    #[serde(skip)]
    num: usize,
}

/// As many reasons are told apart; they may quote what cannot be read.
const MAX_REASONS: usize = 20;

impl Summary {
    fn new(rewards: &Rewards) -> Self {
        let part = |name: std::sync::Arc<str>| PartSummary {
            name: name.to_string(),
            mean: None,
            missing: BTreeMap::new(),
            sum: 0.0,
            num: 0,
        };
        Self {
            num_samples: 0,
            reward_mean: None,
            rewards: rewards.names().map(part).collect(),
            lengths_in: BTreeMap::new(),
            judge: None,
            sum: 0.0,
            num_rewarded: 0,
        }
    }

    fn add(&mut self, scored: &Scored) {
        self.num_samples += 1;
        if let Some(reward) = scored.reward() {
            self.sum += reward;
            self.num_rewarded += 1;
        }
        for (part, own) in scored.parts.iter().zip(&mut self.rewards) {
            if let Some(value) = part.value {
                own.sum += value;
                own.num += 1;
            } else {
                let mut why = part.missing.clone().unwrap_or_default();
                if own.missing.len() >= MAX_REASONS && !own.missing.contains_key(&why) {
                    why = "other reasons".into();
                }
                *own.missing.entry(why).or_default() += 1;
            }
        }
    }

    fn finished(mut self, rewards: &Rewards) -> Self {
        let mean = |sum: f64, n: usize| (n > 0).then(|| sum / n as f64);
        self.reward_mean = mean(self.sum, self.num_rewarded);
        for part in &mut self.rewards {
            part.mean = mean(part.sum, part.num);
        }
        self.judge = rewards.judge_usage();
        self
    }

    fn lines(&self) -> Vec<String> {
        let shown =
            |mean: Option<f64>| mean.map_or("none".to_string(), |mean| format!("{mean:.3}"));
        let parts: Vec<String> = self
            .rewards
            .iter()
            .map(|part| format!("{} {}", part.name, shown(part.mean)))
            .collect();
        let mut lines = vec![format!(
            "{} samples: reward {} on average ({})",
            self.num_samples,
            shown(self.reward_mean),
            parts.join(", ")
        )];
        for part in &self.rewards {
            for (why, n) in &part.missing {
                lines.push(format!("{}: {n} samples have no value: {why}", part.name));
            }
        }
        if !self.lengths_in.is_empty() {
            let units: Vec<String> = self
                .lengths_in
                .iter()
                .map(|(unit, n)| format!("{unit} ({n} prompts)"))
                .collect();
            lines.push(format!("lengths are in {}", units.join(" and ")));
        }
        if let Some(judge) = self.judge {
            lines.push(format!(
                "the judge was asked {} times, {} tokens",
                judge.num_requests, judge.num_tokens
            ));
        }
        lines
    }
}
