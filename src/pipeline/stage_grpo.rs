//! The `grpo` stage of a pipeline: reinforcement learning from rewards, with its metrics, samples and evaluations. It
//! leaves `model/`, and beside it
//!
//! | file | holds |
//! |---|---|
//! | `metrics.jsonl` | [`GrpoRecord`]s, one an update |
//! | `rollouts.jsonl` | some groups at chosen updates: prompt, completions, rewards, advantages |
//! | `eval/step-N/` | evaluations at chosen updates |

use super::graph::{Opening, StageContext};
use super::stage_generate::{open_rewards, prompt_inputs, read_prompts};
use super::stages::{Place, save_model};
use super::student::Student;
use super::suites::{SuiteRun, run_suite, suite_problems};
use crate::eval::Problem;
use crate::generate::row_log::check_length;
use crate::generate::{Engine, LocalEngine, RemoteEngine};
use crate::model::CausalLm;
use crate::progress::{Silent, Task};
use crate::recipe::graph::{Job, StagePlan};
use crate::recipe::grpo::{Correction, Grpo};
use crate::recipe::plan::EvalPlan;
use crate::recipe::remote::Remote;
use crate::report::{EventWriter, MetricsLog};
use crate::train::grpo::HeldOut;
use crate::train::grpo_record::GrpoRecord;
use crate::train::rollout::Group;
use crate::train::{GrpoJob, GrpoObserver, GrpoPrompt, train_grpo};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const ROLLOUTS: &str = "rollouts.jsonl";

/// What is learnt depends on this besides the model.
pub fn inputs(opening: &Opening, stage: &StagePlan, student: &Student) -> Result<Value> {
    let Job::Grpo {
        prompts,
        grpo,
        rewards,
        ..
    } = &stage.job
    else {
        return Ok(json!({}));
    };
    Ok(json!({
        "prompts": prompt_inputs(opening, stage, prompts)?,
        "grpo": grpo.learned(),
        "rewards": rewards.learned(),
        "template": student.chat().template()?.source(),
        "tokenizer": student.tokenizer_hash(),
    }))
}

/// Learns from the rewards; leaves `model/`.
///
/// # Errors
/// A prompt that the template refuses or that is too long; as [`train_grpo`].
pub fn run(context: &StageContext) -> Result<Value> {
    let Job::Grpo {
        prompts: sources,
        grpo,
        rewards,
        eval,
    } = &context.stage.job
    else {
        return Err(Error::input("the stage is not one of `grpo`"));
    };
    let rewards = open_rewards(rewards, context.root, grpo.separator(), context.stop)?;
    let student = context.student()?;
    let model = context.model_to_train()?;
    let num_positions = model.config().max_position_embeddings;
    let prompts: Vec<GrpoPrompt> = read_prompts(context, sources)?
        .into_iter()
        .map(|prompt| {
            let rendered = prompt.render(student.chat())?;
            check_length(rendered.tokens.len(), num_positions)
                .map_err(|e| Error::input(format!("prompt `{}`: {e}", prompt.id)))?;
            Ok(GrpoPrompt {
                prompt,
                tokens: rendered.tokens,
                opening: rendered.opening,
            })
        })
        .collect::<Result<_>>()?;
    let total = grpo.total_steps(prompts.len());
    context.reporter.stage(
        &context.stage.name,
        &format!(
            "{total} updates of {} prompts, {} completions each, from {} prompts",
            grpo.num_prompts_per_step,
            grpo.group_size,
            prompts.len()
        ),
    );
    let held_out = match eval {
        None => Vec::new(),
        Some(eval) => eval
            .suites
            .iter()
            .map(|suite| suite_problems(suite, eval.limit, context.reporter))
            .collect::<Result<_>>()?,
    };
    let mut log = StepLog {
        context,
        model: &model,
        student,
        eval: eval.as_ref(),
        held_out,
        task: context
            .reporter
            .task("learning", Some(total as u64), "updates"),
        metrics: None,
        samples: None,
        events: None,
    };
    let mut local = LocalEngine::new(&model, &student.chat().tokenizer, grpo.batch_size);
    let mut remote = match &grpo.remote {
        Some(settings) => Some(open_remote(context, settings, grpo, &model, student)?),
        None => None,
    };
    let engine: &mut dyn Engine = match &mut remote {
        Some(remote) => remote,
        None => &mut local,
    };
    let job = GrpoJob {
        engine,
        prompts: &prompts,
        rewards: &rewards,
        tokenizer: &student.chat().tokenizer,
        settings: grpo,
        stop_ids: student.chat().stop_ids(),
        seed: context.stage.seed,
        inputs_key: context.key,
    };
    let outcome = train_grpo(&model, job, &context.dir, &mut log, context.stop)?;
    if let Some(remote) = &remote {
        remote.clear()?;
    }
    log.sync()?;
    drop(log);
    if outcome.num_unrewarded > 0 {
        context.reporter.note(&format!(
            "no reward applied to {} completions, which taught nothing; `rewards_missing` in `metrics.jsonl` says which rewards do not apply",
            outcome.num_unrewarded
        ));
    }
    save_model(&model, student, &context.dir)?;
    Ok(json!(outcome))
}

