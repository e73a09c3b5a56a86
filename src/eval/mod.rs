//! Benchmark runs: problems x k samples, verdicts, pass@1 with its interval.
//!
//! This file asks, collects and goes on where an earlier run stopped. What the numbers mean is in [`metrics`], the file of
//! samples in [`samples`]; suites are TOML and belong to `recipe/`, problems to `data/`, verdicts to `verify/`.

pub mod metrics;
pub mod samples;

pub use metrics::EvalResult;
pub use samples::Sample;

use std::borrow::Cow;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::generate::{Engine, Request, Sampling};
use crate::progress::{Reporter, Stop};
use crate::recipe::suite::Suite;
use crate::tokenize::{Chat, Message};
use crate::verify::language::{self, Language};
use crate::verify::{Kind, format};
use crate::{Error, Result};

/// One problem of a benchmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its name in the data set, or its row number.
    pub id: String,
    pub problem: String,
    pub gold: String,
}

/// What to run: which problems, how often, on which model.
pub struct EvalJob<'a> {
    pub suite: &'a Suite,
    pub problems: &'a [Problem],
    pub chat: &'a Chat,
    /// Samples a problem.
    pub k: usize,
    /// See [`suite_sampling`].
    pub sampling: &'a Sampling,
    /// Says which weights are judged: samples of other weights are not taken over.
    pub model_key: &'a str,
    /// `samples.jsonl`; what it already holds of this very run is not sampled again.
    pub samples: &'a Path,
}

/// The sampling a suite asks for, with the student's stop tokens.
pub fn suite_sampling(suite: &Suite, chat: &Chat, seed: u64) -> Sampling {
    Sampling {
        temperature: suite.sampling.temperature,
        top_p: suite.sampling.top_p,
        max_new_tokens: suite.sampling.max_new_tokens,
        stop_ids: chat.stop_ids().to_vec(),
        seed,
        ..Sampling::default()
    }
}

/// Runs the suite and leaves every sample in `samples.jsonl`, in order of problems and samples.
///
/// # Errors
/// A suite that asks for nothing, a prompt the template refuses, a full disk, logits that are not finite;
/// [`Error::Interrupted`] where `stop` was requested, and the next call goes on from there.
pub fn run(
    job: &EvalJob<'_>,
    engine: &mut dyn Engine,
    reporter: &dyn Reporter,
    stop: &Stop,
) -> Result<EvalResult> {
    let suite = job.suite;
    let asked = job
        .problems
        .iter()
        .map(|problem| ask(suite, job.chat, problem))
        .collect::<Result<Vec<_>>>()?;
    let plan = Plan {
        name: &suite.name,
        problems: job.problems,
        asked: &asked,
        k: job.k,
        sampling: job.sampling,
        kind: Kind::parse(&suite.verifier).map_err(|e| e.at(format!("suite `{}`", suite.name)))?,
        model_key: job.model_key,
        samples: job.samples,
    };
    let samples = sample(&plan, engine, reporter, stop)?;
    Ok(metrics::result(
        suite,
        job.sampling,
        plan.kind,
        job.k,
        &samples,
    ))
}

/// A problem as the model sees it.
struct Asked {
    prompt: Vec<u32>,
    /// The template ends in `<think>`, so that the completion begins inside the thinking.
    opens_thinking: bool,
}

fn ask(suite: &Suite, chat: &Chat, problem: &Problem) -> Result<Asked> {
    const PLACE: &str = "{problem}";
    let template = &suite.prompt.template;
    if !template.contains(PLACE) {
        return Err(Error::input(format!(
            "suite `{}`: the prompt's `template` has no `{PLACE}`",
            suite.name
        )));
    }
    let mut messages = Vec::new();
    if let Some(system) = &suite.prompt.system {
        messages.push(Message::new("system", system));
    }
    messages.push(Message::new(
        "user",
        template.replace(PLACE, &problem.problem),
    ));
    let rendered = || -> Result<Asked> {
        let text = chat.prompt_text(&messages)?;
        Ok(Asked {
            prompt: chat.prompt(&messages)?,
            opens_thinking: text.trim_end().ends_with("<think>"),
        })
    };
    rendered().map_err(|e| e.at(format!("suite `{}`, problem `{}`", suite.name, problem.id)))
}

/// Everything sampling needs, templates and tokenizers left behind.
struct Plan<'a> {
    name: &'a str,
    problems: &'a [Problem],
    asked: &'a [Asked],
    k: usize,
    sampling: &'a Sampling,
    kind: Kind,
    model_key: &'a str,
    samples: &'a Path,
}

