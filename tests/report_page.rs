//! A run folder as a run leaves it, collected and written as a page; the same with parts missing.

use std::path::{Path, PathBuf};

use distill::report::{MetricsLog, collect, html};
use serde_json::{Value, json};

fn write(path: PathBuf, text: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Noise that is the same everywhere.
fn noise(i: u64) -> f64 {
    (i.wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407)
        >> 33) as f64
        / (1u64 << 31) as f64
        - 0.5
}

/// A finished run of the quickstart's shape, with text that would break a careless page.
fn run_folder(root: &Path) {
    let plan = json!({
        "name": "quickstart <1>", "key": "abc", "seed": 42, "device": "cpu",
        "student": {"source": {"random": {"hidden_size": 128}}, "card": null, "method": "full", "dtype": "f32"},
        "traces": [{"source": "builtin:arithmetic", "num_rows": 4000}],
        "sft": {"epochs": 2, "learning_rate": 8e-4, "schedule": "cosine", "batch_size": 64, "betas": [0.9, 0.95]},
        "stages": [
            {"name": "data", "kind": "data"}, {"name": "eval-before", "kind": "eval-before", "suite": 0},
            {"name": "sft", "kind": "sft"}, {"name": "eval", "kind": "eval", "suite": 0}],
        "notes": []
    });
    write(root.join("plan.json"), plan.to_string());
    write(
        root.join("recipe.toml"),
        "name = \"quickstart <1>\"\n[sft]\nepochs = 2\n",
    );
    write(
        root.join("run.json"),
        json!({"version": "0.1.0", "processor": "Some CPU", "num_threads": 2, "seconds": 131.4})
            .to_string(),
    );
    let lengths: Vec<Value> = (0..16).map(|i| json!({"from": i * 32, "to": i * 32 + 32, "count": 900 / (1 + (i as i64 - 4).pow(2))})).collect();
    let data = json!({
        "kept": 3968, "tokens": 912_345, "trained_tokens": 700_000, "lengths": lengths, "longest": 511, "truncated": 3, "joint_differs": 0,
        "verdicts": {"correct": 3990, "wrong": 5, "unknown": 0},
        "dropped": [
            {"reason": "longer than 512 tokens", "count": 27, "examples": ["traces.jsonl row 3", "traces.jsonl row 17", "traces.jsonl row 40 <b>"]},
            {"reason": "answer is labelled wrong", "count": 5, "examples": ["traces.jsonl row 9"]}],
        "sources": [{"name": "builtin:arithmetic", "revision": "seed 42", "kept": 3968, "dropped": 32, "tokens": 912345}]
    });
    write(root.join("data/data.json"), data.to_string());
    write(
        root.join("data/done.json"),
        r#"{"key":"k","result":{"seconds":1.5}}"#,
    );
    let mut log = MetricsLog::open(&root.join("sft/metrics.jsonl"), 0).unwrap();
    for step in 1..=124u64 {
        let t = step as f64 / 124.0;
        let row = json!({
            "step": step, "epoch": 2.0 * t, "loss": 0.35 + 5.0 * (-5.0 * t).exp() + 0.12 * noise(step),
            "grad_norm": 0.5 + 6.0 * (-9.0 * t).exp() + 0.2 * noise(step + 999),
            "learning_rate": 8e-4 * (0.1 + 0.45 * (1.0 + (std::f64::consts::PI * t).cos())),
            "num_tokens": 14_000 * step, "tokens_per_s": 14_000.0 + 900.0 * noise(step + 5)});
        log.append(&row).unwrap();
    }
    write(
        root.join("sft/done.json"),
        r#"{"key":"k","result":{"num_steps":124,"seconds":95.2,"peak_memory_bytes":734003200}}"#,
    );
    write(root.join("sft/checkpoint-100/model.safetensors"), [0; 3000]);
    write(root.join("sft/checkpoint-24/model.safetensors"), [0; 3000]);
    write(
        root.join("sft/model/config.json"),
        r#"{"architectures":["Qwen2ForCausalLM"],"num_hidden_layers":4,"hidden_size":128}"#,
    );
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2500,400],"data_offsets":[0,0]},"b":{"dtype":"F32","shape":[7],"data_offsets":[0,0]}}"#;
    write(
        root.join("sft/model/model.safetensors"),
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat(),
    );
    for (stage, pass, ci) in [
        ("eval-before", 0.005, [0.0, 0.02]),
        ("eval", 0.945, [0.905, 0.975]),
    ] {
        let result = json!({
            "suite": "arithmetic", "version": "1", "num_problems": 200, "k": 4, "pass@1": pass, "pass@1_ci95": ci,
            "cons@k": pass, "num_tokens_mean": 81.25, "truncated_share": 0.01, "seed": 1, "verifier": "number",
            "sampling": {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 256}});
        write(root.join(stage).join("eval.json"), result.to_string());
        let rows = (0..40).map(|i| {
            let (text, verdict) = match stage {
                "eval" => (format!("<think>Start with {i}. Add 7 to get {}.\nDouble it: {}.</think>\nThe answer is \\boxed{{{}}}.", i + 7, 2 * (i + 7), 2 * (i + 7)), "correct"),
                _ => ("<think>3 3 <script>alert(1)</script> 3 & 3".into(), "unparsable"),
            };
            json!({"problem": format!("p{i}"), "question": format!("Start with {i}, add 7, then double it."), "gold": (2 * (i + 7)).to_string(),
                   "text": text, "verdict": verdict, "finish_reason": if stage == "eval" { "stop" } else { "length" }}).to_string() + "\n"
        });
        write(
            root.join(stage).join("done.json"),
            r#"{"key":"k","result":{}}"#,
        );
        write(
            root.join(stage).join("samples.jsonl"),
            rows.collect::<String>(),
        );
    }
}

