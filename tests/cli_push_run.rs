//! Runs on their way to the Hub: the model of a stage with its card, its checkpoints, the traces that a stage made; a recipe
//! with `[publish]` from its first step to the listing of the server.

mod cli_support;
mod hub_server;

use cli_support::{Place, failure, finished};
use distill::data::parquet::ParquetRows;
use hub_server::{Server, WRITE_TOKEN};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

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
checkpoint_every_steps = 10

[[stage]]
name = \"samples\"
kind = \"generate\"
model = \"@cold\"
[[stage.prompts]]
source = \"builtin:arithmetic\"
num_problems = 20
[stage.sampling]
num_samples = 2
max_new_tokens = 24

[[stage]]
name = \"chosen\"
kind = \"select\"
samples = \"@samples\"
[stage.select]
accept = \"any\"
drop_truncated = false
drop_flags = []
[[stage.mix]]
source = \"builtin:arithmetic\"
num_problems = 30

[[stage]]
name = \"aside\"
kind = \"sft\"
[[stage.traces]]
source = \"builtin:arithmetic\"
num_problems = 8
[stage.sft]
epochs = 1
learning_rate = 1e-3
max_length = 512

[[stage]]
name = \"final\"
kind = \"sft\"
traces = \"@chosen\"
[stage.sft]
epochs = 1
learning_rate = 2e-3
batch_size = 4
max_length = 512

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

/// One run for all tests, which only read it or copy it.
fn run() -> &'static Place {
    static RUN: OnceLock<Place> = OnceLock::new();
    RUN.get_or_init(|| {
        let place = Place::new();
        place.file("small.toml", RECIPE);
        place.works(&["--recipe", "small.toml", "--run-dir", "run", "-q"]);
        place
    })
}

fn command(place: &Place, server: &Server, args: &[&str]) -> Command {
    let mut command = place.command(args);
    command
        .env_remove("HF_HUB_OFFLINE")
        .env("HF_ENDPOINT", server.url())
        .env("HF_TOKEN", WRITE_TOKEN);
    command
}

fn pushed(place: &Place, server: &Server, args: &[&str]) -> Vec<Value> {
    let mut all = vec!["push"];
    all.extend(args);
    all.push("--json");
    let run = finished(command(place, server, &all));
    assert_eq!(run.code, Some(0), "{args:?}: {}", run.stderr);
    assert!(!run.stdout.contains("Marker") && !run.stderr.contains("Marker"));
    serde_json::from_str(&run.stdout).unwrap()
}

fn text(files: &BTreeMap<String, Vec<u8>>, path: &str) -> String {
    let bytes = files
        .get(path)
        .unwrap_or_else(|| panic!("no {path}: {:?}", files.keys()));
    String::from_utf8(bytes.clone()).unwrap()
}

/// Every file of the folder, by name, but those named.
fn on_disk(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                std::fs::read(entry.path()).unwrap(),
            )
        })
        .collect()
}

#[test]
fn the_model_of_a_run_goes_up_with_a_card_that_tells_its_story() {
    let (place, server) = (run(), Server::start());
    let done = pushed(place, &server, &["run", "--repo", "tester/small"]);
    assert_eq!(done.len(), 1);
    let files = server.files("tester/small", "main");
    for (name, bytes) in on_disk(&place.path().join("run/final/model")) {
        assert!(files[&name] == bytes, "{name}");
    }
    let ours: Vec<&str> = files
        .keys()
        .map(String::as_str)
        .filter(|p| *p != ".gitattributes")
        .collect();
    let model = on_disk(&place.path().join("run/final/model"));
    assert_eq!(ours.len(), model.len() + 1, "{ours:?}");
    let card = text(&files, "README.md");
    for line in [
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "- name: small",
        "      type: arithmetic",
        "| arithmetic (version 1) |",
        "## Training",
        "| final | supervised fine-tuning |",
        "| chosen | rejection sampling |",
        "| samples | sampling | stage cold |",
        "| mixed in from builtin:arithmetic | 30 |",
        "| builtin:arithmetic |  | train |  |",
        "| sft.learning\\_rate | 0.002 |",
        "| sft.learning\\_rate | 0.003 |",
        "distill chat --model tester/small",
        "vllm serve tester/small",
    ] {
        assert!(card.contains(line), "{line}:\n{card}");
    }
    // a stage that has no part in it, and what only this machine knows
    assert!(!card.contains("aside"), "{card}");
    assert!(!card.contains(place.path().to_str().unwrap()), "{card}");
    // the same once more is nothing to do
    let again = pushed(place, &server, &["run", "--repo", "tester/small"]);
    assert_eq!(again[0]["num_commits"], 0);
    // from within the run, and another stage by name
    let inner = pushed(place, &server, &["run/cold/model", "--repo", "tester/cold"]);
    let by_name = pushed(
        place,
        &server,
        &["run", "--stage", "cold", "--repo", "tester/cold"],
    );
    assert_eq!(
        (&inner[0]["num_commits"], &by_name[0]["num_commits"]),
        (&1.into(), &0.into())
    );
    let card = text(&server.files("tester/cold", "main"), "README.md");
    assert!(
        !card.contains("chosen") && !card.contains("## Evaluation"),
        "{card}"
    );
}