impl Plan<'_> {
    /// Random numbers are keyed by this, so that a sample stays the same when problems or samples are added after it.
    fn request_id(problem: usize, sample: usize) -> u64 {
        (problem as u64) << 20 | sample as u64
    }

    /// Same key, same text: a hash of the weights' key, the sampling and the prompt.
    fn key(&self, problem: usize) -> Result<String> {
        let sampling = serde_json::to_vec(self.sampling)
            .map_err(|e| Error::input(format!("suite `{}`: sampling: {e}", self.name)))?;
        let mut hash = Sha256::new();
        for part in [self.model_key.as_bytes(), &sampling] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        for token in &self.asked[problem].prompt {
            hash.update(token.to_le_bytes());
        }
        Ok(hex::encode(&hash.finalize()[..8]))
    }

    /// Fills in the verdict; it depends on the text only, and is made anew for samples of an earlier run.
    fn judge(&self, sample: &mut Sample) {
        let problem = &self.problems[sample.index];
        let text = match self.asked[sample.index].opens_thinking {
            true => Cow::Owned(format!("<think>{}", sample.text)),
            false => Cow::Borrowed(&sample.text),
        };
        let verdict = self.kind.check(&text, &problem.gold);
        let language = Language::of(&problem.problem);
        sample.language_consistency =
            language.map(|target| language::consistency(format::reasoning(&text), target).share());
        sample.correct = verdict.is_correct();
        sample.gold.clone_from(&problem.gold);
        sample.question.clone_from(&problem.problem);
        sample.verdict = verdict;
    }
}

