//! Reward models and preferences through the binary: pairs of samples, a model that scores, a policy that prefers, samples
//! that are scored; killed in either training it ends the same.

mod cli_support;

use cli_support::Place;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const RECIPE: &str = concat!(
    "name = \"judged\"\n",
    small_student!(),
    "
[[stage]]
name = \"scorer\"
kind = \"reward-model\"
samples = \"samples.jsonl\"
[stage.reward_model]
learning_rate = 3e-3
epochs = 6
batch_size = 4
max_length = 256
eval_every_steps = 5
checkpoint_every_steps = 4
[stage.reward_model.build]
by = \"correct\"

[[stage]]
name = \"policy\"
kind = \"preference\"
pairs = [\"@scorer\", \"pairs.jsonl\"]
[stage.preference]
loss = \"rpo\"
learning_rate = 1e-3
epochs = 6
batch_size = 4
max_length = 256
checkpoint_every_steps = 4

[[stage]]
name = \"scored\"
kind = \"generate\"
model = \"@policy\"
[[stage.prompts]]
source = \"builtin:arithmetic\"
num_problems = 4
[stage.sampling]
num_samples = 2
max_new_tokens = 12
[[stage.rewards]]
name = \"reward_model\"
model = \"@scorer\"
scope = \"all\"
",
);

/// Prompts whose right answers end with `yes`, and a few of which no pair can be made.
fn samples() -> String {
    let mut text = String::new();
    let answer = |i: usize, last: &str, correct: bool| {
        json!({
            "text": format!("<think>\n{i} + 1 = {}\n</think>\n\n{last}", i + 1),
            "tokens": 20 + i % 3,
            "finish_reason": "stop",
            "correct": correct,
        })
    };
    for i in 0..30 {
        let generations = match i {
            28 => vec![answer(i, "yes", true), answer(i, "yes", true)],
            29 => vec![answer(i, "no", false)],
            _ => vec![answer(i, "no", false), answer(i, "yes", true)],
        };
        let row = json!({
            "id": format!("p{i}"),
            "question": format!("What is {i} + 1?"),
            "messages": [{"role": "user", "content": format!("What is {i} + 1?")}],
            "generations": generations,
        });
        let _ = writeln!(text, "{row}");
    }
    text
}

/// Six pairs, and rows that are none.
fn pairs() -> String {
    let turn = |role: &str, text: &str| json!([{"role": role, "content": text}]);
    let mut rows: Vec<Value> = (0..6)
        .map(|i| {
            json!({
                "prompt": turn("user", &format!("What is {i} + 2?")),
                "chosen": turn("assistant", "yes"),
                "rejected": turn("assistant", "no"),
            })
        })
        .collect();
    let prompt = turn("user", "What?");
    rows.push(json!({"prompt": prompt, "chosen": "same", "rejected": "same"}));
    rows.push(json!({"prompt": prompt, "chosen": "yes"}));
    rows.push(json!({"prompt": prompt, "chosen": "yes", "rejected": "no ".repeat(400)}));
    rows.push(json!({"prompt": prompt, "chosen": "yes", "rejected": turn("user", "no")}));
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn place() -> Place {
    let place = Place::new();
    place.file("judged.toml", RECIPE);
    place.file("samples.jsonl", samples());
    place.file("pairs.jsonl", pairs());
    place
}

fn json(place: &Place, name: &str) -> Value {
    serde_json::from_str(&place.read(name)).unwrap()
}

fn num_lines(path: &Path) -> usize {
    std::fs::read(path).map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count())
}

/// Reasons and counts of a report.
fn dropped(report: &Value) -> Vec<(String, u64)> {
    let all = report["dropped"].as_array().unwrap().iter();
    let mut all: Vec<(String, u64)> = all
        .map(|d| {
            (
                d["reason"].as_str().unwrap().to_string(),
                d["count"].as_u64().unwrap(),
            )
        })
        .collect();
    all.sort();
    all
}

#[test]
fn from_samples_to_a_policy_and_its_scores_killed_or_not() {
    let place = place();
    place.works(&["--recipe", "judged.toml", "--run-dir", "whole"]);

    // pairs
    let report = json(&place, "whole/scorer/pairs.json");
    assert_eq!(report["num_pairs"], 28);
    assert_eq!(
        dropped(&report),
        [
            ("prompt with fewer than two whole samples".to_string(), 1),
            ("prompt with right samples only".to_string(), 1),
        ]
    );
    let rows = json(&place, "whole/policy/rows.json");
    assert_eq!(rows["kept"], 28 + 6);
    let names: Vec<(String, u64)> = dropped(&rows);
    assert_eq!(
        names,
        [
            ("`chosen` and `rejected` are the same".to_string(), 1),
            (
                "column `rejected` does not end with a turn of the assistant".to_string(),
                1
            ),
            ("longer than `max_length`".to_string(), 1),
            ("no column `rejected`".to_string(), 1),
        ]
    );

    // both learn: on pairs that they have not seen, too
    for stage in ["scorer", "policy"] {
        let result = &json(&place, &format!("whole/{stage}/done.json"))["result"];
        assert_eq!(result["held_out_accuracy"], 1.0, "{result}");
        let metrics = place.read(&format!("whole/{stage}/metrics.jsonl"));
        let steps: Vec<Value> = metrics
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let last = &steps[steps.len() - 1];
        assert_eq!(last["accuracy"], 1.0, "{last}");
        assert!(last["margin"].as_f64().unwrap() > 0.0);
        assert!(last["loss"].as_f64().unwrap() < steps[0]["loss"].as_f64().unwrap());
    }
    let config = json(&place, "whole/scorer/model/config.json");
    assert_eq!(
        config["architectures"],
        json!(["Qwen2ForSequenceClassification"])
    );
    assert!(config["pad_token_id"].is_u64(), "{config}");
    assert_eq!(
        json(&place, "whole/scorer/model/reward_model.json")["scope"],
        "summary"
    );

    // the scorer as a reward
    let scored = place.read("whole/scored/generations.jsonl");
    for line in scored.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        for sample in row["generations"].as_array().unwrap() {
            let reward = sample["reward"].as_f64().unwrap();
            assert!((0.0..=1.0).contains(&reward), "{sample}");
        }
    }

    // killed in either training
    let run = place.path().join("killed");
    for stage in ["scorer", "policy"] {
        let metrics = run.join(stage).join("metrics.jsonl");
        let mut command = place.command(&["--recipe", "judged.toml", "--run-dir", "killed"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let begun = Instant::now();
        while num_lines(&metrics) < 7 && child.try_wait().unwrap().is_none() {
            assert!(
                begun.elapsed() < Duration::from_secs(120),
                "nothing happens"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        assert!(
            !child.wait().unwrap().success(),
            "over before it was killed"
        );
    }
    place.works(&["--recipe", "judged.toml", "--run-dir", "killed"]);
    for file in [
        "scorer/pairs.jsonl",
        "scorer/model/model.safetensors",
        "policy/model/model.safetensors",
        "scored/generations.jsonl",
    ] {
        let bytes = |run: &str| std::fs::read(place.path().join(run).join(file)).unwrap();
        assert!(bytes("whole") == bytes("killed"), "{file} differs");
    }
    for stage in ["scorer", "policy"] {
        let numbers = |run: &str| -> Vec<(Value, Value, Value)> {
            let metrics = place.read(&format!("{run}/{stage}/metrics.jsonl"));
            let lines = metrics.lines().map(|line| {
                let row: Value = serde_json::from_str(line).unwrap();
                (
                    row["step"].clone(),
                    row["loss"].clone(),
                    row["margin"].clone(),
                )
            });
            lines.collect()
        };
        assert_eq!(numbers("whole"), numbers("killed"));
    }

    // finished: nothing runs again
    let again = place.works(&["--recipe", "judged.toml", "--run-dir", "whole"]);
    assert_eq!(again.stderr.matches("is finished already").count(), 3);
}

#[test]
fn mistakes_are_told_before_anything_runs() {
    let place = place();
    for (old, new, expected) in [
        (
            "pairs = [\"@scorer\", \"pairs.jsonl\"]\n",
            "",
            "stage `policy`: a stage of kind `preference` needs `pairs`",
        ),
        (
            "samples = \"samples.jsonl\"",
            "pairs = \"pairs.jsonl\"",
            "stage `policy`: `pairs = \"@scorer\"`: stage `scorer` is of kind `reward-model` and leaves reward model, not pairs",
        ),
        (
            "model = \"@scorer\"",
            "model = \"@policy\"",
            "stage `scored`: `rewards.model = \"@policy\"`: stage `policy` is of kind `preference` and leaves model, not reward model",
        ),
        (
            "model = \"@policy\"",
            "model = \"@scorer\"",
            "stage `scored`: `model = \"@scorer\"`: stage `scorer` is of kind `reward-model` and leaves reward model, not model",
        ),
        (
            "loss = \"rpo\"",
            "beta = -1.0",
            "stage `policy`: `preference.beta = -1.0` must be above 0",
        ),
        ("loss = \"rpo\"", "loss = \"rpoo\"", "unknown value `rpoo`"),
        (
            "by = \"correct\"",
            "by = \"judge\"",
            "stage `scorer`: `reward_model.build.by = \"judge\"` needs `reward_model.build.judge`",
        ),
    ] {
        assert!(RECIPE.contains(old), "{old}");
        place.file("wrong.toml", RECIPE.replacen(old, new, 1));
        let (error, _) = place.fails(&["--recipe", "wrong.toml", "--dry-run"]);
        assert!(error.contains(expected), "{error}\n{expected}");
    }
}