#[test]
fn the_dry_run_shows_the_card_and_the_files_without_network() {
    let place = run();
    let args = ["push", "run", "--repo", "you/small", "--dry-run"];
    let shown = place.works(&args).stdout;
    assert!(
        shown.starts_with("model you/small at main, private where it is created\n"),
        "{shown}"
    );
    assert!(
        shown.contains("model.safetensors") && shown.contains("  lfs\n"),
        "{shown}"
    );
    let card = place
        .works(&["push", "run", "--repo", "you/small", "--dry-run", "--card"])
        .stdout;
    assert!(card.starts_with("---\nlibrary_name"), "{card}");
    for (args, want) in [
        (vec!["run"], "it is not said where to push"),
        (
            vec!["run", "--repo", "a/b", "--stage", "judged"],
            "run `small` has no stage `judged` that leaves a model",
        ),
        (
            vec!["run", "--repo", "a/b", "--dataset", "--stage", "cold"],
            "run `small` has no stage `cold` that leaves traces",
        ),
        (
            vec!["run", "--repo", "a/b", "--language", "English"],
            "`publish.language`: `English` is no code of a language",
        ),
    ] {
        let mut all = vec!["push", "--dry-run"];
        all.extend(args);
        assert_eq!(place.fails(&all).0, want);
    }
}

#[test]
fn checkpoints_have_branches_of_their_own_without_the_optimiser() {
    let (place, server) = (run(), Server::start());
    let done = pushed(
        place,
        &server,
        &[
            "run",
            "--stage",
            "cold",
            "--repo",
            "tester/c",
            "--checkpoints",
            "--tag",
            "v1",
        ],
    );
    let branches: Vec<&str> = done
        .iter()
        .map(|one| one["revision"].as_str().unwrap())
        .collect();
    assert_eq!(branches, ["main", "checkpoint-20", "checkpoint-30"]);
    let files = server.files("tester/c", "checkpoint-20");
    let weights = std::fs::read(
        place
            .path()
            .join("run/cold/checkpoint-20/model.safetensors"),
    )
    .unwrap();
    assert!(files["model.safetensors"] == weights);
    assert!(files.contains_key("tokenizer.json") && !files.contains_key("optimizer.safetensors"));
    assert!(text(&files, "README.md").contains("Step 20 of a training"));
    assert_eq!(
        server.commit_of("tester/c", "v1"),
        server.commit_of("tester/c", "main")
    );
}

#[test]
fn traces_go_up_as_parquet_with_their_counts() {
    let (place, server) = (run(), Server::start());
    let done = pushed(
        place,
        &server,
        &[
            "run",
            "--dataset",
            "--repo",
            "tester/t",
            "--license",
            "cc0-1.0",
        ],
    );
    assert_eq!(done[0]["num_commits"], 1);
    let files = server.files("datasets/tester/t", "main");
    let card = text(&files, "README.md");
    for line in [
        "license: cc0-1.0",
        "    path: \"data/train-*\"",
        "| samples | 40 |",
        "| traces in all |",
        "| messages | list of {role: string, content: string} |",
    ] {
        assert!(card.contains(line), "{line}:\n{card}");
    }
    // the rows are those of the stage
    let local = place.file("back.parquet", &files["data/train-00000-of-00001.parquet"]);
    let rows = ParquetRows::open(&local, "back", File::open(&local).unwrap()).unwrap();
    let back: Vec<Value> = rows.map(|row| Value::Object(row.unwrap().values)).collect();
    let lines = place.read("run/chosen/traces.jsonl");
    let ours: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(back.len(), ours.len());
    for (back, ours) in back.iter().zip(&ours) {
        for (key, value) in ours.as_object().unwrap() {
            assert_eq!(&back[key], value, "{key}");
        }
    }
    // samples: without the token ids of their own model
    pushed(
        place,
        &server,
        &[
            "run",
            "--dataset",
            "--stage",
            "samples",
            "--repo",
            "tester/s",
        ],
    );
    let card = text(&server.files("datasets/tester/s", "main"), "README.md");
    assert!(
        card.contains("num\\_tokens: int64") && !card.contains("logprobs"),
        "{card}"
    );
    // what is pushed can be trained on
    let pulled = finished(command(
        place,
        &server,
        &["pull", "tester/t", "--dataset", "--json"],
    ));
    assert_eq!(pulled.code, Some(0), "{}", pulled.stderr);
}