/// All samples of the plan, those of the file and new ones, in order.
fn sample(
    plan: &Plan<'_>,
    engine: &mut dyn Engine,
    reporter: &dyn Reporter,
    stop: &Stop,
) -> Result<Vec<Sample>> {
    if plan.problems.is_empty() || plan.k == 0 {
        return Err(Error::input(format!(
            "suite `{}`: {} problems x {} samples: nothing to evaluate",
            plan.name,
            plan.problems.len(),
            plan.k
        )));
    }
    let keys = (0..plan.problems.len())
        .map(|problem| plan.key(problem))
        .collect::<Result<Vec<_>>>()?;
    let earlier = samples::read_lenient(plan.samples)?;
    let num_earlier = earlier.samples.len();
    let mut have: Vec<Option<Sample>> = Vec::new();
    have.resize_with(plan.problems.len() * plan.k, || None);
    for mut sample in earlier.samples {
        if sample.sample < plan.k && keys.get(sample.index) == Some(&sample.key) {
            plan.judge(&mut sample);
            let place = sample.index * plan.k + sample.sample;
            have[place] = Some(sample);
        }
    }
    let num_kept = have.iter().flatten().count();
    if num_kept > 0 {
        reporter.note(&format!(
            "`{}`: going on after {num_kept} samples of an earlier run",
            plan.name
        ));
    }
    if num_earlier > num_kept {
        reporter.note(&format!(
            "`{}`: {} samples in `{}` are of other weights, prompts or sampling and are left out",
            plan.name,
            num_earlier - num_kept,
            plan.samples.display()
        ));
    }
    let mut requests = Vec::new();
    for (place, sample) in have.iter().enumerate() {
        if sample.is_none() {
            let problem = place / plan.k;
            requests.push(Request {
                id: Plan::request_id(problem, place % plan.k),
                prompt: plan.asked[problem].prompt.clone(),
            });
        }
    }
    if requests.is_empty() && num_kept == num_earlier && !earlier.damaged {
        return Ok(have.into_iter().flatten().collect());
    }

    let task = reporter.task(plan.name, Some(have.len() as u64), "samples");
    task.set_position(num_kept as u64);
    let mut num_done = num_kept;
    let mut num_correct = have
        .iter()
        .flatten()
        .filter(|sample| sample.correct)
        .count();
    let mut log = samples::Log::begin(plan.samples, have.iter().flatten())?;
    engine.generate(
        &requests,
        plan.sampling,
        &mut |completion| {
            let index = (completion.id >> 20) as usize;
            let number = (completion.id & 0xf_ffff) as usize;
            let mut sample = Sample::new(
                &plan.problems[index].id,
                index,
                number,
                &keys[index],
                completion,
            );
            plan.judge(&mut sample);
            log.append(&sample)?;
            num_done += 1;
            num_correct += usize::from(sample.correct);
            task.set_position(num_done as u64);
            task.message(&format!(
                "{:.1}% correct",
                100.0 * num_correct as f64 / num_done as f64
            ));
            have[index * plan.k + number] = Some(sample);
            Ok(())
        },
        stop,
    )?;
    let samples: Vec<Sample> = have.into_iter().flatten().collect();
    log.finish(&samples)?;
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::generate::{Completion, FinishReason};
    use crate::progress::Silent;

    /// Answers with a number made of prompt and sample, and stops after so many completions.
    struct Oracle {
        num_asked: usize,
        fails_after: usize,
    }

    impl Engine for Oracle {
        fn generate(
            &mut self,
            requests: &[Request],
            _: &Sampling,
            on_done: &mut dyn FnMut(Completion) -> Result<()>,
            _: &Stop,
        ) -> Result<()> {
            // out of order, as an engine may
            for request in requests.iter().rev() {
                if self.num_asked == self.fails_after {
                    return Err(Error::Interrupted {
                        message: "enough".into(),
                    });
                }
                self.num_asked += 1;
                let answer = u64::from(request.prompt[0]) + (request.id & 0xf_ffff) % 2;
                on_done(Completion {
                    id: request.id,
                    tokens: vec![1; 5],
                    logprobs: vec![-1.0; 5],
                    sampled_logprobs: vec![-1.0; 5],
                    text: format!("so</think> \\boxed{{{answer}}}"),
                    finish_reason: FinishReason::Stop,
                })?;
            }
            Ok(())
        }
    }

    struct Bench {
        problems: Vec<Problem>,
        asked: Vec<Asked>,
        sampling: Sampling,
        folder: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let problem = |n: usize| Problem {
                id: format!("p{n}"),
                problem: String::new(),
                gold: n.to_string(),
            };
            Self {
                problems: (0..5).map(problem).collect(),
                asked: (0..5)
                    .map(|n| Asked {
                        prompt: vec![n, 9],
                        opens_thinking: true,
                    })
                    .collect(),
                sampling: Sampling::default(),
                folder: tempfile::tempdir().unwrap(),
            }
        }

        fn path(&self) -> std::path::PathBuf {
            self.folder.path().join("eval/samples.jsonl")
        }

        fn run(
            &self,
            k: usize,
            model_key: &str,
            fails_after: usize,
        ) -> (usize, Result<Vec<Sample>>) {
            let path = self.path();
            let plan = Plan {
                name: "bench",
                problems: &self.problems,
                asked: &self.asked,
                k,
                sampling: &self.sampling,
                kind: Kind::Number,
                model_key,
                samples: &path,
            };
            let mut oracle = Oracle {
                num_asked: 0,
                fails_after,
            };
            let samples = sample(&plan, &mut oracle, &Silent, &Stop::default());
            (oracle.num_asked, samples)
        }
    }

    #[test]
    fn samples_are_judged_and_written_in_order() {
        let bench = Bench::new();
        let (num_asked, samples) = bench.run(2, "m", usize::MAX);
        let samples = samples.unwrap();
        assert_eq!(num_asked, 10);
        let order: Vec<_> = samples
            .iter()
            .map(|s| (s.index, s.sample, s.correct))
            .collect();
        assert_eq!(
            order,
            (0..5)
                .flat_map(|n| [(n, 0, true), (n, 1, false)])
                .collect::<Vec<_>>()
        );
        assert_eq!(samples::read(&bench.path()).unwrap(), samples);
        let line = fs::read_to_string(bench.path())
            .unwrap()
            .lines()
            .next()
            .unwrap()
            .to_string();
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["problem"], "p0");
        assert_eq!(
            (&json["verdict"], &json["extracted"]),
            (&"correct".into(), &"0".into())
        );
        assert_eq!(json["finish_reason"], "stop");
    }

    #[test]
    fn a_stopped_run_goes_on() {
        let bench = Bench::new();
        let whole = Bench::new().run(2, "m", usize::MAX).1.unwrap();
        assert!(matches!(
            bench.run(2, "m", 4),
            (4, Err(Error::Interrupted { .. }))
        ));
        // killed while writing: the last line is cut
        let mut text = fs::read(bench.path()).unwrap();
        text.truncate(text.len() - 7);
        fs::write(bench.path(), text).unwrap();
        let (num_asked, samples) = bench.run(2, "m", usize::MAX);
        assert_eq!((num_asked, samples.unwrap()), (7, whole));
        // all there: nothing is asked; more samples a problem: only those; other weights: everything
        assert_eq!(bench.run(2, "m", 0).0, 0);
        assert_eq!(bench.run(3, "m", usize::MAX).0, 5);
        let (num_asked, samples) = bench.run(2, "other", usize::MAX);
        assert_eq!((num_asked, samples.unwrap().len()), (10, 10));
    }

    #[test]
    fn nothing_to_evaluate_is_an_error() {
        let mut bench = Bench::new();
        assert!(bench.run(0, "m", 0).1.is_err());
        bench.problems.clear();
        bench.asked.clear();
        assert!(
            bench
                .run(1, "m", 0)
                .1
                .unwrap_err()
                .to_string()
                .contains("0 problems")
        );
    }

    #[test]
    fn every_shipped_suite_can_be_run() {
        for name in crate::recipe::shipped::suite_names() {
            let suite = Suite::load(&name).unwrap();
            assert_eq!(suite.name, name);
            Kind::parse(&suite.verifier).unwrap();
            assert!(suite.prompt.template.contains("{problem}"), "{name}");
            assert!(suite.sampling.k > 0, "{name}");
        }
    }
}
