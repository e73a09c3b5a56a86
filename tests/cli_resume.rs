//! A run that is killed goes on and ends as if nothing had happened, bit for bit. The process is really killed.

mod cli_support;

use cli_support::Place;
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const RECIPE: &str = concat!(
    "name = \"small\"\n",
    small_student!(),
    "
[[traces]]
source = \"builtin:arithmetic\"
num_problems = 120

[sft]
epochs = 2
learning_rate = 3e-3
batch_size = 4
max_length = 512
warmup_ratio = 0.1
checkpoint_every_steps = 7

[eval]
suites = [\"arithmetic\"]
limit = 6
max_new_tokens = 24
before = true
",
);

const NUM_STEPS: u64 = 60;

fn place() -> Place {
    let place = Place::new();
    place.file("small.toml", RECIPE);
    place
}

/// What must not depend on interruptions.
fn result(run: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for file in [
        "sft/model/model.safetensors",
        "sft/model/config.json",
        "eval-before/samples.jsonl",
        "eval/samples.jsonl",
    ] {
        let bytes = std::fs::read(run.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        files.push((file.to_string(), bytes));
    }
    files
}

/// The lines of `metrics.jsonl` without what a clock says.
fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("sft/metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut step: Value =
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
            let fields = step.as_object_mut().unwrap();
            fields.retain(|name, _| {
                [
                    "step",
                    "epoch",
                    "loss",
                    "grad_norm",
                    "learning_rate",
                    "num_tokens",
                ]
                .contains(&name.as_str())
            });
            step
        })
        .collect()
}

fn num_lines(path: &Path) -> usize {
    std::fs::read(path).map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count())
}