/// The engine elsewhere, with a word about the weights it will get.
fn open_remote<'a>(
    context: &StageContext,
    settings: &'a Remote,
    grpo: &Grpo,
    model: &'a CausalLm,
    student: &'a Student,
) -> Result<RemoteEngine<'a>> {
    let dir = match &settings.weights_dir {
        Some(dir) => Path::new(dir).to_path_buf(),
        None => context.dir.join("remote-weights"),
    };
    let (name, dtype) = (settings.engine.name(), model.dtype().as_str());
    context.reporter.note(&format!(
        "completions from {name}, whose weights are read from `{}` ({dtype})",
        dir.display()
    ));
    if grpo.correction == Correction::None {
        context.reporter.warn(&format!(
            "`grpo.correction` is `none`: {name}'s probabilities are not quite the trainer's; `token_truncate` corrects for that, `gap` in `metrics.jsonl` says how much"
        ));
    }
    RemoteEngine::open(settings, model, student.chat(), dir, context.stop.clone())
}

/// Writes every update to `metrics.jsonl` and TensorBoard, and shows it.
struct StepLog<'a> {
    context: &'a StageContext<'a>,
    model: &'a CausalLm,
    student: &'a Student,
    eval: Option<&'a EvalPlan>,
    /// Of each suite.
    held_out: Vec<Vec<Problem>>,
    task: Box<dyn Task>,
    metrics: Option<MetricsLog>,
    samples: Option<MetricsLog>,
    events: Option<EventWriter>,
}

impl StepLog<'_> {
    fn sync(&mut self) -> Result<()> {
        for log in [&mut self.metrics, &mut self.samples].into_iter().flatten() {
            log.sync()?;
        }
        match &mut self.events {
            Some(events) => events.flush(),
            None => Ok(()),
        }
    }
}

