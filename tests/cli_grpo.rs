//! The `grpo` stage through the binary: what it leaves, killed in a rollout and in an update it ends the same bit for bit,
//! and whatever goes wrong stops it with one error, after which it goes on.
#![cfg(unix)]

mod cli_support;
mod judge_server;

use cli_support::{Place, failure, finished};
use judge_server::{Reply, Server, verdict};
use serde_json::{Value, json};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const STUDENT: &str = concat!("name = \"learns\"\n", small_student!(),);

/// Two updates a rollout, a reference that is renewed, samples and evaluations on the way.
const STAGE: &str = "
[[stage]]
name = \"rl\"
kind = \"grpo\"
[[stage.prompts]]
source = \"builtin:arithmetic\"
num_problems = 10
[[stage.rewards]]
name = \"cosine\"
max_length = 100
unit = \"characters\"
[[stage.rewards]]
name = \"accuracy\"
[stage.grpo]
num_steps = 24
num_prompts_per_step = 2
num_minibatches = 2
group_size = 4
max_new_tokens = 20
batch_size = 3
learning_rate = 3e-3
kl_coef = 0.05
reference_every_steps = 6
checkpoint_every_steps = 8
samples_every_steps = 4
num_sample_groups = 2
eval_every_steps = 8
[stage.eval]
suites = [\"arithmetic\"]
limit = 3
max_new_tokens = 12
";

const NUM_STEPS: usize = 24;

fn place() -> Place {
    let place = Place::new();
    place.file("learns.toml", format!("{STUDENT}{STAGE}"));
    place
}

fn rows(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let row = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    text.lines().map(row).collect()
}

/// The lines of `metrics.jsonl` without what a clock says.
fn metrics(run: &Path) -> Vec<Value> {
    let mut all = rows(&run.join("rl/metrics.jsonl"));
    for row in &mut all {
        let fields = row.as_object_mut().unwrap();
        fields.retain(|name, _| !name.ends_with("_s"));
    }
    all
}

/// What must not depend on interruptions.
fn assert_same(run: &Path, whole: &Path) {
    assert_eq!(metrics(run), metrics(whole));
    for file in [
        "rl/model/model.safetensors",
        "rl/rollouts.jsonl",
        "rl/eval/step-8/arithmetic/samples.jsonl",
        "rl/eval/step-24/arithmetic/samples.jsonl",
    ] {
        let read = |run: &Path| {
            std::fs::read(run.join(file))
                .unwrap_or_else(|e| panic!("{}: {file}: {e}", run.display()))
        };
        assert!(read(run) == read(whole), "{file} differs");
    }
}

fn num_lines(path: &Path) -> usize {
    std::fs::read(path).map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count())
}

/// Lines of the file of a rollout, whoever's it is.
fn num_groups(run: &Path, rollout: usize) -> usize {
    let begin = format!("rollout-{rollout:06}-");
    let files = std::fs::read_dir(run.join("rl/rollouts"));
    let files = files.into_iter().flatten().flatten();
    files
        .filter(|file| file.file_name().to_string_lossy().starts_with(&begin))
        .map(|file| num_lines(&file.path()))
        .sum()
}