/// Every opened element is closed, in order, as far as a page of our own needs it.
fn assert_well_formed(page: &str) {
    let mut open = Vec::new();
    let void = ["meta", "br", "!doctype", "link", "img"];
    for tag in page.split('<').skip(1) {
        let inside = tag.split('>').next().unwrap();
        let name = inside.split([' ', '/', '\n']).next().unwrap();
        if let Some(closed) = inside.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(closed), "near `<{}`", &inside);
        } else if !inside.ends_with('/') && !void.contains(&name) {
            open.push(name.to_string());
        }
    }
    assert_eq!(open, Vec::<String>::new());
}

#[test]
fn a_finished_run_is_told_in_full() {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report_page");
    let _ = std::fs::remove_dir_all(&root);
    run_folder(&root);
    let data = collect(&root).unwrap();
    assert_eq!(data.missing, Vec::<String>::new());
    let path = html::write(&root, &data).unwrap();
    assert_eq!(path, root.join("report.html"));
    let page = std::fs::read_to_string(path).unwrap();
    assert_well_formed(&page);
    for text in [
        "<h1>quickstart &lt;1&gt;</h1>",
        "0.5% → 94.5%",
        "90.5% – 97.5%",
        "3,968",
        "32 dropped",
        "3 kept rows were cut",
        "<b>1.7M</b><span>tokens seen",
        "longer than 512 tokens",
        "traces.jsonl row 40 &lt;b&gt;",
        "Loss over 124 steps: from ",
        "epoch 2",
        "✓ correct",
        "✗ unparsable",
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "<div class=\"think\">Start with 0. Add 7 to get 7.",
        "temperature 0.6, top p 0.95, max new tokens 256",
        "8e-4",
        "<p class=\"lead\">Qwen2, 4 layers, 128 wide, 1M parameters",
        "2 min 11 s",
        "700.0 MiB",
        "RUN/sft/model",
    ] {
        assert!(page.contains(text), "`{text}` is not on the page");
    }
    // checkpoints in order of steps, not of letters
    assert!(page.find("checkpoint-24").unwrap() < page.find("checkpoint-100").unwrap());
    for foreign in ["<script", "http://", "https://", "url(", "@import", "NaN"] {
        assert!(!page.contains(foreign), "`{foreign}` on the page");
    }
    // the same data as JSON and back gives the same page
    let copy = serde_json::from_str(&serde_json::to_string(&data).unwrap()).unwrap();
    assert!(html::page(&copy) == page);
}

