//! `distill --recipe R`: runs a recipe, or shows what it would run.

use super::options::{RecipeArgs, show_count, size};
use super::run_stages;
use super::{Session, push, stdout};
use crate::Result;
use crate::pipeline::graph;
use crate::pipeline::publish::{Wish, check_account, publish};
use crate::pipeline::run::{RunOptions, RunOutcome, run as run_plan};
use crate::recipe::Optimizer;
use crate::recipe::graph::Resolved;
use crate::recipe::load::Loaded;
use crate::recipe::plan::{Plan, SftPlan, StageKind, StudentPlan, StudentSource};
use crate::recipe::publish::Publish;
use crate::recipe::suite::Suite;
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;

pub const EXAMPLES: &str = "\
Examples:
  distill --recipe quickstart.toml
  distill --recipe qwen-7b.toml --dry-run
  distill --recipe mine.toml --set sft.epochs=3 --set student.dtype=bf16 --run-dir runs/three
  distill --recipe stages.toml --set stage.cold-start.sft.epochs=3 --rerun cold-start

A second call on the same folder goes on where the first one stopped.";

/// Runs a recipe.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Folder of the run [default: `runs/NAME`]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Show what would run, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Throw away what an earlier run left in the folder
    #[arg(long)]
    pub fresh: bool,
    /// Throw away what a stage left, and those that depend on it, and run them again; may be repeated
    #[arg(long, value_name = "STAGE")]
    pub rerun: Vec<String>,
    /// Memory that the run may take, such as 24GiB [default: what is free on the device]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub device_memory: Option<u64>,
    /// Run even where the plan says that it takes more memory than there is
    #[arg(long)]
    pub force: bool,
    /// Print the result (or the plan) as JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    let (loaded, plan) = args.recipe.load()?;
    if args.dry_run {
        return if args.json {
            stdout::json(&plan)
        } else {
            stdout::text(&match &plan {
                Resolved::Student(plan) => show(&loaded, plan),
                Resolved::Pipeline(plan) => run_stages::show(&loaded, plan),
            })
        };
    }
    session.stop_on_signals()?;
    if plan.publish().is_some() {
        check_account(&session.terminal, &session.stop)?;
    }
    let options = RunOptions {
        run_dir: args.run_dir.clone(),
        fresh: args.fresh,
        rerun: args.rerun.clone(),
        device_memory: args.device_memory,
        force: args.force,
    };
    let (reporter, stop) = (&session.terminal, &session.stop);
    let mut outcome = match &plan {
        Resolved::Student(plan) => run_plan(&loaded, plan, &options, reporter, stop)?,
        Resolved::Pipeline(plan) => graph::run(&loaded, plan, &options, reporter, stop)?,
    };
    let published = match plan.publish() {
        Some(_) => publish(&outcome.run_dir, &Wish::default(), reporter, stop)?,
        None => Vec::new(),
    };
    if args.json {
        if !published.is_empty() {
            outcome.summary["published"] = json!(published);
        }
        return stdout::json(&outcome.summary);
    }
    let model = match &plan {
        Resolved::Student(_) => Some("sft/model".to_string()),
        Resolved::Pipeline(plan) => run_stages::last_model(plan),
    };
    let published: String = published.iter().map(push::show).collect();
    stdout::text(&(show_outcome(&outcome, model) + &published))
}

/// What a run gave: its benchmarks, and where model and report are.
fn show_outcome(outcome: &RunOutcome, model: Option<String>) -> String {
    let mut text = String::new();
    let evaluations = outcome.summary.as_object().into_iter().flatten();
    for (stage, result) in evaluations {
        let (Some(suite), Some(share)) = (result["suite"].as_str(), result["pass@1"].as_f64())
        else {
            continue;
        };
        // a String never refuses
        let _ = writeln!(
            text,
            "{stage:<12} {suite} pass@1 {:.1}% of {} problems",
            100.0 * share,
            result["num_problems"]
        );
    }
    let report = ("report", "report.html".to_string());
    for (label, file) in model.map(|m| ("model", m)).into_iter().chain([report]) {
        let _ = writeln!(text, "{label:<12} {}", outcome.run_dir.join(file).display());
    }
    text
}