fn wait_for(child: &mut Child, ready: impl Fn() -> bool) {
    let begun = Instant::now();
    while !ready() && child.try_wait().unwrap().is_none() {
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "nothing happens"
        );
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn run(place: &Place, dir: &str, set: &[&str]) -> cli_support::Run {
    place.run(&[&["--recipe", "learns.toml", "--run-dir", dir], set].concat())
}

fn works(place: &Place, dir: &str, set: &[&str]) {
    place.works(&[&["--recipe", "learns.toml", "--run-dir", dir], set].concat());
}

#[test]
fn killed_in_rollouts_and_updates_it_ends_the_same() {
    let place = place();
    works(&place, "whole", &[]);
    let whole = place.path().join("whole");
    what_it_leaves(&whole);

    let dir = place.path().join("killed");
    let log = dir.join("rl/metrics.jsonl");
    let kill = |what: &str, ready: &dyn Fn() -> bool| {
        let mut command = place.command(&["--recipe", "learns.toml", "--run-dir", "killed"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        wait_for(&mut child, ready);
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success(), "{what}: over before it was killed");
    };
    kill("in the first rollout", &|| num_groups(&dir, 0) >= 1);
    assert!(num_lines(&log) == 0 || num_groups(&dir, 0) == 4);
    kill("between the updates of a rollout", &|| num_lines(&log) >= 3);
    kill("in a rollout after a checkpoint", &|| {
        num_groups(&dir, 5) >= 2
    });
    kill("while it is evaluated", &|| {
        num_lines(&dir.join("rl/eval/step-16/arithmetic/samples.jsonl")) >= 1
    });
    kill("behind the renewed reference", &|| num_lines(&log) >= 19);
    kill("in the last rollout", &|| num_groups(&dir, 11) >= 3);
    works(&place, "killed", &[]);
    assert_same(&dir, &whole);

    // interrupted by a user: saved between two rollouts, and said
    let mut command = place.command(&["--recipe", "learns.toml", "--run-dir", "asked"]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let dir = place.path().join("asked");
    wait_for(&mut child, || num_lines(&dir.join("rl/metrics.jsonl")) >= 9);
    // SAFETY: a signal to a child of our own that has not been waited for
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    let stderr = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    let said = stderr.lines().rev().find(|l| l.starts_with("stopped: "));
    let said = said.unwrap_or_else(|| panic!("{stderr}"));
    let num_done = num_lines(&dir.join("rl/metrics.jsonl"));
    let expected = format!("stopped: after step {num_done} of {NUM_STEPS}, saved in");
    assert!(said.starts_with(&expected), "{said}");
    works(&place, "asked", &[]);
    assert_same(&dir, &whole);
}

/// Files of a finished run, and what stands in them.
fn what_it_leaves(run: &Path) {
    let steps = metrics(run);
    let numbers: Vec<usize> = steps
        .iter()
        .map(|s| s["step"].as_u64().unwrap() as usize)
        .collect();
    assert_eq!(numbers, (1..=NUM_STEPS).collect::<Vec<_>>());
    for (i, step) in steps.iter().enumerate() {
        let number = |key: &str| {
            step[key]
                .as_f64()
                .unwrap_or_else(|| panic!("{key} of {step}"))
        };
        assert_eq!(number("num_completions"), 8.0);
        // longer wrong answers are worth more to it
        assert!((-1.0..=1.0).contains(&step["rewards"]["cosine"].as_f64().unwrap()));
        let total = step["rewards"]["cosine"].as_f64().unwrap()
            + step["rewards"]["accuracy"].as_f64().unwrap();
        assert!((number("reward") - total).abs() < 1e-12);
        assert_eq!(
            number("pass_rate"),
            step["rewards"]["accuracy"].as_f64().unwrap()
        );
        assert!((1.0..=20.0).contains(&number("length")));
        assert!(number("grad_norm") > 0.0 && number("entropy") > 0.0);
        assert!(number("kl") >= 0.0);
        // sampled and learnt from by the same weights and kernels
        assert!(number("gap_max") < 1e-4);
        assert_eq!(step.get("held_out_accuracy").is_some(), (i + 1) % 8 == 0);
    }
    // a renewed reference is the policy
    let kl = |step: usize| steps[step - 1]["kl"].as_f64().unwrap();
    assert!(
        kl(1).abs() < 1e-9 && kl(6) > 1e-6 && kl(7).abs() < 1e-9,
        "{} {} {}",
        kl(1),
        kl(6),
        kl(7)
    );

    let samples = rows(&run.join("rl/rollouts.jsonl"));
    let at: Vec<u64> = samples
        .iter()
        .map(|s| s["step"].as_u64().unwrap())
        .collect();
    assert_eq!(at, [4, 8, 12, 16, 20, 24]);
    for group in samples.iter().flat_map(|s| s["groups"].as_array().unwrap()) {
        let completions = group["completions"].as_array().unwrap();
        assert_eq!(completions.len(), 4);
        assert_eq!(group["golds"].as_array().unwrap().len(), 1);
        let advantages: f64 = completions
            .iter()
            .map(|c| c["advantage"].as_f64().unwrap())
            .sum();
        assert!(advantages.abs() < 1e-9, "they are around the group's mean");
        let one = &completions[0];
        let parts = &one["parts"];
        let sum = parts["cosine"].as_f64().unwrap() + parts["accuracy"].as_f64().unwrap();
        assert!((one["reward"].as_f64().unwrap() - sum).abs() < 1e-12);
        assert!(one["correct"].is_boolean() && one["text"].is_string());
    }

    for step in [8, 16, 24] {
        let dir = run.join(format!("rl/eval/step-{step}/arithmetic"));
        let eval: Value =
            serde_json::from_slice(&std::fs::read(dir.join("eval.json")).unwrap()).unwrap();
        assert_eq!(eval["num_problems"], 3);
        assert_eq!(eval["pass@1"], steps[step - 1]["held_out_accuracy"]);
    }
    let files = std::fs::read_dir(run.join("rl")).unwrap().flatten();
    let events: Vec<u8> = files
        .filter(|f| f.file_name().to_string_lossy().contains("tfevents"))
        .flat_map(|f| std::fs::read(f.path()).unwrap())
        .collect();
    for tag in [
        "train/reward",
        "train/kl",
        "train/held_out_accuracy",
        "reward/cosine",
        "alarm/reward_hacking",
    ] {
        let found = events.windows(tag.len()).any(|w| w == tag.as_bytes());
        assert!(found, "no `{tag}` for TensorBoard");
    }
    let done: Value =
        serde_json::from_slice(&std::fs::read(run.join("rl/done.json")).unwrap()).unwrap();
    let result = &done["result"];
    assert_eq!(
        (
            &result["num_steps"],
            &result["num_rollouts"],
            &result["num_alarms"]
        ),
        (&json!(24), &json!(12), &json!(0))
    );
    assert_eq!(result["num_completions"], 12 * 4 * 4);
    // rollouts that were learnt from are gone
    let left = std::fs::read_dir(run.join("rl/rollouts")).unwrap().count();
    assert_eq!(left, 0);
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    for text in [
        "<b>Reward</b>",
        "<b>Response length</b>",
        "<summary>Samples of ",
    ] {
        assert!(page.contains(text), "`{text}` is not in the report");
    }
}

#[test]
fn a_judge_that_dies_stops_the_run_and_it_goes_on_when_it_is_back() {
    let place = Place::new();
    let dead = Arc::new(AtomicBool::new(false));
    let num_answers = Arc::new(AtomicUsize::new(0));
    let server = Server::start({
        let (dead, num_answers) = (dead.clone(), num_answers.clone());
        move |_, request| {
            if dead.load(Ordering::SeqCst) {
                return Reply::Status(500, "", "out of memory".into());
            }
            if num_answers.fetch_add(1, Ordering::SeqCst) == 10 {
                dead.store(true, Ordering::SeqCst);
            }
            verdict(request.part("candidate answer").len().is_multiple_of(2))
        }
    });
    let judge = format!(
        "name = \"judge\"\nurl = \"{}\"\nmodel = \"j\"\nkey_variable = \"NO_SUCH_KEY\"\nmax_retries = 1\nbackoff_s = 0.01\nconcurrency = 2\n",
        server.url
    );
    let cosine = "name = \"cosine\"\nmax_length = 100\nunit = \"characters\"\n";
    let stage = STAGE
        .replace("name = \"accuracy\"\n", &judge)
        .replace(cosine, "name = \"repetition_penalty\"\n");
    // short thinking, so that some answers come to an end and are judged
    let stage = stage.replace("max_new_tokens = 20", "max_new_tokens = 60");
    place.file("learns.toml", format!("{STUDENT}{stage}"));
    let (error, hint) = failure(run(&place, "r", &[]));
    assert!(
        error.starts_with("stage `rl`: step ") || error.starts_with("step "),
        "{error}"
    );
    assert!(error.contains("500"), "{error}");
    assert!(hint.contains("the same command goes on"), "{hint}");
    let log = place.path().join("r/rl/metrics.jsonl");
    let num_before = num_lines(&log);
    assert!(num_before < NUM_STEPS, "it is not over");

    // still dead: nothing is lost, nothing is sampled twice
    failure(run(&place, "r", &[]));
    assert_eq!(num_lines(&log), num_before);
    dead.store(false, Ordering::SeqCst);
    works(&place, "r", &[]);
    let steps = metrics(&place.path().join("r"));
    assert_eq!(steps.len(), NUM_STEPS);
    // no verifier is asked: the judge says what is right
    assert!(
        steps
            .iter()
            .any(|s| s["pass_rate"].as_f64().is_some_and(|p| p > 0.0))
    );

    // as if it had never died
    works(&place, "whole", &[]);
    assert_same(&place.path().join("r"), &place.path().join("whole"));
}

#[test]
fn a_reward_that_fails_names_the_prompt() {
    let place = Place::new();
    let prompts = [
        json!({"id": "good", "question": "1+1?", "answer": "2"}),
        json!({"id": "bad", "question": "1+2?", "answer": "3", "tests": 3}),
    ];
    place.file(
        "prompts.jsonl",
        prompts.map(|row| row.to_string() + "\n").concat(),
    );
    let stage = STAGE
        .replace(
            "source = \"builtin:arithmetic\"\nnum_problems = 10",
            "source = \"prompts.jsonl\"",
        )
        .replace("name = \"accuracy\"", "name = \"code\"");
    place.file("learns.toml", format!("{STUDENT}{stage}"));
    let (error, _) = failure(run(&place, "r", &[]));
    assert!(error.contains("step 1: prompt `bad`: "), "{error}");
}

#[test]
fn what_is_no_number_stops_before_the_weights_are_touched() {
    let place = place();
    let absurd = ["--set", "stage.rl.grpo.learning_rate=1e30"];
    let (error, hint) = failure(run(&place, "r", &absurd));
    let step = error
        .strip_prefix("step ")
        .and_then(|rest| rest.split_once(':'));
    let step: usize = step.unwrap_or_else(|| panic!("{error}")).0.parse().unwrap();
    assert!(error.contains("completion "), "{error}");
    assert!(error.contains(" of prompt `"), "{error}");
    assert!(
        error.contains("the weights are as they were before the step"),
        "{error}"
    );
    assert!(hint.contains("`grpo.learning_rate`"), "{hint}");
    let dir = place.path().join("r/rl");
    assert_eq!(num_lines(&dir.join("metrics.jsonl")), step - 1);
    let names = std::fs::read_dir(&dir).unwrap().flatten();
    let names: Vec<String> = names
        .map(|f| f.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(
        !names.iter().any(|n| n.starts_with("checkpoint-")),
        "nothing of it is saved: {names:?}"
    );

    // one update a rollout: it shows in the next one's samples
    let one = [&absurd[..], &["--set", "stage.rl.grpo.num_minibatches=1"]].concat();
    let (error, _) = failure(run(&place, "one", &one));
    assert!(error.starts_with("step "), "{error}");
    assert!(error.contains("not finite"), "{error}");
}

#[test]
fn a_full_disk_is_told_and_it_goes_on_afterwards() {
    let place = place();
    works(&place, "whole", &[]);
    let args = ["--recipe", "learns.toml", "--run-dir", "r"];
    // the metrics, then the checkpoint's weights: no file may grow over so many bytes
    for bytes in [2 << 10, 40 << 10] {
        let mut command = place.command(&args);
        // SAFETY: only calls that are safe between fork and exec
        unsafe {
            command.pre_exec(move || {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                let limit = libc::rlimit {
                    rlim_cur: bytes,
                    rlim_max: bytes,
                };
                match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let (error, _) = failure(finished(command));
        assert!(
            error.contains("writing `r/") && error.contains("File too large"),
            "{bytes}: {error}"
        );
    }
    place.works(&args);
    assert_same(&place.path().join("r"), &place.path().join("whole"));
}

#[test]
fn its_memory_is_planned() {
    let place = place();
    let run = place.works(&["plan", "--recipe", "learns.toml", "--json"]);
    let stages: Value = serde_json::from_str(&run.stdout).unwrap();
    let estimate = &stages[0]["estimate"];
    let memory = |part: &str| estimate["memory"][part].as_u64().unwrap();
    let weights = memory("weights");
    assert!(weights > 0);
    assert_eq!(memory("gradients"), weights);
    assert_eq!(memory("optimizer"), 2 * weights);
    // compared with by the KL term
    assert_eq!(memory("reference"), weights);
    assert!(memory("kv_cache") > 0 && memory("rollout") > 0 && memory("activations") > 0);
    let without = ["--set", "stage.rl.grpo.kl_coef=0.0"];
    let args = [&["plan", "--recipe", "learns.toml", "--json"], &without[..]].concat();
    let stages: Value = serde_json::from_str(&place.works(&args).stdout).unwrap();
    assert_eq!(stages[0]["estimate"]["memory"]["reference"], 0);
    let args = ["plan", "--recipe", "learns.toml", "--device-memory", "1MiB"];
    let shown = place.works(&args).stdout;
    assert!(shown.contains("does not fit"), "{shown}");
}

/// A reward model of right and wrong answers, and a policy that learns from its word on every line.
#[test]
fn steps_are_rewarded_by_a_model_of_the_same_recipe() {
    let place = Place::new();
    let answer = |i: usize, last: &str, correct: bool| json!({"text": format!("<think>\n{i} + 1 = {}\n</think>\n\n{last}", i + 1), "tokens": 20, "finish_reason": "stop", "correct": correct});
    let rows = (0..16).map(|i| {
        let question = format!("What is {i} + 1?");
        let generations = [answer(i, "no", false), answer(i, "yes", true)];
        json!({"id": format!("p{i}"), "question": question, "messages": [{"role": "user", "content": question}], "generations": generations}).to_string() + "\n"
    });
    place.file("samples.jsonl", rows.collect::<String>());
    let scorer = "
[[stage]]
name = \"scorer\"
kind = \"reward-model\"
samples = \"samples.jsonl\"
[stage.reward_model]
learning_rate = 3e-3
batch_size = 4
max_length = 256
scope = \"all\"
[stage.reward_model.build]
by = \"correct\"
";
    let cosine = "name = \"cosine\"\nmax_length = 100\nunit = \"characters\"\n";
    let steps = "name = \"reward_model\"\nmodel = \"@scorer\"\nsteps = true\n";
    let stage = STAGE
        .replace(cosine, steps)
        .replace(
            "learning_rate = 3e-3",
            "learning_rate = 3e-3\nsupervision = \"process\"\nstep_separator = \" \"",
        )
        .replace("num_steps = 24", "num_steps = 4");
    place.file("learns.toml", format!("{STUDENT}{scorer}{stage}"));
    works(&place, "r", &[]);
    let run = place.path().join("r");
    for step in metrics(&run) {
        assert!(step["num_reward_steps"].as_f64().unwrap() >= 1.0, "{step}");
        let mean = step["rewards"]["reward_model"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&mean));
        assert!(step["grad_norm"].as_f64().unwrap() > 0.0);
    }
    let samples = rows_of_all(&run);
    assert!(
        samples
            .iter()
            .any(|one| one["advantage"].as_f64().unwrap() != 0.0)
    );

    // what does not go together is told before anything runs
    for (from, to, message) in [
        ("steps = true\n", "", "needs a reward of steps"),
        ("supervision = \"process\"\n", "", "means nothing under"),
        (
            "step_separator = \" \"",
            "ratio = \"sequence\"",
            "tells tokens apart",
        ),
    ] {
        place.file(
            "learns.toml",
            format!("{STUDENT}{scorer}{}", stage.replace(from, to)),
        );
        let (error, hint) = failure(run_dry(&place));
        assert!(error.contains(message), "{error}");
        assert!(!hint.is_empty());
    }
}

/// All completions of `rollouts.jsonl`.
fn rows_of_all(run: &Path) -> Vec<Value> {
    rows(&run.join("rl/rollouts.jsonl"))
        .iter()
        .flat_map(|row| row["groups"].as_array().unwrap().clone())
        .flat_map(|group| group["completions"].as_array().unwrap().clone())
        .collect()
}

fn run_dry(place: &Place) -> cli_support::Run {
    place.run(&["--recipe", "learns.toml", "--dry-run"])
}