/// A pipeline: cold start, rewards, samples, a selection, two evaluations.
fn pipeline_folder(root: &Path) {
    let student =
        json!({"source": {"hub": {"repo": "org/base", "revision": "main"}}, "card": null});
    let stage = |name: &str, kind: &str, model: Option<&str>, job: Value| json!({"name": name, "kind": kind, "seed": 1, "student": student, "model": model, "job": {kind: job}});
    let plan = json!({
        "name": "r1 <2>", "seed": 1, "device": "cpu", "notes": [],
        "stages": [
            stage("cold", "sft", None, json!({"traces": [{"source": "t.jsonl"}], "sft": {"epochs": 2}})),
            stage("rl", "grpo", Some("cold"), json!({"grpo": {"beta": 0.001}})),
            stage("scorer", "reward-model", None, json!({"loss": "pairwise"})),
            stage("samples", "generate", Some("rl"), json!({"sampling": {"num_samples": 4}})),
            stage("chosen", "select", None, json!({"samples": ["@samples"]})),
            stage("eval-base", "eval", None, json!({"suites": []})),
            stage("eval-rl", "eval", Some("rl"), json!({"suites": []})),
        ]
    });
    write(root.join("plan.json"), plan.to_string());
    let done = |stage: &str, result: Value| {
        write(
            root.join(stage).join("done.json"),
            json!({"key": "k", "result": result}).to_string(),
        );
    };
    done(
        "cold",
        json!({"num_steps": 3, "num_tokens": 900, "loss": 0.5}),
    );
    let line = |step: u64| {
        json!({"step": step, "loss": 1.0 / step as f64, "learning_rate": 1e-3, "num_tokens": step * 300}).to_string() + "\n"
    };
    write(
        root.join("cold/metrics.jsonl"),
        (1..=3).map(line).collect::<String>(),
    );
    let line = |step: u64| {
        let t = step as f64;
        let mut row = json!({
            "step": step, "reward": 0.1 * t, "rewards": {"accuracy": 0.05 * t, "tag_count": 1.0 / t}, "pass_rate": 0.05 * t,
            "length": 20.0 + t, "entropy": 2.0 / t, "kl": null, "all_right": 0.0, "all_wrong": 0.5 / t, "num_prompts": 8, "stale": t});
        if step.is_multiple_of(4) {
            row["held_out_accuracy"] = json!(0.9 - 0.1 * t);
        }
        if step == 8 {
            row["alarm"] = json!({
                "since": {"step": 4, "reward": 0.25, "accuracy": 0.5, "accuracy_error": 0.01},
                "now": {"step": 8, "reward": 0.65, "accuracy": 0.1, "accuracy_error": 0.01}});
        }
        row.to_string() + "\n"
    };
    write(
        root.join("rl/metrics.jsonl"),
        (1..=9).map(line).collect::<String>(),
    );
    let completion = |i: usize| json!({"text": format!("</think><script>{i}"), "num_tokens": 7, "finish_reason": "length", "reward": i, "parts": {"tag_count": i}, "correct": i > 0, "advantage": i as f64 - 2.0});
    let groups = |step: usize| json!([{"id": step.to_string(), "question": format!("what is {step} & 1?"), "opening": "<think>\n", "golds": ["1"], "completions": (0..6).map(completion).collect::<Vec<_>>()}]);
    let line = |step: usize| json!({"step": step, "groups": groups(step)}).to_string() + "\n";
    write(
        root.join("rl/rollouts.jsonl"),
        (1..=9).map(line).collect::<String>(),
    );
    let line = |step: u64| {
        let t = step as f64;
        json!({"step": step, "loss": 0.7 / t, "accuracy": 0.5 + 0.05 * t, "margin": t, "held_out_accuracy": 0.6 + 0.01 * t}).to_string() + "\n"
    };
    write(
        root.join("scorer/metrics.jsonl"),
        (1..=3).map(line).collect::<String>(),
    );
    done(
        "scorer",
        json!({"num_steps": 3, "loss": 0.25, "held_out_accuracy": 0.625}),
    );
    done(
        "samples",
        json!({"num_prompts": 1000, "num_samples": 4000, "correct_share": 0.25, "num_tokens_mean": 81.5, "truncated_share": 0.02}),
    );
    done("chosen", json!({"num_kept": 900, "num_traces": 1200}));
    let counts = json!({
        "num_prompts": 1000, "num_prompts_kept": 700, "num_samples": 4000, "num_kept": 900, "pass_rate_mean": 0.25, "num_tokens_mean": 70.0,
        "dropped": [{"reason": "wrong", "count": 3000, "examples": ["p1 sample 2"]}, {"reason": "mixed_language", "count": 100, "examples": ["<p9> sample 1"]}],
        "mix": [{"source": "general.jsonl", "wanted": 300, "num_traces": 300, "num_dropped": 2}], "num_traces": 1200});
    write(root.join("chosen/select.json"), counts.to_string());
    for (stage, pass, ci) in [
        ("eval-base", 0.1, [0.05, 0.2]),
        ("eval-rl", 0.4, [0.3, 0.5]),
    ] {
        let result = json!({"suite": "arithmetic", "version": "1", "num_problems": 100, "k": 1, "pass@1": pass, "pass@1_ci95": ci});
        write(root.join(stage).join("eval.json"), result.to_string());
        let sample = json!({"problem": "p1", "question": "1+1?", "gold": "2", "text": "2", "verdict": "correct", "finish_reason": "stop"});
        write(
            root.join(stage).join("samples.jsonl"),
            format!("{sample}\n"),
        );
        done(stage, json!({}));
    }
}

