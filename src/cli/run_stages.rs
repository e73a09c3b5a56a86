//! What a recipe of several stages would run, as people read it.

use super::options::show_count;
use super::run::{asked, published, sft, student};
use crate::generate::http::without_login;
use crate::recipe::graph::{Job, PairSources, PipelinePlan, StagePlan};
use crate::recipe::grpo::Grpo;
use crate::recipe::load::Loaded;
use crate::recipe::pairs::PairRules;
use crate::recipe::remote::Remote;
use crate::recipe::stage::Leaves;
use std::fmt::Write;

/// The plan.
pub fn show(loaded: &Loaded, plan: &PipelinePlan) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        // a String never refuses
        let _ = writeln!(text, "{label:<10}{value}");
    };
    line(
        "run",
        &format!("{} (recipe `{}`)", plan.name, loaded.origin),
    );
    line("seed", &plan.seed.to_string());
    line("device", &plan.device);
    if let Some(table) = &plan.publish {
        line("publish", &published(table));
    }
    for note in &plan.notes {
        line("note", note);
    }
    text += "stages\n";
    let widest = plan.stages.iter().map(|s| s.name.len()).max().unwrap_or(0);
    for (i, stage) in plan.stages.iter().enumerate() {
        let kind = stage.kind.name();
        let _ = writeln!(text, "{:>3}. {:<widest$}  {kind}", i + 1, stage.name);
        for (label, value) in details(plan, stage) {
            let _ = writeln!(text, "     {label:<10}{value}");
        }
    }
    text
}

/// Where the completions of a remote engine come from.
pub fn sampler(remote: &Remote, grpo: &Grpo) -> String {
    format!(
        "from {} at {}, given new weights after every {} updates",
        remote.engine.name(),
        without_login(&remote.url),
        remote.every_updates(grpo)
    )
}

/// The folder of the last stage that leaves a model.
pub fn last_model(plan: &PipelinePlan) -> Option<String> {
    let mut stages = plan.stages.iter().rev();
    let last = stages.find(|stage| stage.kind.leaves() == Some(Leaves::Model))?;
    Some(format!("{}/model", last.name))
}

fn details(plan: &PipelinePlan, stage: &StagePlan) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    match (&stage.model, &stage.student) {
        (Some(name), _) => lines.push(("model", format!("@{name}"))),
        (None, Some(plan)) => lines.push(("model", student(plan))),
        (None, None) => {}
    }
    match &stage.job {
        Job::Sft {
            traces,
            sft: settings,
        } => {
            let sources = traces.iter().map(|t| with_limit(&t.source, t.limit));
            lines.push(("traces", list(sources)));
            lines.push(("sft", sft(settings)));
        }
        Job::Generate {
            prompts,
            sampling,
            rewards,
        } => {
            let sources = prompts
                .iter()
                .map(|p| with_limit(&p.source, p.limit.or(p.num_problems)));
            lines.push(("prompts", list(sources)));
            lines.push((
                "samples",
                format!(
                    "{} a prompt, temperature {}, top_p {}, at most {} tokens",
                    sampling.num_samples,
                    sampling.temperature,
                    sampling.top_p,
                    show_count(sampling.max_new_tokens as u64)
                ),
            ));
            if let Some(table) = rewards {
                let rewards = table.rewards();
                let names = rewards.iter().map(|r| r.kind.label().to_string());
                lines.push(("rewards", list(names)));
            }
        }
        Job::Select {
            samples,
            select,
            rewards,
            mix,
        } => {
            lines.push(("samples", list(samples.iter().cloned())));
            let accept = format!("{:?}", select.accept).to_lowercase();
            let order = format!("{:?}", select.order).to_lowercase();
            let mut value = format!(
                "accept {accept}, at most {} a problem ({order} first)",
                select.max_per_problem
            );
            if !select.drop_flags.is_empty() {
                let flags: Vec<_> = select.drop_flags.iter().map(|f| f.name()).collect();
                let _ = write!(value, ", drop {}", flags.join(", "));
            }
            lines.push(("select", value));
            if let Some(table) = rewards {
                let rewards = table.rewards();
                let names = rewards.iter().map(|r| r.kind.label().to_string());
                lines.push(("rewards", list(names)));
            }
            for one in mix {
                let mut value = with_limit(&one.source, one.limit);
                if let Some(weight) = one.weight {
                    let _ = write!(value, ", {weight} for each selected trace");
                }
                lines.push(("mix", value));
            }
        }
        Job::Grpo {
            prompts,
            grpo,
            rewards,
            eval,
        } => {
            let sources = prompts
                .iter()
                .map(|p| with_limit(&p.source, p.limit.or(p.num_problems)));
            lines.push(("prompts", list(sources)));
            let updates = match grpo.num_steps {
                Some(n) => format!("{} updates", show_count(n as u64)),
                None => format!("{} epochs", grpo.epochs),
            };
            lines.push((
                "grpo",
                format!(
                    "{updates} of {} prompts, {} samples each, at most {} tokens, learning rate {:e}",
                    grpo.num_prompts_per_step,
                    grpo.group_size,
                    show_count(grpo.max_new_tokens as u64),
                    grpo.learning_rate
                ),
            ));
            if let Some(remote) = &grpo.remote {
                let value = match &remote.weights_dir {
                    Some(dir) => format!("{}, in {dir}", sampler(remote, grpo)),
                    None => sampler(remote, grpo),
                };
                lines.push(("samples", value));
            }
            let rewards = rewards.rewards();
            let names = rewards.iter().map(|r| r.kind.label().to_string());
            lines.push(("rewards", list(names)));
            let suites = eval.iter().flat_map(|eval| &eval.suites);
            lines.extend(suites.map(|suite| ("suite", asked(suite))));
        }
        Job::RewardModel { sources, table } => {
            lines.extend(pairs(sources, &table.build));
            let training = table.training();
            let loss = format!("{:?}", table.loss).to_lowercase();
            lines.push(("loss", format!("{loss}, {}", sft(&training))));
        }
        Job::Preference { sources, table } => {
            lines.extend(pairs(sources, &table.build));
            let objective = table.objective();
            let loss = format!("{:?}", objective.loss).to_lowercase();
            let how = format!(
                "{loss}, beta {}, {}",
                objective.beta,
                sft(&table.training())
            );
            lines.push(("loss", how));
        }
        Job::Eval(eval) => lines.extend(eval.suites.iter().map(|suite| ("suite", asked(suite)))),
    }
    if stage.seed != plan.seed {
        lines.push(("seed", stage.seed.to_string()));
    }
    lines
}

/// Where pairs come from.
fn pairs(sources: &PairSources, rules: &PairRules) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if !sources.pairs.is_empty() {
        lines.push(("pairs", list(sources.pairs.iter().cloned())));
    }
    if !sources.samples.is_empty() {
        let from = list(sources.samples.iter().cloned());
        let by = format!("{:?}", rules.by).to_lowercase();
        lines.push((
            "pairs",
            format!(
                "of {from} by {by}, at most {} a prompt",
                rules.max_per_prompt
            ),
        ));
    }
    lines
}

fn with_limit(source: &str, limit: Option<usize>) -> String {
    match limit {
        None => source.to_string(),
        Some(n) => format!("{source} (at most {})", show_count(n as u64)),
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}
