//! `distill reward`: text in, exact output out.

mod cli_support;

use cli_support::Place;
use serde_json::{Value, json};

const REWARD: [&str; 5] = ["reward", "--input", "r.jsonl", "--output", "s.jsonl"];

fn score(place: &Place, rows: &[Value], more: &[&str]) -> (Vec<Value>, String) {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    place.file("r.jsonl", text);
    let run = place.works(&[&REWARD[..], more].concat());
    let scored = place
        .read("s.jsonl")
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    (scored, run.stderr)
}

fn parts(row: &Value) -> Value {
    json!([row["reward"], row["rewards"]])
}

const RIGHT: &str = "<think>We add two and two.</think><answer>\\boxed{4}</answer>";

#[test]
fn presets_by_hand() {
    let place = Place::new();
    let right = json!({"prompt": "What is two and two?", "gold": "4", "prediction": RIGHT});
    let wrong =
        json!({"prompt": "What is two and two?", "gold": "4", "prediction": "It is \\boxed{5}"});
    let none = json!({"prompt": "What is two and two?", "gold": "4", "prediction": "<think>It is"});
    let rows = [right, wrong, none];
    let (found, _) = score(&place, &rows, &["--preset", "r1"]);
    let expected = [
        json!([3.0, {"accuracy": 1.0, "format": 1.0, "language_consistency": 1.0}]),
        json!([1.0, {"accuracy": 0.0, "format": 0.0, "language_consistency": 1.0}]),
        json!([1.0, {"accuracy": 0.0, "format": 0.0, "language_consistency": 1.0}]),
    ];
    assert_eq!(found.iter().map(parts).collect::<Vec<_>>(), expected);
    let (found, _) = score(&place, &rows, &["--preset", "classic"]);
    let expected = [
        json!([1.5, {"accuracy": 1.0, "format": 1.0}]),
        json!([-1.0, {"accuracy": -1.0, "format": 0.0}]),
        json!([0.0, {"accuracy": 0.0, "format": 0.0}]),
    ];
    assert_eq!(found.iter().map(parts).collect::<Vec<_>>(), expected);
    let (found, stderr) = score(&place, &rows, &["--preset", "dapo"]);
    let expected = [
        json!([1.0, {"accuracy": 1.0, "soft_overlong": 0.0}]),
        json!([-1.0, {"accuracy": -1.0, "soft_overlong": 0.0}]),
        json!([-1.0, {"accuracy": -1.0, "soft_overlong": 0.0}]),
    ];
    assert_eq!(found.iter().map(parts).collect::<Vec<_>>(), expected);
    assert!(
        stderr.contains("lengths are in characters (3 prompts)"),
        "{stderr}"
    );
    let (found, stderr) = score(&place, &rows, &["--preset", "open-r1"]);
    assert_eq!(
        parts(&found[0]),
        json!([2.0, {"accuracy": 1.0, "format": 0.0, "tag_count": 1.0}])
    );
    assert!(
        stderr.contains(
            "3 samples: reward 0.750 on average (accuracy 0.333, format 0.000, tag_count 0.417)"
        ),
        "{stderr}"
    );
}

#[test]
fn generations_are_a_group() {
    let place = Place::new();
    let generation = |text: &str, tokens: Value, end: &str| json!({"text": text, "tokens": tokens, "finish_reason": end});
    let row = json!({
        "id": 1.50,
        "prompt": "2 + 2",
        "gold": [4, "four"],
        "generations": [
            generation("\\boxed{4}", json!([1, 2]), "stop"),
            generation("\\boxed{4} and on and on", json!([1, 2, 3, 4]), "stop"),
            generation("\\boxed{5}", json!(6), "length"),
        ],
    });
    let rewards = [
        "--reward",
        "accuracy=2",
        "--reward",
        "length",
        "--reward",
        "soft_overlong=1,max_length=5,cache_length=2",
    ];
    let (found, stderr) = score(&place, &[row], &rewards);
    // lengths 2, 4, 6: lambda 0.5, 0, -0.5; overlong 0, (5 - 2 - 4) / 2, cut off
    assert_eq!(found[0]["reward"], json!([2.5, 1.5, -1.5]));
    assert_eq!(
        found[0]["rewards"],
        json!([
            {"accuracy": 1.0, "length": 0.5, "soft_overlong": 0.0},
            {"accuracy": 1.0, "length": 0.0, "soft_overlong": -0.5},
            {"accuracy": 0.0, "length": -0.5, "soft_overlong": -1.0},
        ])
    );
    assert_eq!(found[0]["id"], 1.5);
    assert!(
        stderr.contains("lengths are in tokens (2 prompts)"),
        "{stderr}"
    );
}

