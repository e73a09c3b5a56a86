//! Pipelines of several stages through the binary: killed in every stage they end the same, a changed stage is run again
//! with what depends on it and nothing else, and mistakes are told before anything runs.

mod cli_support;

use cli_support::Place;
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

const RECIPE: &str = concat!(
    "name = \"small\"\n",
    small_student!(),
    "
[[stage]]
name = \"cold\"
kind = \"sft\"
[[stage.traces]]
source = \"builtin:arithmetic\"
num_problems = 120
[stage.sft]
epochs = 1
learning_rate = 3e-3
batch_size = 4
max_length = 512
checkpoint_every_steps = 7

[[stage]]
name = \"samples\"
kind = \"generate\"
model = \"@cold\"
[[stage.prompts]]
source = \"builtin:arithmetic\"
num_problems = 40
[stage.sampling]
num_samples = 3
max_new_tokens = 24
batch_size = 8
[[stage.rewards]]
name = \"accuracy\"
[[stage.rewards]]
name = \"tag_count\"
weight = 0.5

[[stage]]
name = \"chosen\"
kind = \"select\"
samples = \"@samples\"
[stage.select]
accept = \"any\"
drop_truncated = false
drop_flags = []
max_per_problem = 2
[[stage.mix]]
source = \"builtin:arithmetic\"
num_problems = 500
weight = 0.5

[[stage]]
name = \"final\"
kind = \"sft\"
traces = \"@chosen\"
[stage.sft]
epochs = 1
learning_rate = 2e-3
batch_size = 4
max_length = 512
checkpoint_every_steps = 7

[[stage]]
name = \"judged\"
kind = \"eval\"
model = \"@final\"
[stage.eval]
suites = [\"arithmetic\"]
limit = 6
max_new_tokens = 24
",
);

const STAGES: [&str; 5] = ["cold", "samples", "chosen", "final", "judged"];

fn place() -> Place {
    let place = Place::new();
    place.file("small.toml", RECIPE);
    place
}

/// What must not depend on interruptions.
fn result(run: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for file in [
        "cold/model/model.safetensors",
        "samples/generations.jsonl",
        "chosen/traces.jsonl",
        "chosen/select.json",
        "final/model/model.safetensors",
        "judged/samples.jsonl",
    ] {
        let bytes = std::fs::read(run.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        files.push((file.to_string(), bytes));
    }
    files
}

fn num_lines(path: &Path) -> usize {
    std::fs::read(path).map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count())
}

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

/// When each stage was finished.
fn finished(run: &Path) -> Vec<SystemTime> {
    let at = |stage: &&str| std::fs::metadata(run.join(stage).join("done.json")).unwrap();
    STAGES
        .iter()
        .map(|stage| at(stage).modified().unwrap())
        .collect()
}

/// The stages that were finished anew between two looks.
fn reran(before: &[SystemTime], after: &[SystemTime]) -> Vec<&'static str> {
    let pairs = before.iter().zip(after).zip(STAGES);
    pairs.filter(|((b, a), _)| b != a).map(|(_, s)| s).collect()
}

