//! Adapters through the binary: recipe to `adapter/` and merged `model/`, which every command reads alike; a killed run goes
//! on; mistakes are told before anything runs.

mod cli_support;

use cli_support::Place;
use serde_json::Value;
use std::process::Stdio;
use std::time::{Duration, Instant};

const RECIPE: &str = concat!(
    "name = \"small\"\n",
    small_student!(),
    "
[[stage]]
name = \"base\"
kind = \"sft\"
[[stage.traces]]
source = \"builtin:arithmetic\"
num_problems = 60
[stage.sft]
epochs = 1
learning_rate = 3e-3
batch_size = 4
max_length = 512

[[stage]]
name = \"tuned\"
kind = \"sft\"
model = \"@base\"
[stage.student]
method = \"dora\"
[stage.student.lora]
rank = 4
target_modules = [\"q_proj\", \"v_proj\", \"down_proj\"]
[[stage.traces]]
source = \"builtin:arithmetic\"
num_problems = 60
[stage.sft]
epochs = 2
learning_rate = 1e-2
batch_size = 4
max_length = 512
checkpoint_every_steps = 3

[[stage]]
name = \"rl\"
kind = \"grpo\"
model = \"@tuned\"
[stage.student]
method = \"lora\"
[[stage.prompts]]
source = \"builtin:arithmetic\"
num_problems = 20
[[stage.rewards]]
name = \"tag_count\"
[stage.grpo]
num_steps = 2
num_prompts_per_step = 2
group_size = 4
max_new_tokens = 16
batch_size = 8
",
);

fn json(place: &Place, name: &str) -> Value {
    serde_json::from_str(&place.read(name)).unwrap()
}

#[test]
fn stages_leave_an_adapter_and_merged_weights_that_are_the_same_model() {
    let place = Place::new();
    place.file("r.toml", RECIPE);
    place.works(&["--recipe", "r.toml", "--run-dir", "run"]);
    let config = json(&place, "run/tuned/adapter/adapter_config.json");
    let base = place.path().join("run/base/model");
    let base = base.canonicalize().unwrap();
    let named = config["base_model_name_or_path"].as_str().unwrap();
    assert_eq!(std::fs::canonicalize(named).unwrap(), base);
    assert_eq!(
        (&config["use_dora"], &config["r"]),
        (&true.into(), &4.into())
    );
    assert!(!place.path().join("run/base/adapter").exists());
    let config = json(&place, "run/rl/adapter/adapter_config.json");
    assert_eq!(
        (&config["use_dora"], &config["r"], &config["lora_alpha"]),
        (&false.into(), &4.into(), &32.into())
    );
    // what a stage does not say is as it was in the stage that it starts from
    assert_eq!(config["target_modules"].as_array().unwrap().len(), 3);

    // the adapter's folder is a model as any other
    place.file("rows.jsonl", "{\"text\": \"3 + 4 = 7\"}\n");
    let score = |model: &str| {
        let to = format!("{}.jsonl", model.replace('/', "-"));
        place.works(&[
            "score",
            "--model",
            model,
            "--input",
            "rows.jsonl",
            "--output",
            &to,
        ]);
        json(&place, &to)["logprobs"].clone()
    };
    let merged = score("run/tuned/model");
    assert_eq!(score("run/tuned/adapter"), merged);
    assert_ne!(score("run/base/model"), merged);

    // and what it was learnt beside has not moved
    let plan = place.works(&["plan", "--recipe", "r.toml", "--json"]);
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    let memory = |i: usize, part: &str| plan[i]["estimate"]["memory"][part].as_u64();
    assert!(memory(1, "gradients") < memory(0, "gradients"), "{plan}");
    assert_eq!(
        memory(1, "optimizer"),
        memory(1, "gradients").map(|n| 2 * n)
    );
}

#[test]
fn an_adapter_remembers_the_rope_it_was_trained_with() {
    let place = Place::new();
    place.file("r.toml", RECIPE);
    place.works(&["--recipe", "r.toml", "--run-dir", "run"]);
    place.file(
        "raised.toml",
        "name = \"raised\"\ndevice = \"cpu\"\n[student]\nmodel = \"run/base/model\"\nmethod = \"lora\"\nrope_theta = 500.0\n
[[traces]]\nsource = \"builtin:arithmetic\"\nnum_problems = 20\n
[sft]\nepochs = 1\nlearning_rate = 1e-2\nbatch_size = 4\nmax_length = 512\n",
    );
    place.works(&["--recipe", "raised.toml", "--run-dir", "raised"]);
    place.file(
        "rows.jsonl",
        "{\"text\": \"3 + 4 = 7, and 12 * 12 = 144\"}\n",
    );
    let score = |model: &str| {
        let to = format!("{}.jsonl", model.replace('/', "-"));
        place.works(&[
            "score",
            "--model",
            model,
            "--input",
            "rows.jsonl",
            "--output",
            &to,
        ]);
        json(&place, &to)["logprobs"].clone()
    };
    assert_eq!(score("raised/sft/adapter"), score("raised/sft/model"));

    // beside one that is not merged there is no place for another
    let recipe = place.read("raised.toml");
    place.file(
        "again.toml",
        recipe.replace("run/base/model", "raised/sft/adapter"),
    );
    let (error, hint) = place.fails(&["--recipe", "again.toml", "--run-dir", "again"]);
    assert!(error.contains("beside another adapter"), "{error}");
    assert!(hint.contains("`model/`"), "{hint}");
}

#[test]
fn a_stage_changes_what_it_names_and_a_reward_model_is_trained_whole() {
    let place = Place::new();
    let recipe = "name = \"x\"\n[student]\nmodel = \"qwen2.5-math-1.5b\"\nmethod = \"lora\"\n[student.lora]\nrank = 64\nrslora = true
[[stage]]\nname = \"a\"\nkind = \"sft\"\n[[stage.traces]]\nsource = \"builtin:arithmetic\"\nnum_problems = 4
[[stage]]\nname = \"b\"\nkind = \"sft\"\nmodel = \"@a\"\n[[stage.traces]]\nsource = \"builtin:arithmetic\"\nnum_problems = 4
[stage.student.lora]\nalpha = 5
[[stage]]\nname = \"c\"\nkind = \"sft\"\n[[stage.traces]]\nsource = \"builtin:arithmetic\"\nnum_problems = 4
[stage.student]\nmethod = \"dora\"
[[stage]]\nname = \"d\"\nkind = \"reward-model\"\npairs = \"pairs.jsonl\"\n[stage.reward_model]\nmax_length = 64\n";
    place.file("r.toml", recipe);
    let plan = place.works(&["--recipe", "r.toml", "--dry-run", "--json"]);
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    let adapter = |i: usize| plan["stages"][i]["student"]["adapter"].clone();
    let numbers = |i: usize| {
        let a = adapter(i);
        (
            a["rank"].clone(),
            a["alpha"].clone(),
            a["rslora"].clone(),
            a["dora"].clone(),
        )
    };
    let is = |rank: i64, alpha: f64, dora: bool| {
        (rank.into(), alpha.into(), true.into(), Value::from(dora))
    };
    assert_eq!(numbers(0), is(64, 32.0, false), "{plan}");
    assert_eq!(numbers(1), is(64, 5.0, false));
    assert_eq!(numbers(2), is(64, 32.0, true));
    assert_eq!(adapter(3), Value::Null);
}

#[test]
fn a_student_that_is_streamed_is_evaluated_streamed_and_says_the_same() {
    let place = Place::new();
    place.file("r.toml", RECIPE);
    place.works(&["--recipe", "r.toml", "--run-dir", "run"]);
    place.file(
        "tuned.toml",
        "name = \"tuned\"\ndevice = \"cpu\"\n[student]\nmodel = \"run/base/model\"\nmethod = \"lora\"\n
[[traces]]\nsource = \"builtin:arithmetic\"\nnum_problems = 20\n
[sft]\nepochs = 1\nlearning_rate = 1e-2\nbatch_size = 4\nmax_length = 512\n
[eval]\nsuites = [\"arithmetic\"]\nlimit = 6\nbatch_size = 4\nbefore = true\n",
    );
    let run = |name: &str, stream: &str| {
        let stream = format!("student.lora.stream={stream}");
        place.works(&[
            "--recipe",
            "tuned.toml",
            "--run-dir",
            name,
            "--set",
            &stream,
        ]);
        ["eval-before", "eval"].map(|stage| place.read(&format!("{name}/{stage}/samples.jsonl")))
    };
    let whole = run("whole", "false");
    assert_ne!(whole[0], whole[1]);
    assert!(run("streamed", "true") == whole);
}

#[test]
fn four_bits_under_an_adapter_are_trained_and_merged() {
    let place = Place::new();
    let recipe = RECIPE.replace("method = \"lora\"", "method = \"qlora\"");
    place.file("r.toml", recipe.replace("\"dora\"", "\"qlora\""));
    place.works(&["--recipe", "r.toml", "--run-dir", "run"]);
    let plan = place.works(&["plan", "--recipe", "r.toml", "--json"]);
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    let weights = |i: usize| plan[i]["estimate"]["memory"]["weights"].as_u64();
    assert!(weights(1) < weights(0), "{plan}");
    // the sampler and the update see the same weights
    for line in place.read("run/rl/metrics.jsonl").lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        assert!(row["gap_max"].as_f64().unwrap() < 1e-3, "{row}");
    }
    let config = json(&place, "run/rl/adapter/adapter_config.json");
    assert_eq!(config["peft_type"], "LORA");
}

#[test]
fn blocks_of_gguf_files_under_an_adapter_are_trained_and_merged() {
    for (quant, said) in [
        ("q8_0", None),
        ("q4_k", Some("2 of 14 projections are kept in q8_0")),
    ] {
        let place = Place::new();
        let recipe = RECIPE
            .replace("hidden_size = 32", "hidden_size = 256")
            .replace("intermediate_size = 64", "intermediate_size = 288")
            .replace("num_problems = 60", "num_problems = 12")
            .replace("method = \"lora\"", "method = \"qlora\"")
            .replace("\"dora\"", "\"qlora\"")
            .replace("rank = 4", &format!("rank = 4\nquant = \"{quant}\""));
        place.file("r.toml", recipe);
        let run = place.works(&["--recipe", "r.toml", "--run-dir", "run"]);
        match said {
            Some(said) => assert!(run.stderr.contains(said), "{}", run.stderr),
            None => assert!(!run.stderr.contains("are kept in"), "{}", run.stderr),
        }
        // what a stage does not say is as it was in the stage that it starts from
        let plan = place.works(&["--recipe", "r.toml", "--dry-run", "--json"]);
        let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
        for i in [1, 2] {
            assert_eq!(plan["stages"][i]["student"]["adapter"]["quant"], quant);
        }
        let plan = place.works(&["plan", "--recipe", "r.toml", "--json"]);
        let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
        let weights = |i: usize| plan[i]["estimate"]["memory"]["weights"].as_u64().unwrap();
        assert!(
            weights(1) < weights(0) / 2,
            "{quant}: {}, {}",
            weights(1),
            weights(0)
        );
        for line in place.read("run/rl/metrics.jsonl").lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            assert!(row["gap_max"].as_f64().unwrap() < 1e-3, "{row}");
        }
        assert_ne!(
            std::fs::read(place.path().join("run/tuned/model/model.safetensors")).unwrap(),
            std::fs::read(place.path().join("run/base/model/model.safetensors")).unwrap()
        );
        // and goes on where it was stopped: nothing is left to do
        place.works(&["--recipe", "r.toml", "--run-dir", "run"]);
    }
}