#[test]
fn what_has_no_value_is_null_and_counted() {
    let place = Place::new();
    let rows = [
        json!({"prompt": "1 + 1", "gold": "two", "prediction": RIGHT}),
        json!({"prompt": "Add two and two.", "gold": "4", "prediction": RIGHT}),
    ];
    let rewards = [
        "--preset",
        "r1",
        "--reward",
        "accuracy=1,verifier=number",
        "--reward",
        "binary_code",
        "--json",
    ];
    place.file("r.jsonl", rows.map(|row| format!("{row}\n")).concat());
    let run = place.run(&[&REWARD[..], &rewards].concat());
    if run.code != Some(0) {
        // a machine that cannot sandbox refuses
        assert!(
            run.stderr.contains("sandbox") || run.stderr.contains("python"),
            "{}",
            run.stderr
        );
        return;
    }
    let scored: Vec<Value> = place
        .read("s.jsonl")
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(
        scored.iter().map(parts).collect::<Vec<_>>(),
        [
            json!([1.0, {"accuracy": null, "format": 1.0, "language_consistency": null, "binary_code": null}]),
            json!([3.0, {"accuracy": 1.0, "format": 1.0, "language_consistency": 1.0, "binary_code": null}]),
        ]
    );
    let summary: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(
        summary,
        json!({
            "num_samples": 2,
            "reward_mean": 2.0,
            "rewards": [
                {"name": "accuracy", "mean": 1.0, "missing": {"the gold answer is not a number": 1}},
                {"name": "format", "mean": 1.0, "missing": {}},
                {"name": "language_consistency", "mean": 1.0, "missing": {"the language of the prompt cannot be told": 1}},
                {"name": "binary_code", "mean": null, "missing": {"the row has no tests": 2}},
            ],
        })
    );
}

#[test]
fn a_prompt_may_open_the_thinking() {
    let place = Place::new();
    let text = "We add.\n</think>\n<answer>\n4\n</answer>";
    let rows = [
        json!({"prompt": "2 + 2?<think>\n", "prediction": text}),
        json!({"prompt": "2 + 2?", "prediction": text}),
    ];
    let (found, _) = score(
        &place,
        &rows,
        &[
            "--reward",
            "format=1,format=open-r1",
            "--reward",
            "tag_count",
        ],
    );
    assert_eq!(
        parts(&found[0]),
        json!([2.0, {"format": 1.0, "tag_count": 1.0}])
    );
    assert_eq!(
        parts(&found[1]),
        json!([0.75, {"format": 0.0, "tag_count": 0.75}])
    );
}

#[test]
fn what_cannot_be_run_here_is_no_zero() {
    let place = Place::new();
    let tests = json!([{"input": "", "output": "4"}]);
    let code = "```python\nprint(4)\n```";
    let rows = [
        json!({"tests": tests, "prediction": "```java\nclass A {}\n```", "language": "java"}),
        json!({"tests": null, "gold": null, "finish_reason": null, "prediction": code}),
        json!({"input_output": {"inputs": [""], "outputs": ["4"]}, "prediction": code}),
        // the reasoning never ended: what stands in it is not run
        json!({"tests": tests, "prediction": format!("Try\n{code}\nhmm"), "opening": "<think>\n"}),
    ];
    let (found, said) = score(&place, &rows, &["--reward", "code"]);
    let values: Vec<Value> = found
        .iter()
        .map(|row| row["rewards"]["code"].clone())
        .collect();
    assert_eq!(values, [json!(null), json!(null), json!(1.0), json!(0.0)]);
    assert!(
        said.contains("programs in `java` are not run here"),
        "{said}"
    );
}

#[test]
fn mistakes_are_named() {
    let place = Place::new();
    place.file(
        "r.jsonl",
        "{\"gold\":\"4\",\"prediction\":\"4\"}\n{\"prediction\":\"4\"}\n",
    );
    for (args, error) in [
        (&["--preset", "r2"][..], "unknown preset `r2`"),
        (&[], "no rewards are given"),
        (
            &["--preset", "r1"],
            "`r.jsonl` line 2: no `gold`; the row has `prediction`",
        ),
        (
            &["--reward", "accuracy=x"],
            "`--reward accuracy=x`: `weight`: invalid type: string \"x\", expected f64",
        ),
        (
            &["--reward", "format=1,formt=r1"],
            "`--reward format=1,formt=r1`: unknown field `formt`, expected `format`",
        ),
        (
            &["--reward", "cosine=1,max_length=0"],
            "reward `cosine`: `max_length` must be at least 1",
        ),
        (
            &["--reward", "cosine=1,min_wrong=0"],
            "reward `cosine`: `min_wrong`, `max_wrong`, `min_correct` and `max_correct` must not fall",
        ),
        (
            &["--reward", "repetition_penalty=1,max_penalty=1"],
            "reward `repetition_penalty`: `max_penalty` must be 0 or less",
        ),
        (
            &["--reward", "soft_overlong=1,cache_length=0"],
            "reward `soft_overlong`: `cache_length` must be from 1 to `max_length`",
        ),
        (
            &["--reward", "language_consistency=1,target=xx"],
            "reward `language_consistency`: unknown language `xx`",
        ),
        (
            &["--reward", "soft_overlong=1,unit=tokens"],
            "`r.jsonl` line 1: reward `soft_overlong` counts tokens, and a sample has no `tokens`",
        ),
    ] {
        let (found, _) = place.fails(&[&REWARD[..], args].concat());
        assert_eq!(found, error);
        assert!(!place.path().join("s.jsonl").exists());
    }
}