impl GrpoObserver for StepLog<'_> {
    fn resumed(&mut self, step: usize) -> Result<()> {
        let dir = &self.context.dir;
        self.metrics = Some(MetricsLog::open(&dir.join("metrics.jsonl"), step as u64)?);
        self.samples = Some(MetricsLog::open(&dir.join(ROLLOUTS), step as u64)?);
        self.events = Some(EventWriter::create(dir, step as u64)?);
        if step > 0 {
            let text = format!("going on after update {step}");
            self.context.reporter.note(&text);
            self.task.set_position(step as u64);
        }
        Ok(())
    }

    fn reopened(&mut self, step: usize) -> Result<()> {
        let path = self.context.dir.join("metrics.jsonl");
        self.metrics = Some(MetricsLog::open(&path, step.saturating_sub(1) as u64)?);
        Ok(())
    }

    fn step(&mut self, record: &GrpoRecord) -> Result<()> {
        if let Some(metrics) = &mut self.metrics {
            metrics.append(record)?;
        }
        if let Some(events) = &mut self.events {
            let row = json!(record);
            let scalars: Vec<(String, f64)> = row
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(name, _)| *name != "step")
                .filter_map(|(name, value)| Some((format!("train/{name}"), value.as_f64()?)))
                .chain(
                    record
                        .rewards
                        .iter()
                        .map(|(k, v)| (format!("reward/{k}"), *v)),
                )
                .chain(record.held_out_accuracy.map(|_| {
                    let raised = f64::from(u8::from(record.alarm.is_some()));
                    ("alarm/reward_hacking".to_string(), raised)
                }))
                .collect();
            let named: Vec<(&str, f64)> = scalars.iter().map(|(k, v)| (k.as_str(), *v)).collect();
            events.scalars(record.step as u64, &named)?;
        }
        self.task.set_position(record.step as u64);
        self.task.message(&format!(
            "reward {:.3}, length {:.0}, entropy {:.2}, {:.1} s",
            record.reward, record.length, record.entropy, record.step_time_s
        ));
        Ok(())
    }

    fn samples(&mut self, step: usize, groups: &[Group], prompts: &[GrpoPrompt]) -> Result<()> {
        let Some(samples) = &mut self.samples else {
            return Ok(());
        };
        let rows: Vec<Value> = groups
            .iter()
            .map(|group| {
                let prompt = &prompts[group.prompt];
                let completions = group
                    .answers
                    .iter()
                    .zip(&group.scored)
                    .zip(&group.advantages);
                let completions: Vec<Value> = completions
                    .map(|((answer, scored), advantage)| {
                        json!({
                            "text": answer.text,
                            "num_tokens": answer.tokens.len(),
                            "finish_reason": answer.finish_reason,
                            "reward": scored.reward(),
                            "parts": super::stage_generate::parts(scored),
                            "correct": scored.is_correct(),
                            "advantage": advantage,
                        })
                    })
                    .collect();
                json!({
                    "id": prompt.prompt.id,
                    "question": prompt.prompt.question,
                    "opening": prompt.opening,
                    "golds": prompt.prompt.golds,
                    "completions": completions,
                })
            })
            .collect();
        samples.append(&json!({"step": step, "groups": rows}))
    }

    /// Accuracy over all suites, each problem counted once.
    fn evaluate(&mut self, step: usize) -> Result<Option<HeldOut>> {
        let Some(eval) = self.eval else {
            return Ok(None);
        };
        let (mut right, mut num_problems) = (0.0, 0);
        for (suite, problems) in eval.suites.iter().zip(&self.held_out) {
            let place = self.context.dir.join("eval").join(format!("step-{step}"));
            let dir = place.join(&suite.name);
            fs::create_dir_all(&dir).map_err(|e| Error::io("creating", &dir, e))?;
            let place = Place {
                name: &self.context.stage.name,
                dir: &dir,
                reporter: &Silent,
                stop: self.context.stop,
            };
            let run = SuiteRun {
                suite,
                seed: self.context.stage.seed,
                batch_size: eval.batch_size,
                problems,
                key: &format!("{}-step-{step}", self.context.key),
            };
            let result = run_suite(&place, self.student, self.model, &run)?;
            right += result["pass@1"].as_f64().unwrap_or(0.0) * problems.len() as f64;
            num_problems += problems.len();
        }
        let accuracy = right / num_problems.max(1) as f64;
        self.context.reporter.note(&format!(
            "update {step}: {:.1}% of {num_problems} held-out problems",
            100.0 * accuracy
        ));
        Ok(Some(HeldOut {
            accuracy,
            num_problems,
        }))
    }

    fn checkpoint(&mut self, _step: usize, _path: &Path) -> Result<()> {
        self.sync()
    }

    fn warn(&mut self, text: &str) {
        self.context.reporter.warn(text);
    }
}