#[test]
fn killed_while_the_adapter_learns_it_ends_the_same() {
    let (whole, cut) = (Place::new(), Place::new());
    for place in [&whole, &cut] {
        place.file("r.toml", RECIPE);
    }
    let args = ["--recipe", "r.toml", "--run-dir", "run"];
    whole.works(&args);
    let mut child = cut
        .command(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = cut.path().join("run/tuned/checkpoint-3");
    let started = Instant::now();
    while !begun.exists() && started.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(begun.exists() && !cut.path().join("run/tuned/model").exists());
    cut.works(&args);
    for file in [
        "tuned/adapter/adapter_model.safetensors",
        "tuned/model/model.safetensors",
        "rl/adapter/adapter_model.safetensors",
    ] {
        let read = |place: &Place| std::fs::read(place.path().join("run").join(file)).unwrap();
        assert_eq!(read(&whole), read(&cut), "{file}");
    }
}

#[test]
fn mistakes_are_told_before_anything_runs() {
    let place = Place::new();
    let fails = |from: &str, to: &str| {
        assert!(RECIPE.contains(from), "{from}");
        place.file("r.toml", RECIPE.replacen(from, to, 1));
        let (error, hint) = place.fails(&["--recipe", "r.toml", "--run-dir", "run"]);
        assert!(!place.path().join("run").exists());
        (error, hint)
    };
    let (error, _) = fails("\"v_proj\"", "\"w_proj\"");
    assert!(
        error.contains("`student.lora.target_modules` names w_proj"),
        "{error}"
    );
    let (error, _) = fails("rank = 4", "rank = 0");
    assert!(error.contains("`rank = 0`"), "{error}");
    let (error, _) = fails("method = \"dora\"", "method = \"full\"");
    assert!(error.contains("`[student.lora]` has no effect"), "{error}");
    let (error, hint) = fails("rank = 4", "rank = 4\nquant = \"q8_0\"");
    assert!(
        error.contains("`student.lora.quant = \"q8_0\"` has no effect"),
        "{error}"
    );
    assert!(hint.contains("qlora"), "{hint}");
    let (error, _) = fails("rank = 4", "rank = 4\nquant = \"q5_k\"");
    assert!(error.contains("q5_k"), "{error}");
    let (error, hint) = fails(
        "[student.init]",
        "[student]\nmethod = \"lora\"\n[student.init]",
    );
    assert!(error.contains("random weights"), "{error}");
    assert!(hint.contains("[stage.student]"), "{hint}");

    // rows that no block divides, before anything is trained
    let recipe = RECIPE.replace("hidden_size = 32", "hidden_size = 40");
    let recipe = recipe.replace("\"dora\"", "\"qlora\"");
    place.file(
        "r.toml",
        recipe.replace("rank = 4", "rank = 4\nquant = \"q4_k\""),
    );
    let (error, hint) = place.fails(&["--recipe", "r.toml", "--run-dir", "run"]);
    assert!(
        error.contains("q_proj.weight`: rows of 40 values"),
        "{error}"
    );
    assert!(hint.contains("`student.lora.quant = \"nf4\"`"), "{hint}");
    assert!(!place.path().join("run/base").exists());

    // an adapter whose base is not there
    place.file(
        "alone/adapter_config.json",
        r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "./nowhere"}"#,
    );
    place.file("rows.jsonl", "{\"text\": \"x\"}\n");
    let (error, _) = place.fails(&[
        "score",
        "--model",
        "alone",
        "--input",
        "rows.jsonl",
        "--output",
        "o.jsonl",
    ]);
    assert!(error.contains("base of the adapter `alone`"), "{error}");
}