/// The plan as people read it.
fn show(loaded: &Loaded, plan: &Plan) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        // a String never refuses
        let _ = writeln!(text, "{label:<10}{value}");
    };
    line(
        "run",
        &format!("{} (recipe `{}`)", plan.name, loaded.origin),
    );
    line("student", &student(&plan.student));
    for (i, traces) in plan.traces.iter().enumerate() {
        let mut value = traces.source.clone();
        if let Some(config) = &traces.config {
            let _ = write!(value, " / {config}");
        }
        if let Some(n) = traces.num_problems {
            let _ = write!(value, ", {} problems", show_count(n as u64));
        }
        if let Some(n) = traces.limit {
            let _ = write!(value, ", at most {} traces", show_count(n as u64));
        }
        line(if i == 0 { "traces" } else { "" }, &value);
    }
    line("sft", &sft(&plan.sft));
    for (i, suite) in plan.eval.iter().flat_map(|e| &e.suites).enumerate() {
        line(if i == 0 { "eval" } else { "" }, &asked(suite));
    }
    line("seed", &plan.seed.to_string());
    line("device", &plan.device);
    if let Some(table) = &plan.publish {
        line("publish", &published(table));
    }
    for note in &plan.notes {
        line("note", note);
    }
    text += "stages\n";
    for (i, stage) in plan.stages.iter().enumerate() {
        let _ = writeln!(text, "  {}. {:<18} {}", i + 1, stage.name, what(stage.kind));
    }
    text
}

/// Where the result goes.
pub(super) fn published(table: &Publish) -> String {
    let seen = if table.public { "public" } else { "private" };
    let mut value = format!("{} ({seen} where it is created)", table.repo);
    if let Some(traces) = &table.traces {
        let _ = write!(value, ", traces to {}", traces.repo);
    }
    value
}

/// How a suite is asked.
pub(super) fn asked(suite: &Suite) -> String {
    let s = &suite.sampling;
    format!(
        "{} (version {}), {} sample{} a problem, temperature {}, at most {} tokens",
        suite.name,
        suite.version,
        s.k,
        if s.k == 1 { "" } else { "s" },
        s.temperature,
        show_count(s.max_new_tokens as u64)
    )
}

/// Which model, and how it is trained.
pub(super) fn student(student: &StudentPlan) -> String {
    let mut value = match &student.source {
        StudentSource::Hub { repo, revision } => format!("{repo}@{revision}"),
        StudentSource::Folder(folder) => folder.clone(),
        StudentSource::Random(init) => format!(
            "{} with random weights, {} layers of width {}",
            init.architecture, init.num_hidden_layers, init.hidden_size
        ),
    };
    if let Some(card) = &student.card {
        let _ = write!(value, " (card `{card}`)");
    }
    let _ = write!(
        value,
        ", {} training in {}",
        lower(&student.method),
        lower(&student.dtype)
    );
    value
}

/// How it learns.
pub(super) fn sft(sft: &SftPlan) -> String {
    let mut value = format!(
        "{} epoch{}, batches of {} sequences of at most {} tokens, learning rate {} ({}",
        sft.epochs,
        if sft.epochs == 1 { "" } else { "s" },
        sft.batch_size,
        show_count(sft.max_length as u64),
        rate(sft.learning_rate),
        lower(&sft.schedule)
    );
    if sft.min_learning_rate_ratio > 0.0 {
        let _ = write!(
            value,
            " to {}",
            rate(sft.learning_rate * sft.min_learning_rate_ratio)
        );
    }
    value.push(')');
    if sft.optimizer == Optimizer::AdamW8bit {
        value += ", optimiser states in 8 bits";
    }
    if let Some(n) = sft.max_steps {
        let _ = write!(value, ", at most {} steps", show_count(n as u64));
    }
    value
}

/// A learning rate, without the noise of a product in the last digits.
fn rate(value: f64) -> String {
    let rounded = format!("{value:.4e}").parse().unwrap_or(value);
    format!("{rounded:e}")
}

fn what(kind: StageKind) -> &'static str {
    match kind {
        StageKind::Data => "traces to tokens, with what is trained on marked",
        StageKind::EvalBefore => "the suite on the student as it is",
        StageKind::Sft => "supervised fine-tuning",
        StageKind::Eval => "the suite on the result",
    }
}

/// The name of a setting as recipes write it.
fn lower(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}
