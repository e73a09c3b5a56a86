//! `distill eval`: a benchmark on a model, with its protocol.

use super::options::ModelArgs;
use super::{Session, stdout};
use crate::eval::{self, EvalJob, EvalResult, suite_sampling};
use crate::generate::LocalEngine;
use crate::pipeline::folder::key_of;
use crate::pipeline::open::{Opened, open_model};
use crate::pipeline::suites::problems;
use crate::recipe::suite::Suite;
use crate::{Error, Result};
use serde_json::json;
use std::path::PathBuf;

/// Run a benchmark on a model
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  distill eval --model runs/quickstart/sft/model --suite arithmetic
  distill eval --model qwen2.5-math-1.5b --suite math-500 --data math500.jsonl --limit 50 --json

Every sample goes to `samples.jsonl` beside `eval.json`. Called again, samples that are there already are kept.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Benchmark: the name of a shipped suite, or a file
    #[arg(long)]
    suite: String,
    /// Problems from a file in place of the suite's data set
    #[arg(long, value_name = "FILE")]
    data: Option<String>,
    /// Samples a problem, in place of the suite's
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    k: Option<u32>,
    /// Only the first so many problems
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Longest answer in tokens, in place of the suite's
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: Option<u32>,
    /// Seed of sampling
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Answers that are sampled side by side
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Folder of `eval.json` and `samples.jsonl` [default: `runs/eval-SUITE-MODEL`]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    let reporter = &session.terminal;
    let mut suite = Suite::load(&args.suite)?;
    if let Some(k) = args.k {
        suite.sampling.k = k as usize;
    }
    if let Some(n) = args.max_new_tokens {
        suite.sampling.max_new_tokens = n as usize;
    }
    let limit = args.limit.map(|n| n as usize);
    let problems = problems(&suite, args.data.as_deref(), limit, reporter)?;
    let place = &args.model;
    let opened = open_model(&place.model, &place.device, place.dtype, reporter)?;
    let dir = args
        .output
        .clone()
        .unwrap_or_else(|| default_folder(&suite, &place.model));
    std::fs::create_dir_all(&dir).map_err(|e| Error::io("creating", &dir, e))?;
    session.stop_on_signals()?;
    let job = EvalJob {
        suite: &suite,
        problems: &problems,
        chat: &opened.chat,
        k: suite.sampling.k,
        sampling: &suite_sampling(&suite, &opened.chat, args.seed),
        model_key: &model_key(&opened, args)?,
        samples: &dir.join("samples.jsonl"),
    };
    let mut engine = LocalEngine::new(
        &opened.model,
        &opened.chat.tokenizer,
        args.batch_size as usize,
    );
    let result = eval::run(&job, &mut engine, reporter, &session.stop)?;
    result.write(&dir.join("eval.json"))?;
    if args.json {
        return stdout::json(&result);
    }
    stdout::text(&show(&result))
}

/// One folder a suite and model, named by the last parts of a path that say something: `RUN-sft-model`.
fn default_folder(suite: &Suite, model: &str) -> PathBuf {
    let parts: Vec<&str> = model
        .split(['/', '\\', '@'])
        .filter(|part| !matches!(*part, "" | "." | ".." | "runs"))
        .collect();
    let name = parts[parts.len().saturating_sub(3)..].join("-");
    PathBuf::from(format!("runs/eval-{}-{name}", suite.name))
}

/// Says which weights are judged: the folder, and the size and time of every file in it.
fn model_key(opened: &Opened, args: &Args) -> Result<String> {
    let io = |e| Error::io("reading", &opened.folder, e);
    let mut files = Vec::new();
    let mut entries = Vec::new();
    for folder in [Some(&opened.folder), opened.base.as_ref()]
        .into_iter()
        .flatten()
    {
        entries.extend(std::fs::read_dir(folder).map_err(io)?);
    }
    for entry in entries {
        let path = entry.map_err(io)?.path();
        // through links: in the Hub's cache the files are links
        let meta = std::fs::metadata(&path).map_err(io)?;
        let modified = meta
            .modified()
            .ok()
            .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        files.push((
            path.display().to_string(),
            meta.len(),
            modified.map(|d| d.as_nanos().to_string()),
        ));
    }
    files.sort();
    key_of(&json!({"files": files, "revision": opened.revision, "dtype": args.model.dtype}))
}

/// The result as people read it.
fn show(result: &EvalResult) -> String {
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let mut lines = vec![
        format!(
            "{} (version {}), {} problems",
            result.suite, result.version, result.num_problems
        ),
        format!(
            "pass@1     {} (95% interval {} to {})",
            percent(result.pass_at_1),
            percent(result.pass_at_1_ci95[0]),
            percent(result.pass_at_1_ci95[1])
        ),
    ];
    if result.k > 1 {
        lines.push(format!("cons@{:<6}{}", result.k, percent(result.cons_at_k)));
    }
    lines.push(format!(
        "answers    {:.0} tokens on average, {} cut off",
        result.num_tokens_mean,
        percent(result.truncated_share)
    ));
    lines.join("\n") + "\n"
}