#[test]
fn killed_in_every_stage_a_pipeline_ends_the_same() {
    let place = place();
    place.works(&["--recipe", "small.toml", "--run-dir", "whole"]);
    let whole = place.path().join("whole");
    let run = place.path().join("killed");
    let has = |file: &str| run.join(file).exists();
    let lines = |file: &str| num_lines(&run.join(file));
    let kill = |what: &str, ready: &dyn Fn() -> bool| {
        let mut command = place.command(&["--recipe", "small.toml", "--run-dir", "killed"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        wait_for(&mut child, ready);
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success(), "{what}: over before it was killed");
    };
    kill("at the start", &|| has("plan.json"));
    kill("in the first training", &|| lines("cold/metrics.jsonl") > 9);
    kill("among samples", &|| lines("samples/generations.jsonl") > 4);
    assert!(!has("samples/done.json"));
    kill("among samples again", &|| {
        lines("samples/generations.jsonl") > 20
    });
    kill("while it selects", &|| has("chosen"));
    kill("in the second training", &|| {
        lines("final/metrics.jsonl") > 9
    });
    kill("among evaluated samples", &|| {
        lines("judged/samples.jsonl") > 1
    });
    place.works(&["--recipe", "small.toml", "--run-dir", "killed"]);
    for ((name, found), (_, want)) in result(&run).iter().zip(&result(&whole)) {
        assert!(found == want, "{name} differs");
    }

    // what the stages say of themselves
    let counts: Value = serde_json::from_str(&place.read("whole/chosen/select.json")).unwrap();
    let number = |key: &str| counts[key].as_u64().unwrap();
    let dropped: u64 = counts["dropped"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["count"].as_u64().unwrap())
        .sum();
    assert_eq!((number("num_prompts"), number("num_samples")), (40, 120));
    assert_eq!(number("num_kept") + dropped, 120);
    let num_mixed = counts["mix"][0]["num_traces"].as_u64().unwrap();
    assert_eq!(num_mixed, number("num_kept").div_ceil(2));
    assert_eq!(number("num_traces"), number("num_kept") + num_mixed);
    assert_eq!(
        num_lines(&whole.join("chosen/traces.jsonl")) as u64,
        number("num_traces")
    );
    let row: Value = serde_json::from_str(
        place
            .read("whole/samples/generations.jsonl")
            .lines()
            .next()
            .unwrap(),
    )
    .unwrap();
    assert_eq!(row["generations"].as_array().unwrap().len(), 3);
    let one = &row["generations"][0];
    assert!(
        one["reward"].is_f64() && one["correct"].is_boolean(),
        "{one}"
    );
    assert!(one["parts"]["tag_count"].is_f64(), "{one}");

    // finished: nothing runs again
    let before = self::finished(&run);
    place.works(&["--recipe", "small.toml", "--run-dir", "killed"]);
    assert_eq!(reran(&before, &self::finished(&run)), [""; 0]);
}

#[test]
fn ctrl_c_among_samples_keeps_whole_rows_and_goes_on() {
    let place = place();
    let more = ["--set", "stage.samples.prompts.0.num_problems=2000"];
    let args = |dir| {
        [
            ["--recipe", "small.toml", "--run-dir", dir].as_slice(),
            &more,
        ]
        .concat()
    };
    let mut command = place.command(&args("run"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let rows = place.path().join("run/samples/generations.jsonl");
    wait_for(&mut child, || num_lines(&rows) > 30);
    // SAFETY: a signal to a child of our own that has not been waited for
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let last = stderr.lines().rev().find(|l| l.starts_with("stopped: "));
    assert_eq!(
        last,
        Some("stopped: the same command goes on in `run`"),
        "{stderr}"
    );
    let num_kept = num_lines(&rows);
    assert!((31..2000).contains(&num_kept), "{num_kept} rows");
    let run = place.works(&args("run"));
    let note = format!("going on after {num_kept} of 2000 prompts");
    assert!(run.stderr.contains(&note), "{}", run.stderr);
    place.works(&args("whole"));
    assert_eq!(
        std::fs::read(&rows).unwrap(),
        std::fs::read(place.path().join("whole/samples/generations.jsonl")).unwrap()
    );
}

#[test]
fn a_changed_stage_runs_again_with_what_depends_on_it() {
    let place = place();
    let call = |more: &[&str]| {
        let base = ["--recipe", "small.toml", "--run-dir", "run"];
        place.command(&[base.as_slice(), more].concat())
    };
    let works = |more: &[&str]| {
        let run = cli_support::finished(call(more));
        assert_eq!(run.code, Some(0), "{more:?}: {}", run.stderr);
    };
    let run = place.path().join("run");
    works(&[]);
    let first = finished(&run);

    // an evaluation costs nothing that matters: it runs anew by itself
    works(&["--set", "stage.judged.eval.limit=5"]);
    let second = finished(&run);
    assert_eq!(reran(&first, &second), ["judged"]);
    works(&[]);

    // a training does: it is refused, and nothing has changed
    let before = place.read("run/plan.json");
    let changed = ["--set", "stage.final.sft.learning_rate=0.001"];
    let (error, hint) = cli_support::failure(cli_support::finished(call(&changed)));
    assert_eq!(
        error,
        "stage `final` was run with other settings: `sft.learning_rate` was 0.002, is 0.001"
    );
    assert!(hint.starts_with("`--rerun final` throws away"), "{hint}");
    assert_eq!(place.read("run/plan.json"), before);
    let second = finished(&run);
    works(&[changed.as_slice(), &["--rerun", "final"]].concat());
    let third = finished(&run);
    assert_eq!(reran(&second, &third), ["final", "judged"]);

    // how often it is saved changes nothing
    works(&[
        "--set",
        "stage.final.sft.learning_rate=0.001",
        "--set",
        "stage.final.sft.checkpoint_every_steps=3",
    ]);
    assert_eq!(reran(&third, &finished(&run)), [""; 0]);

    // a change further up: the stage that has changed is named, and those that use it
    let changed = [
        "--set",
        "stage.final.sft.learning_rate=0.001",
        "--set",
        "stage.chosen.select.max_per_problem=1",
    ];
    let (error, hint) = cli_support::failure(cli_support::finished(call(&changed)));
    assert_eq!(
        error,
        "stage `chosen` was run with other settings: `select.max_per_problem` was 2, is 1; what it left is used by `final`"
    );
    assert!(hint.starts_with("`--rerun chosen`"), "{hint}");
    works(&[changed.as_slice(), &["--rerun", "chosen"]].concat());
    assert_eq!(
        reran(&third, &finished(&run)),
        ["chosen", "final", "judged"]
    );
    let fourth = finished(&run);
    // asked for, a stage runs again as it is, with those that depend on it
    works(&[changed.as_slice(), &["--rerun", "samples"]].concat());
    assert_eq!(
        reran(&fourth, &finished(&run)),
        ["samples", "chosen", "final", "judged"]
    );
    let (error, hint) = place.fails(&["--recipe", "small.toml", "--rerun", "chozen"]);
    assert_eq!(error, "`--rerun chozen`: no such stage");
    assert_eq!(hint, "did you mean `chosen`?");
}

#[test]
fn mistakes_are_told_before_anything_runs() {
    let place = place();
    let with = |old: &str, new: &str| {
        assert!(RECIPE.contains(old), "{old}");
        place.file("wrong.toml", RECIPE.replacen(old, new, 1));
        place.fails(&["--recipe", "wrong.toml", "--dry-run"])
    };
    for (old, new, error, hint) in [
        (
            "model = \"@cold\"",
            "model = \"@colt\"",
            "stage `samples`: `model = \"@colt\"`: no such stage",
            "did you mean `@cold`?",
        ),
        (
            "model = \"@cold\"",
            "model = \"@final\"",
            "stage `samples`: `model = \"@final\"` comes later",
            "a stage may only start from earlier ones, so that there are no cycles: change the order of the stages",
        ),
        (
            "samples = \"@samples\"",
            "samples = \"@chosen\"",
            "stage `chosen`: `samples = \"@chosen\"` is the stage itself",
            "a stage may only start from earlier ones, so that there are no cycles: change the order of the stages",
        ),
        (
            "traces = \"@chosen\"",
            "traces = \"@samples\"",
            "stage `final`: `traces = \"@samples\"`: stage `samples` is of kind `generate` and leaves samples, not traces",
            "put a `select` stage between, which says what of the samples is learnt",
        ),
        (
            "model = \"@final\"",
            "model = \"@chosen\"",
            "stage `judged`: `model = \"@chosen\"`: stage `chosen` is of kind `select` and leaves traces, not model",
            "name a stage of kind `sft`, `grpo` or `preference`",
        ),
        (
            "name = \"judged\"",
            "name = \"final\"",
            "two stages are called `final`",
            "the name is the stage's folder: give one of them another",
        ),
        (
            "name = \"judged\"",
            "name = \"a.b\"",
            "`a.b` cannot name a stage",
            "use letters, digits, `-` and `_`, and not only digits",
        ),
        (
            "kind = \"eval\"",
            "kind = \"evla\"",
            "`wrong.toml` line 70: unknown value `evla` in `stage.kind`",
            "did you mean `eval`?",
        ),
        (
            "limit = 6",
            "limits = 6",
            "`wrong.toml` line 74: unknown key `limits` in `stage.eval`",
            "did you mean `limit`?",
        ),
        (
            "learning_rate = 2e-3",
            "learning_rate = \"high\"",
            "`wrong.toml` line 63: invalid type: string \"high\", expected a number in `stage.sft.learning_rate`",
            "",
        ),
        (
            "[stage.eval]",
            "[stage.sft]\nepochs = 2\n[stage.eval]",
            "stage `judged`: `sft` means nothing to a stage of kind `eval`",
            "it belongs to stages of kind `sft`",
        ),
        (
            "samples = \"@samples\"\n",
            "",
            "stage `chosen`: a stage of kind `select` needs `samples`",
            "add `samples = \"@stage\"`, or a file",
        ),
        (
            "[[stage]]\nname = \"cold\"",
            "[sft]\nepochs = 1\n[[stage]]\nname = \"cold\"",
            "`wrong.toml`: a recipe of stages has no `sft` of its own",
            "put it into the stage it is for: `[stage.sft]`, after its `[[stage]]`",
        ),
    ] {
        let (found_error, found_hint) = with(old, new);
        assert_eq!((found_error.as_str(), found_hint.as_str()), (error, hint));
    }
    place.file(
        "wrong.toml",
        "name = \"x\"\n[[stages]]\nname = \"a\"\nkind = \"eval\"\n",
    );
    let (error, hint) = place.fails(&["--recipe", "wrong.toml", "--dry-run"]);
    assert_eq!(error, "`wrong.toml` line 2: unknown key `stages`");
    assert_eq!(hint, "did you mean `stage`?");
    for (set, error, hint) in [
        (
            "stage.colt.sft.epochs=1",
            "`--set stage.colt.sft.epochs=1`: `colt` is neither a table nor an entry of a list",
            "did you mean `cold`?",
        ),
        (
            "stage.cold.sft.epohcs=1",
            "`small.toml` (from `--set`): unknown key `epohcs` in `stage.sft`",
            "did you mean `epochs`?",
        ),
    ] {
        let (found_error, found_hint) =
            place.fails(&["--recipe", "small.toml", "--dry-run", "--set", set]);
        assert_eq!((found_error.as_str(), found_hint.as_str()), (error, hint));
    }
    assert!(!place.path().join("runs").exists());
}

#[test]
fn a_pipeline_is_shown_planned_and_previewed() {
    let place = place();
    let run = place.works(&["--recipe", "small.toml", "--dry-run"]);
    for part in [
        "  1. cold     sft\n",
        "  2. samples  generate\n     model     @cold\n",
        "     select    accept any, at most 2 a problem (shortest first)\n",
        "     mix       builtin:arithmetic, 0.5 for each selected trace\n",
        "  5. judged   eval\n     model     @final\n",
    ] {
        assert!(run.stdout.contains(part), "{part:?} in {}", run.stdout);
    }
    let set = ["--set", "stage.judged.eval.seeds=[1,2]"];
    let run = place.works(
        &[
            ["--recipe", "small.toml", "--dry-run", "--json"].as_slice(),
            &set,
        ]
        .concat(),
    );
    let plan: Value = serde_json::from_str(&run.stdout).unwrap();
    let names: Vec<&str> = plan["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["name"].as_str().unwrap())
        .collect();
    assert_eq!(names[4..], ["judged-seed1", "judged-seed2"]);

    let run = place.works(&["plan", "--recipe", "small.toml", "--device-memory", "1MiB"]);
    assert!(run.stdout.contains("30 steps"), "{}", run.stdout);
    assert!(run.stdout.contains("does not fit"), "{}", run.stdout);
    let run = place.works(&["preview", "--recipe", "small.toml", "--n", "1"]);
    assert!(run.stdout.contains("⟦"), "{}", run.stdout);
    let (error, _) = place.fails(&["preview", "--recipe", "small.toml", "--stage", "final"]);
    assert_eq!(
        error,
        "stage `final` learns from `@chosen`, which has not run yet in `runs/small`"
    );
}

#[test]
fn a_stage_that_does_not_fit_is_refused_before_anything_runs() {
    let place = place();
    let small = ["--recipe", "small.toml", "--device-memory", "16MiB"];
    let (error, hint) = place.fails(&small);
    assert!(
        error.starts_with("stage `cold` takes ") && error.contains(" MiB of memory may be used: "),
        "{error}"
    );
    assert!(error.contains("program and allocator "), "{error}");
    assert!(hint.ends_with("or run it anyway with `--force`"), "{hint}");
    assert!(!place.path().join("runs/small").exists());
}

#[test]
fn sources_are_mixed_by_weight_and_selected_problems_are_asked_again() {
    let place = place();
    let more = "[[stage]]
name = \"again\"
kind = \"generate\"
model = \"@final\"
prompts = \"@chosen\"
seed = 5
[stage.sampling]
num_samples = 1
max_new_tokens = 4
";
    let mixed = "traces = [\"@chosen\", { source = \"builtin:arithmetic\", num_problems = 300, weight = 0.25 }]";
    let recipe = RECIPE.replace("traces = \"@chosen\"", mixed) + more;
    place.file("small.toml", recipe);
    place.works(&["--recipe", "small.toml", "--run-dir", "run"]);
    let data: Value = serde_json::from_str(&place.read("run/final/data.json")).unwrap();
    let num_selected = num_lines(&place.path().join("run/chosen/traces.jsonl"));
    assert_eq!(
        data["sources"][1]["kept"].as_u64().unwrap(),
        (num_selected as f64 * 0.25).round() as u64
    );
    // each problem once, whatever the number of its traces
    let rows = place.read("run/again/generations.jsonl");
    let mut asked: Vec<String> = rows
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["question"].to_string())
        .collect();
    assert_eq!(asked.len(), 40);
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), 40);
    let row: Value = serde_json::from_str(rows.lines().next().unwrap()).unwrap();
    assert_eq!(row["messages"].as_array().unwrap().len(), 1);
    assert!(row["gold"].is_string(), "{row}");
}
