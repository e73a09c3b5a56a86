//! A recipe whose answers come from an engine elsewhere, through the binary: shown, planned, run, and told what is wrong.

mod cli_support;
mod judge_server;
mod remote_server;

use cli_support::Place;
use judge_server::Reply;
use remote_server::{Config, Fault, Server};
use serde_json::Value;

fn recipe(remote: &str) -> String {
    format!(
        "name = \"rl\"\ndevice = \"cpu\"\nseed = 3\n\
         [student.init]\narchitecture = \"qwen2\"\ntokenizer = \"builtin:arithmetic\"\nhidden_size = 32\n\
         intermediate_size = 64\nnum_hidden_layers = 1\nnum_attention_heads = 2\nnum_key_value_heads = 1\n\
         [[stage]]\nname = \"rl\"\nkind = \"grpo\"\n\
         [[stage.prompts]]\nsource = \"builtin:arithmetic\"\nnum_problems = 8\n\
         [[stage.rewards]]\nname = \"repetition_penalty\"\nngram_size = 1\n\
         [stage.grpo]\nnum_steps = 4\nnum_prompts_per_step = 2\ngroup_size = 3\nmax_new_tokens = 8\n\
         checkpoint_every_steps = 1\nlearning_rate = 1e-3\n{remote}"
    )
}

fn remote(url: &str) -> String {
    recipe(&format!(
        "[stage.grpo.remote]\nengine = \"vllm\"\nurl = \"{url}\"\nretries = 0\nconcurrency = 1\n"
    ))
}

fn metrics(place: &Place) -> Vec<Value> {
    place
        .read("run/rl/metrics.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

const RUN: [&str; 4] = ["--recipe", "rl.toml", "--run-dir", "run"];

#[test]
fn a_recipe_with_an_engine_elsewhere() {
    let place = Place::new();
    let server = Server::start(Config {
        // dies in the third rollout
        fault: Box::new(|number, path, _| {
            let dead = path == "/v1/completions" && number == 2 * 7 + 5;
            dead.then_some(Fault::Reply(Reply::Gone))
        }),
        ..Config::default()
    });
    place.file("rl.toml", remote(&server.url));
    let line = format!(
        "samples   from vLLM at {}, given new weights after every 1 updates",
        server.url
    );
    let shown = place.works(&["--recipe", "rl.toml", "--dry-run"]);
    assert!(shown.stdout.contains(&line), "{}", shown.stdout);
    let planned = place.works(&["plan", "--recipe", "rl.toml"]);
    assert!(
        planned
            .stdout
            .contains(line.trim_start_matches("samples   ")),
        "{}",
        planned.stdout
    );
    assert_eq!(server.asked().len(), 0);

    let (error, hint) = place.fails(&RUN);
    let expected = format!(
        "step 3: vLLM at `{}` gave no completion: it cannot be reached",
        server.url
    );
    assert!(error.contains(&expected), "{error}");
    assert!(hint.contains("the same command goes on"), "{hint}");
    let before = metrics(&place);
    assert_eq!(before.len(), 2);
    let run = place.works(&RUN);
    assert!(
        run.stderr
            .contains("`grpo.correction` is `none`: vLLM's probabilities"),
        "{}",
        run.stderr
    );
    let after = metrics(&place);
    assert_eq!(after[..2], before);
    assert_eq!(after.len(), 4);
    for record in &after {
        assert!(record["gap"].as_f64().unwrap() < 1e-4, "{record}");
        assert_eq!(record["staleness"], 0.0);
        assert_eq!(record["num_stale_completions"], 0);
    }
    // 2 prompts of 3 completions and a look at the weights each; the first group of the third was kept
    assert_eq!(server.count("/v1/completions"), 4 * 7 + 1 + 2);
    assert_eq!(server.count("/collective_rpc"), 5);
    assert!(place.path().join("run/rl/model/model.safetensors").exists());
    // a copy of the model that nobody needs
    let left = std::fs::read_dir(place.path().join("run/rl/remote-weights"));
    assert_eq!(left.unwrap().count(), 0);
}

#[test]
fn mistakes_of_the_table_are_told_before_anything_runs() {
    let cases = [
        (
            "[stage.grpo.remote]\nengine = \"vllm\"\nurl = \"localhost:8000\"\n",
            "`grpo.remote.url` must be an address such as `http://localhost:8000`",
        ),
        (
            "[stage.grpo.remote]\nengine = \"sglang\"\nurl = \"http://x\"\nsync_every_steps = 4\n",
            "`grpo.remote.sync_every_steps` is 4, and a rollout has 1 updates: completions of older weights need a `grpo.correction`",
        ),
        (
            "[stage.grpo.remote]\nengine = \"sglang\"\nurl = \"http://x\"\nkey = \"secret\"\n",
            "unknown field `key`",
        ),
    ];
    for (table, message) in cases {
        let place = Place::new();
        place.file("rl.toml", recipe(table));
        let (error, _) = place.fails(&RUN);
        assert!(error.contains(message), "{error}");
        assert!(!place.path().join("run").exists());
    }
}
