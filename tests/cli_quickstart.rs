//! The quickstart at a third of its size: enough to get from no right answer to some, not yet to most.

mod cli_support;

use cli_support::Place;
use serde_json::Value;

#[test]
fn a_small_quickstart_learns() {
    let place = Place::new();
    let small = [
        "--set",
        "traces.0.num_problems=4000",
        "--set",
        "eval.limit=50",
    ];
    let args = [&["--recipe", "quickstart", "--run-dir", "q"][..], &small].concat();
    let run = place.works(&args);
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{}", run.stdout);
    assert!(
        lines[0].starts_with("eval-before  arithmetic pass@1 "),
        "{}",
        run.stdout
    );
    assert!(
        lines[1].starts_with("eval         arithmetic pass@1 "),
        "{}",
        run.stdout
    );
    assert_eq!(
        lines[2..],
        ["model        q/sft/model", "report       q/report.html"]
    );

    let losses: Vec<f64> = place
        .read("q/sft/metrics.jsonl")
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["loss"]
                .as_f64()
                .unwrap()
        })
        .collect();
    // 4000 rows in batches of 8, twice
    assert_eq!(losses.len(), 1000);
    assert!(
        losses[0] > 4.0 && losses[999] < 0.5,
        "{} to {}",
        losses[0],
        losses[999]
    );

    // with random weights an answer has no end; afterwards it has one, and about a third of them are right
    let eval = |stage: &str| {
        serde_json::from_str::<Value>(&place.read(&format!("q/{stage}/eval.json"))).unwrap()
    };
    let (before, after) = (eval("eval-before"), eval("eval"));
    assert_eq!(before["pass@1"], 0.0);
    assert!(before["truncated_share"].as_f64() > Some(0.5), "{before}");
    assert!(after["truncated_share"].as_f64() < Some(0.2), "{after}");
    assert!(after["pass@1"].as_f64() >= Some(0.1), "{after}");
    assert!(place.read("q/eval/samples.jsonl").contains("boxed{"));
    assert!(place.read("q/report.html").contains("<svg"));

    // the same call again finds everything done; the model works on its own
    let again = place.works(&args);
    assert_eq!(again.stdout, run.stdout);
    let json = place.works(&[
        "eval",
        "--model",
        "q/sft/model",
        "--suite",
        "arithmetic",
        "--limit",
        "50",
        "--json",
    ]);
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (&json["pass@1"], &json["num_tokens_mean"]),
        (&after["pass@1"], &after["num_tokens_mean"])
    );
    place.works(&["report", "q"]);
    let row = place
        .works(&["preview", "--recipe", "quickstart", "--n", "1"])
        .stdout;
    assert!(
        row.starts_with("builtin:arithmetic 1: ") && row.contains("⟦<think>"),
        "{row}"
    );
}