#[test]
fn a_recipe_publishes_its_result_and_is_checked_before() {
    let (place, server) = (Place::new(), Server::start());
    let student = concat!(
        "name = \"one\"\n",
        small_student!(),
        "
[[traces]]
source = \"builtin:arithmetic\"
num_problems = 20
[sft]
learning_rate = 1e-3
max_length = 512
max_steps = 2
[eval]
suites = [\"arithmetic\"]
before = true
limit = 3
max_new_tokens = 8
[publish]
repo = \"tester/one\"
language = [\"en\"]
license = \"cc0-1.0\"
tags = [\"toy\"]
"
    );
    place.file("one.toml", student);
    let args = ["--recipe", "one.toml", "--run-dir", "run"];
    let mut without = command(&place, &server, &args);
    without.env_remove("HF_TOKEN");
    let (error, _) = failure(finished(without));
    assert!(
        error.contains("publishing needs an access token"),
        "{error}"
    );
    assert!(!place.path().join("run").exists());
    let shown = place.works(&["--recipe", "one.toml", "--dry-run"]).stdout;
    assert!(
        shown.contains("publish   tester/one (private where it is created)\n"),
        "{shown}"
    );
    let ran = finished(command(&place, &server, &args));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stdout
            .contains(&format!("published    {}/tester/one at main", server.url())),
        "{}",
        ran.stdout
    );
    let files = server.files("tester/one", "main");
    let card = text(&files, "README.md");
    for line in [
        "license: cc0-1.0",
        "language:\n- en\n",
        "- toy\n",
        "before training",
    ] {
        assert!(card.contains(line), "{line}:\n{card}");
    }
    // again, by the recipe and by the folder: nothing to do
    let ran = finished(command(&place, &server, &args));
    assert!(
        ran.stdout.contains("is there already"),
        "{} {}",
        ran.stdout,
        ran.stderr
    );
    assert_eq!(server.commits("tester/one", "main").len(), 2);
    assert_eq!(pushed(&place, &server, &["run"])[0]["num_commits"], 0);
    for (sets, want) in [
        (
            "publish.repo=one",
            "`publish.repo = \"one\"` cannot name a repository",
        ),
        (
            "publish.stage=sft",
            "`publish.stage` and `[publish.traces]` are for recipes of several `[[stage]]`s",
        ),
        ("publish.rep=x/y", "unknown key `rep` in `publish`"),
    ] {
        let (error, _) = place.fails(&["--recipe", "one.toml", "--set", sets, "--dry-run"]);
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn an_adapter_goes_up_by_itself_with_what_it_learnt_from() {
    let (place, server) = (Place::new(), Server::start());
    pushed(
        run(),
        &server,
        &[
            "run/cold/model",
            "--repo",
            "tester/base",
            "--license",
            "cc-by-4.0",
        ],
    );
    let trace = |i: usize| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"What is {i} + 1?\"}}, {{\"role\": \"assistant\", \"content\": \"<think>\\none more\\n</think>\\n\\n{}\"}}]}}\n",
            i + 1
        )
    };
    let rows: String = (0..12).map(trace).collect();
    let card = "---\nlicense: cc-by-nc-4.0\n---\n";
    server.put(
        "datasets/tester/rows",
        &[
            ("README.md", card.as_bytes()),
            ("rows.jsonl", rows.as_bytes()),
        ],
    );
    // a folder whose name could be one of the Hub
    place.file(
        "data/traces/own.jsonl",
        (20..26).map(trace).collect::<String>(),
    );
    place.file(
        "lora.toml",
        "name = \"lora\"\ndevice = \"cpu\"\n[student]\nmodel = \"tester/base\"\nmethod = \"lora\"\ndtype = \"f32\"\n[student.lora]\nrank = 2\n\
         [[traces]]\nsource = \"tester/rows\"\n[[traces]]\nsource = \"data/traces\"\n[sft]\nlearning_rate = 1e-2\nmax_length = 512\nmax_steps = 2\n",
    );
    let ran = finished(command(
        &place,
        &server,
        &["--recipe", "lora.toml", "--run-dir", "run", "-q"],
    ));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let args = ["push", "run", "--repo", "tester/a", "--adapter"];
    let told = finished(command(&place, &server, &args));
    assert_eq!(told.code, Some(0), "{}", told.stderr);
    let warning =
        "the data set tester/rows is under `cc-by-nc-4.0`, which allows no commercial use";
    assert!(told.stderr.contains(warning), "{}", told.stderr);
    let files = server.files("tester/a", "main");
    for (name, bytes) in on_disk(&place.path().join("run/sft/adapter")) {
        assert!(files[&name] == bytes, "{name}");
    }
    assert!(
        !files.contains_key("model.safetensors"),
        "{:?}",
        files.keys()
    );
    let config: Value = serde_json::from_str(&text(&files, "adapter_config.json")).unwrap();
    assert_eq!(config["base_model_name_or_path"], "tester/base");
    assert_eq!(
        config["revision"],
        server.commit_of("tester/base", "main").unwrap()
    );
    let card = text(&files, "README.md");
    for line in [
        "license: cc-by-4.0\n",
        "library_name: peft\n",
        "base_model: tester/base\nbase_model_relation: adapter\n",
        "datasets:\n- tester/rows\n",
        "| data/traces |  | train |  |  |",
        "The data set tester/rows is under `cc-by-nc-4.0`, which allows no commercial use.",
        "AutoPeftModelForCausalLM.from_pretrained(\"tester/a\")",
    ] {
        assert!(card.contains(line), "{line}:\n{card}");
    }
    assert!(!card.contains("- data/traces"), "{card}");
    // and is one again where it is pulled
    place.file("p.jsonl", "{\"prompt\": \"What is 3 + 1?\"}\n");
    let mut answers = Vec::new();
    for model in ["tester/a", "run/sft/model"] {
        let args = [
            "generate",
            "--model",
            model,
            "--input",
            "p.jsonl",
            "--output",
            "o.jsonl",
            "--temperature",
            "0",
            "--max-new-tokens",
            "8",
            "--dtype",
            "f32",
        ];
        let run = finished(command(&place, &server, &args));
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let row: Value = serde_json::from_str(&place.read("o.jsonl")).unwrap();
        answers.push(row["generations"][0]["tokens"].clone());
        std::fs::remove_file(place.path().join("o.jsonl")).unwrap();
    }
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn a_reward_model_is_one_again_where_it_is_pulled() {
    let (place, server) = (Place::new(), Server::start());
    let pair = |i: usize| {
        format!("{{\"prompt\": \"What is {i} + 2?\", \"chosen\": \"yes\", \"rejected\": \"no\"}}\n")
    };
    place.file("pairs.jsonl", (0..8).map(pair).collect::<String>());
    let scorer = concat!(
        "name = \"scorer\"\n",
        small_student!(),
        "
[[stage]]
name = \"rm\"
kind = \"reward-model\"
pairs = \"pairs.jsonl\"
[stage.reward_model]
learning_rate = 3e-3
epochs = 1
batch_size = 4
max_length = 256
scope = \"all\"
"
    );
    place.file("scorer.toml", scorer);
    place.works(&["--recipe", "scorer.toml", "--run-dir", "run", "-q"]);
    pushed(
        &place,
        &server,
        &["run", "--repo", "tester/rm", "--license", "mit"],
    );
    let files = server.files("tester/rm", "main");
    let card = text(&files, "README.md");
    for line in [
        "pipeline_tag: text-classification\n",
        "- reward-model\n",
        "A reward model: random weights (qwen2), trained by preferences",
        "AutoModelForSequenceClassification.from_pretrained(\"tester/rm\")",
    ] {
        assert!(card.contains(line), "{line}:\n{card}");
    }
    assert!(
        !card.contains("vllm") && !card.contains("<think>"),
        "{card}"
    );
    let pulled = finished(command(&place, &server, &["pull", "tester/rm", "--json"]));
    let pulled: Value = serde_json::from_str(&pulled.stdout).unwrap();
    let folder = pulled["folder"].as_str().unwrap();
    let ours = place.path().join("run/rm/model");
    for name in ["reward_model.json", "model.safetensors", "tokenizer.json"] {
        let bytes = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
        assert!(bytes(Path::new(folder)) == bytes(&ours), "{name}");
    }
    // both score alike
    let mut scores = Vec::new();
    for (i, model) in [folder, ours.to_str().unwrap()].into_iter().enumerate() {
        let recipe = format!(
            "name = \"scored\"\n{}\n[[stage]]\nname = \"s\"\nkind = \"generate\"\n[[stage.prompts]]\nsource = \"builtin:arithmetic\"\nnum_problems = 2\n\
             [stage.sampling]\nnum_samples = 2\nmax_new_tokens = 6\n[[stage.rewards]]\nname = \"reward_model\"\nmodel = \"{model}\"\n",
            small_student!()
        );
        place.file("scored.toml", recipe);
        let dir = format!("scored-{i}");
        place.works(&["--recipe", "scored.toml", "--run-dir", &dir, "-q"]);
        let row: Value = place
            .read(&format!("{dir}/s/generations.jsonl"))
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .next()
            .unwrap();
        assert!(row["generations"][0]["reward"].is_f64(), "{row}");
        scores.push(row["generations"][0]["reward"].clone());
    }
    assert_eq!(scores[0], scores[1]);
}