#[test]
fn a_pipeline_shows_every_stage() {
    let folder = tempfile::tempdir().unwrap();
    pipeline_folder(folder.path());
    let data = collect(folder.path()).unwrap();
    assert_eq!(data.missing, Vec::<String>::new());
    assert!(data.is_pipeline);
    let page = html::page(&data);
    assert_well_formed(&page);
    for text in [
        "<td>rl</td><td>grpo</td><td>cold</td><td>not finished</td>",
        "<td>4,000 samples, 25.0% correct, 81.5 tokens on average, 2.0% cut off</td>",
        "<td>900 samples kept, 1,200 traces</td>",
        // the table of evaluations by the stage that left the model
        "<tr><td>org/base</td><td class=\"n\">10.0% <span class=\"soft\">(5.0% – 20.0%)</span></td></tr>",
        "<tr><td>rl</td><td class=\"n\">40.0%",
        "<td>3 steps, loss 0.25, 62.5% of held-out rows told apart</td>",
        "<a href=\"#learning-0\">rl</a> · <a href=\"#learning-1\">scorer</a>",
        "<h3 id=\"learning-0\">rl <span class=\"soft\">grpo</span></h3>",
        "<li>step 8: the reward is up from 0.25 to 0.65 since step 4, the held-out accuracy down from 50.0% to 10.0%</li>",
        "<span class=\"look0\">while training</span><span class=\"look1\">held-out problems</span>",
        "Accuracy: while training from 0.05 to 0.45, held-out problems from 0.5 to 0.1",
        "<line class=\"alarm\"",
        "<b>Response length</b> – mean number of tokens",
        "<b>Reward</b> – mean over the completions of a step",
        "<span class=\"look0\">accuracy</span><span class=\"look1\">tag count</span>",
        "<summary>3 more curves</summary>",
        "<b>Entropy</b>",
        // constant, but beside a curve that is not
        "all right from 0 to 0, all wrong from 0.5 to 0.056",
        // a number that the page does not know
        "<b>stale</b>",
        "The same at every step: num prompts 8.",
        "<summary>Samples of 4 updates</summary>",
        "4 of 9 groups in <code>rollouts.jsonl</code>",
        "<span class=\"soft\">step 9</span> <b>what is 9 &amp; 1?</b>",
        "reward 5, advantage +3, 7 tokens</span><span class=\"correct\">✓ right",
        "&lt;/think&gt;&lt;script&gt;5<span class=\"soft\"> (cut off)</span>",
        "2 more completions are not shown",
        "Accuracy: training from 0.55 to 0.65, held-out from 0.61 to 0.63",
        "900 of 4,000 samples are kept, for 700 of 1,000 prompts",
        "<tr><td>mixed language</td><td class=\"n\">100</td><td class=\"n\">2.5%</td><td>&lt;p9&gt; sample 1</td></tr>",
        "Mixed in: 300 traces of general.jsonl, 2 rows passed over.",
        "Plan: cold",
    ] {
        assert!(page.contains(text), "`{text}` is not on the page");
    }
    // a number that never changes has no curve
    assert!(!page.contains("num prompts</b>"));
    assert!(!page.contains("<script"));
    let copy = serde_json::from_str(&serde_json::to_string(&data).unwrap()).unwrap();
    assert!(html::page(&copy) == page);
}

#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    run_folder(root);
    std::fs::remove_dir_all(root.join("eval")).unwrap();
    std::fs::remove_file(root.join("data/data.json")).unwrap();
    std::fs::remove_file(root.join("eval-before/samples.jsonl")).unwrap();
    std::fs::remove_file(root.join("sft/done.json")).unwrap();
    let log = std::fs::read_to_string(root.join("sft/metrics.jsonl")).unwrap();
    // a half-written last line is what a kill leaves and no fault; a bad line in the middle is one
    let second = log.lines().nth(1).unwrap();
    write(
        root.join("sft/metrics.jsonl"),
        log.replace(second, "garbage") + "{\"step\":12",
    );
    let data = collect(root).unwrap();
    assert_eq!(
        data.missing,
        [
            "data/data.json",
            "eval-before/samples.jsonl",
            "sft/metrics.jsonl (2 lines cannot be read, line 2 first)",
            "eval/ (this stage has not been run)"
        ]
    );
    let page = html::page(&data);
    assert_well_formed(&page);
    assert!(
        page.contains("Not in this run folder:") && page.contains("<code>data/data.json</code>")
    );
    assert!(page.contains("not finished: "));
}

#[test]
fn an_empty_folder_still_gives_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let data = collect(folder.path()).unwrap();
    assert_eq!(data.missing, ["plan.json"]);
    assert_well_formed(&html::page(&data));
    let error = collect(&folder.path().join("nowhere")).unwrap_err();
    assert!(error.to_string().starts_with("reading `"), "{error}");
}
