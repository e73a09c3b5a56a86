//! What a run is made of is known by its content: a run goes on only with the inputs it began with, and a refused one leaves
//! the folder as it was.

mod cli_support;

use cli_support::Place;
use std::path::Path;

const RECIPE: &str = "\
name = \"small\"
device = \"cpu\"

[student]
model = \"student\"

[[traces]]
source = \"traces.jsonl\"

[sft]
epochs = 1
learning_rate = 1e-3
batch_size = 4
max_length = 256

[eval]
suites = [\"suite.toml\"]
max_new_tokens = 8
before = true
";

const SUITE: &str = "\
name = \"sums\"
version = \"1\"
paper = \"none\"
verifier = \"number\"

[dataset]
source = \"problems.jsonl\"

[fields]
problem = \"problem\"
answer = \"answer\"

[prompt]
template = \"{problem}\"

[sampling]
temperature = 0.0
top_p = 1.0
max_new_tokens = 8
k = 1
";

fn traces(n: usize) -> String {
    (0..n)
        .map(|i| {
            format!(
                "{{\"messages\":[{{\"role\":\"user\",\"content\":\"Leo has {i} coins, finds 2.\"}},\
                 {{\"role\":\"assistant\",\"content\":\"<think>\\n{i}+2={}\\n</think>\\n\\nThe answer is {}.\"}}]}}\n",
                i + 2,
                i + 2
            )
        })
        .collect()
}

/// A student on the disk, made by the program itself.
fn place() -> Place {
    let place = Place::new();
    let init = "\
name = \"init\"
device = \"cpu\"
[student.init]
architecture = \"qwen2\"
tokenizer = \"builtin:arithmetic\"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
[[traces]]
source = \"builtin:arithmetic\"
num_problems = 8
[sft]
epochs = 1
learning_rate = 1e-3
batch_size = 4
max_length = 512
";
    place.file("init.toml", init);
    for (seed, name) in [("1", "student"), ("2", "other")] {
        let set = format!("seed={seed}");
        place.works(&["--recipe", "init.toml", "--run-dir", name, "--set", &set]);
        std::fs::rename(
            place.path().join(name).join("sft/model"),
            place.path().join("m"),
        )
        .unwrap();
        std::fs::remove_dir_all(place.path().join(name)).unwrap();
        std::fs::rename(place.path().join("m"), place.path().join(name)).unwrap();
    }
    place.file("small.toml", RECIPE);
    place.file("suite.toml", SUITE);
    place.file("traces.jsonl", traces(12));
    place.file("problems.jsonl", "{\"problem\":\"1+1\",\"answer\":\"2\"}\n");
    place
}

const RUN: [&str; 4] = ["--recipe", "small.toml", "--run-dir", "run"];

/// Every file of a folder with its content, but the report and the clock.
fn all(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            let inner = all(&path);
            found.extend(
                inner
                    .into_iter()
                    .map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)),
            );
        } else {
            found.push((name, std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn other_inputs_are_refused_and_the_folder_stays() {
    let place = place();
    place.works(&RUN);
    let run = place.path().join("run");
    let before = all(&run);

    // fewer rows
    place.file("traces.jsonl", traces(8));
    let (error, _) = place.fails(&RUN);
    assert!(
        error.contains("the traces, or how they are made into rows, are others"),
        "{error}"
    );
    assert!(all(&run) == before, "a refused run wrote into the folder");
    place.file("traces.jsonl", traces(12));

    // the same rows from elsewhere are the same rows
    let moved = [&RUN[..], &["--set", "traces.0.source=./traces.jsonl"]].concat();
    place.works(&moved);

    // other weights under the same path
    let weights = |name: &str| place.path().join(name).join("model.safetensors");
    let kept = std::fs::read(weights("student")).unwrap();
    std::fs::copy(weights("other"), weights("student")).unwrap();
    let (error, _) = place.fails(&RUN);
    assert!(
        error.contains("student.weights.files.model.safetensors"),
        "{error}"
    );
    std::fs::write(weights("student"), kept).unwrap();

    // a result that was deleted is made again, a benchmark that changed is run again
    let result = std::fs::read(run.join("sft/model/model.safetensors")).unwrap();
    std::fs::remove_dir_all(run.join("sft/model")).unwrap();
    place.file(
        "problems.jsonl",
        "{\"problem\":\"1+1\",\"answer\":\"2\"}\n{\"problem\":\"1+2\",\"answer\":\"3\"}\n",
    );
    let done = place.works(&RUN);
    assert!(std::fs::read(run.join("sft/model/model.safetensors")).unwrap() == result);
    assert!(done.stdout.contains("of 2 problems"), "{}", done.stdout);
}

#[test]
fn mistakes_of_the_evaluation_show_before_the_training() {
    let place = place();
    let fails = |set: &str, what: &str| {
        let (error, _) = place.fails(&[&RUN[..], &["--set", set]].concat());
        assert!(error.contains(what), "{set}: {error}");
        assert!(!place.path().join("run/sft").exists(), "{set}");
    };
    fails("eval.num_samples=0", "`sampling.k`");
    fails("eval.limit=0", "`eval.limit");
    let suite = |from: &str, to: &str, what: &str| {
        place.file("suite.toml", SUITE.replace(from, to));
        fails("seed=42", what);
    };
    suite(
        "verifier = \"number\"",
        "verifier = \"nimber\"",
        "unknown verifier `nimber`",
    );
    suite("{problem}", "a problem", "has no `{problem}`");
    suite(
        "temperature = 0.0",
        "temperature = -1.0",
        "is no temperature",
    );
    suite(
        "problems.jsonl",
        "missing.jsonl",
        "`missing.jsonl` does not exist",
    );
    suite("answer = \"answer\"", "answer = \"gold\"", "gold");
    suite("name = \"sums\"", "name = \"../sums\"", "../sums");
    place.file("suite.toml", SUITE);
    place.file("again.toml", SUITE);
    fails(
        "eval.suites=[\"suite.toml\",\"again.toml\"]",
        "two suites are called `sums`",
    );
}

#[test]
fn a_benchmark_is_asked_of_its_own_split() {
    let place = place();
    place.works(&RUN);
    std::fs::create_dir(place.path().join("bench")).unwrap();
    place.file(
        "bench/train-0.jsonl",
        "{\"problem\":\"1+1\",\"answer\":\"2\"}\n".repeat(5),
    );
    place.file(
        "bench/test-0.jsonl",
        "{\"problem\":\"1+1\",\"answer\":\"2\"}\n".repeat(3),
    );
    let source = "source = \"bench\"\nsplit = \"test\"";
    place.file(
        "suite.toml",
        SUITE.replace("source = \"problems.jsonl\"", source),
    );
    let eval = [
        "eval",
        "--model",
        "run/sft/model",
        "--suite",
        "suite.toml",
        "--json",
    ];
    let done = place.works(&eval);
    let result: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(result["num_problems"], 3);
}
