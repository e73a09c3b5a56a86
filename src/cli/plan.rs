//! `distill plan`: what a run would take, and what to change when it does not fit.

use super::options::{RecipeArgs, show_count, size};
use super::run_stages::sampler;
use super::{Session, stdout};
use crate::Result;
use crate::pipeline::estimate::{Estimate, StageEstimate, estimate, estimate_stages, gib};
use crate::pipeline::fit::free_memory;
use crate::recipe::graph::{Job, PipelinePlan, Resolved};
use crate::recipe::plan::Plan;
use std::fmt::Write;

/// Show what a run would take: stages, steps, memory by part
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  distill plan --recipe qwen-7b.toml --device-memory 80GiB")]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Memory of the device, such as 24GiB; what is free here where none is given
    #[arg(long, value_name = "SIZE", value_parser = size)]
    device_memory: Option<u64>,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    let (_, plan) = args.recipe.load()?;
    let device = match &plan {
        Resolved::Student(plan) => &plan.device,
        Resolved::Pipeline(plan) => &plan.device,
    };
    let memory = args.device_memory.or_else(|| free_memory(device));
    session.stop_on_signals()?;
    let (reporter, stop) = (&session.terminal, &session.stop);
    match &plan {
        Resolved::Student(plan) => {
            let estimate = estimate(plan, memory, reporter, stop)?;
            match args.json {
                true => stdout::json(&estimate),
                false => stdout::text(&show(plan, &estimate)),
            }
        }
        Resolved::Pipeline(plan) => {
            let estimates = estimate_stages(plan, memory, reporter, stop)?;
            match args.json {
                true => stdout::json(&estimates),
                false => stdout::text(&show_stages(plan, &estimates)),
            }
        }
    }
}

/// One line a stage, and what to change where one does not fit.
fn show_stages(plan: &PipelinePlan, estimates: &[StageEstimate]) -> String {
    let mut text = format!("run         {}\n", plan.name);
    let widest = estimates.iter().map(|e| e.name.len()).max().unwrap_or(0);
    for (stage, one) in plan.stages.iter().zip(estimates) {
        let mut line = format!("{:<widest$}  {:<12}", one.name, one.kind);
        if let Some(e) = &one.estimate {
            line += &format!(
                "{:>10} at the peak, {} parameters",
                gib(e.peak_memory),
                show_count(e.num_parameters as u64)
            );
            if let Some(w) = &e.work {
                line += &format!(
                    ", {} rows, {} steps",
                    show_count(w.num_rows as u64),
                    show_count(w.num_steps as u64)
                );
            }
            if e.device_memory.is_some_and(|device| e.peak_memory > device) {
                line += "; does not fit";
            }
        }
        text += line.trim_end();
        text.push('\n');
        if let Job::Grpo { grpo, .. } = &stage.job
            && let Some(remote) = &grpo.remote
        {
            let sampler = sampler(remote, grpo);
            text += &format!("{:<widest$}  samples     {sampler}\n", "");
        }
        for advice in one.estimate.iter().flat_map(|e| &e.advice) {
            text += &format!("{:<widest$}  change      {advice}\n", "");
        }
    }
    let peak = estimates.iter().filter_map(|e| e.estimate.as_ref());
    if let Some(most) = peak.map(|e| e.peak_memory).max() {
        text += &format!("memory      {} at the peak of all stages\n", gib(most));
    }
    for note in &plan.notes {
        text += &format!("note        {note}\n");
    }
    text
}

fn show(plan: &Plan, e: &Estimate) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        // a String never refuses
        let _ = writeln!(text, "{label:<12}{value}");
    };
    line("run", &plan.name);
    line("parameters", &show_count(e.num_parameters as u64));
    let stages: Vec<&str> = plan.stages.iter().map(|s| s.name.as_str()).collect();
    line("stages", &stages.join(", "));
    match &e.work {
        Some(w) => {
            line(
                "data",
                &format!(
                    "{} rows, {} tokens",
                    show_count(w.num_rows as u64),
                    show_count(w.num_tokens)
                ),
            );
            line("steps", &show_count(w.num_steps as u64));
            line(
                "work",
                &format!("{:.3e} floating-point operations", w.flops),
            );
        }
        None => {
            line(
                "data",
                "not on this machine: rows and steps are known after the data stage",
            );
            line(
                "work",
                &format!(
                    "at most {:.3e} floating-point operations a step ({} sequences of {} tokens)",
                    e.flops_of_full_step, plan.sft.batch_size, plan.sft.max_length
                ),
            );
        }
    }
    line(
        "memory",
        &format!(
            "{} at the peak of {}",
            gib(e.peak_memory),
            e.memory.moment()
        ),
    );
    for (label, size) in e.memory.parts() {
        line("", &format!("{label:<26}{:>12}", gib(size)));
    }
    if let (Some(level), true) = (e.recompute, e.recompute_chosen) {
        line("recompute", &format!("auto: {}", level.name()));
    }
    if let Some(device) = e.device_memory {
        if e.peak_memory <= device {
            line("fits", &format!("yes, into {}", gib(device)));
        } else {
            line("fits", &format!("no, not into {}", gib(device)));
            for advice in &e.advice {
                line("change", advice);
            }
        }
    }
    for note in &plan.notes {
        line("note", note);
    }
    text
}