/// Waits until `ready`, or the process has ended.
fn wait_for(child: &mut Child, ready: impl Fn() -> bool) {
    let begun = Instant::now();
    while !ready() && child.try_wait().unwrap().is_none() {
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "nothing happens"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn start(place: &Place, run_dir: &str) -> Child {
    let mut command = place.command(&["--recipe", "small.toml", "--run-dir", run_dir]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn killed_at_any_moment_a_run_ends_the_same() {
    let place = place();
    place.works(&["--recipe", "small.toml", "--run-dir", "whole"]);
    let whole = place.path().join("whole");
    let steps = metrics(&whole);
    let numbers: Vec<u64> = steps.iter().map(|s| s["step"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=NUM_STEPS).collect::<Vec<_>>());

    // one folder is killed again and again; moments within stages, and some that nobody chose
    let run = place.path().join("killed");
    let log = run.join("sft/metrics.jsonl");
    let has = |file: &str| run.join(file).exists();
    let kill = |what: &str, ready: &dyn Fn() -> bool, delay_ms: u64| {
        let mut child = start(&place, "killed");
        wait_for(&mut child, ready);
        std::thread::sleep(Duration::from_millis(delay_ms));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success(), "{what}: over before it was killed");
    };
    kill("at the start", &|| has("plan.json"), 0);
    kill("while the data is read", &|| has("data"), 0);
    kill(
        "while the student is evaluated",
        &|| num_lines(&run.join("eval-before/samples.jsonl")) > 1,
        0,
    );
    kill("before the first checkpoint", &|| num_lines(&log) >= 3, 0);
    kill("at a checkpoint", &|| has("sft/checkpoint-14"), 0);
    kill("after a checkpoint", &|| num_lines(&log) >= 24, 0);
    kill(
        "while a checkpoint is written",
        &|| num_lines(&log) >= 35,
        0,
    );
    kill("at the end", &|| num_lines(&log) >= 60, 0);
    place.works(&["--recipe", "small.toml", "--run-dir", "killed"]);
    assert_eq!(metrics(&run), steps);
    for ((name, found), (_, want)) in result(&run).iter().zip(&result(&whole)) {
        assert!(found == want, "{name} differs");
    }

    // finished: nothing runs again
    let before = std::fs::metadata(run.join("sft/model/model.safetensors"))
        .unwrap()
        .modified()
        .unwrap();
    place.works(&["--recipe", "small.toml", "--run-dir", "killed"]);
    let after = std::fs::metadata(run.join("sft/model/model.safetensors"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(before, after);
}

#[test]
fn ctrl_c_saves_and_says_how_to_go_on() {
    let place = place();
    let mut command = place.command(&["--recipe", "small.toml", "--run-dir", "r"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let log = place.path().join("r/sft/metrics.jsonl");
    wait_for(&mut child, || num_lines(&log) >= 3);
    // SAFETY: a signal to a child of our own that has not been waited for
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        (output.status.code(), output.stdout.len()),
        (Some(1), 0),
        "{stderr}"
    );
    let last = stderr
        .lines()
        .rev()
        .find(|l| l.starts_with("stopped: "))
        .unwrap_or_else(|| panic!("{stderr}"));
    assert!(last.contains("same command"), "{last}");
    let num_done = num_lines(&log) as u64;
    assert!((3..NUM_STEPS).contains(&num_done), "{num_done} steps");
    assert!(
        place
            .path()
            .join(format!("r/sft/checkpoint-{num_done}"))
            .is_dir(),
        "step {num_done} is saved"
    );
    place.works(&["--recipe", "small.toml", "--run-dir", "r"]);
    assert_eq!(num_lines(&log) as u64, NUM_STEPS);
}

#[test]
fn a_run_folder_serves_one_recipe_and_one_process() {
    let place = place();
    let mut child = start(&place, "r");
    let log = place.path().join("r/sft/metrics.jsonl");
    wait_for(&mut child, || num_lines(&log) >= 1);
    let (error, hint) = place.fails(&["--recipe", "small.toml", "--run-dir", "r"]);
    assert_eq!(error, "another `distill` is running in `r`");
    assert!(hint.contains("--run-dir"), "{hint}");
    child.kill().unwrap();
    child.wait().unwrap();

    place.file("other.toml", RECIPE.replace("\"small\"", "\"other\""));
    let (error, hint) = place.fails(&["--recipe", "other.toml", "--run-dir", "r"]);
    assert_eq!(
        error,
        "`r` is the run folder of recipe `small`, not of `other`"
    );
    assert!(hint.contains("--run-dir"), "{hint}");
    place.works(&[
        "--recipe",
        "other.toml",
        "--run-dir",
        "r",
        "--fresh",
        "--set",
        "sft.max_steps=2",
    ]);
    assert_eq!(num_lines(&log), 2);
}

#[test]
fn other_settings_are_refused_and_leave_the_folder_as_it_was() {
    let place = place();
    let args = [
        "--recipe",
        "small.toml",
        "--run-dir",
        "run",
        "--set",
        "sft.max_steps=3",
    ];
    place.works(&args);
    let before = place.read("run/plan.json");
    let (error, hint) =
        place.fails(&[args.as_slice(), &["--set", "sft.learning_rate=0.001"]].concat());
    assert!(
        error.contains(
            "holds a training with other settings: `sft.learning_rate` was 0.003, is 0.001"
        ),
        "{error}"
    );
    assert!(hint.contains("--fresh"), "{hint}");
    assert_eq!(place.read("run/plan.json"), before);
    // how often it is saved changes nothing
    place.works(&[args.as_slice(), &["--set", "sft.checkpoint_every_steps=2"]].concat());
    // other rows do, and `--fresh` starts over
    let (error, _) =
        place.fails(&[args.as_slice(), &["--set", "traces.0.num_problems=100"]].concat());
    assert!(
        error.contains("the traces, or how they are made into rows"),
        "{error}"
    );
    let plan = place.read("run/plan.json");
    assert!(
        !plan.contains("\"num_problems\": 100"),
        "a refused run was written down"
    );
    place.works(
        &[
            args.as_slice(),
            &["--fresh", "--set", "sft.learning_rate=0.001"],
        ]
        .concat(),
    );
}

#[test]
fn a_run_that_does_not_fit_is_refused_and_can_be_forced() {
    let place = place();
    let small = ["--recipe", "small.toml", "--device-memory", "16MiB"];
    let (error, hint) = place.fails(&small);
    assert!(
        error.starts_with("the run takes ")
            && error
                .contains(" at its peak, and 16 MiB of memory may be used: program and allocator "),
        "{error}"
    );
    assert!(error.contains(", optimiser states "), "{error}");
    assert!(hint.ends_with("or run it anyway with `--force`"), "{hint}");
    assert!(!place.path().join("runs/small").exists());
    let forced = [&small[..], &["--force", "--set", "sft.max_steps=1"]].concat();
    let run = place.works(&forced);
    assert!(run.stderr.contains("the run takes "), "{}", run.stderr);
    // what is finished is not refused
    let again = [&small[..], &["--set", "sft.max_steps=1"]].concat();
    place.works(&again);
}
