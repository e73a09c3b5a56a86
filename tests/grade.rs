//! `distill grade`: text in, exact output out.

mod cli_support;

use cli_support::{Place, failure, finished};
use serde_json::{Value, json};
use std::io::Write;
use std::process::Stdio;

const GRADE: [&str; 5] = ["grade", "--input", "c.jsonl", "--output", "v.jsonl"];

fn rows(text: &str) -> Vec<Value> {
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

#[test]
fn rows_keep_their_text_and_order() {
    let place = Place::new();
    place.file(
        "c.jsonl",
        "{\"id\": 1.50, \"gold\": 4, \"prediction\": \"\\\\boxed{4}\", \"é\": [1 ]}\n\n\
         {\"gold\": \"B\", \"prediction\": \"Answer: C\", \"kind\": \"choice\", \"verdict\": 7}\n\
         {\"gold\": [\"5\", \"4\"], \"prediction\": \"\\\\boxed{4}\", \"kind\": \"number\"}\n",
    );
    let run = place.works(&GRADE);
    assert_eq!(run.stdout, "");
    assert_eq!(
        run.stderr.lines().last(),
        Some("3 rows: 2 correct (66.7%), 1 wrong, 0 unparsable")
    );
    let text = place.read("v.jsonl");
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with(
            "{\"id\": 1.50, \"gold\": 4, \"prediction\": \"\\\\boxed{4}\", \"é\": [1 ],\"verdict\":\"correct\",\"correct\":true,\"extracted\":\"4\",\"reason\":"
        ),
        "{}",
        lines[0]
    );
    assert_eq!(
        lines[1],
        "{\"gold\": \"B\",\"prediction\": \"Answer: C\",\"kind\": \"choice\",\"verdict\":\"wrong\",\"correct\":false,\
         \"extracted\":\"C\",\"reason\":\"other letter\"}"
    );
    assert_eq!(rows(&text)[2]["verdict"], "correct");
}

#[test]
fn every_kind_by_hand() {
    let place = Place::new();
    let cases = [
        (
            json!({"kind": "exact", "gold": "yes", "prediction": "yes"}),
            "correct",
            Value::Null,
        ),
        (
            json!({"kind": "boxed", "gold": "x^2", "prediction": "\\boxed{x^{2}}"}),
            "correct",
            Value::Null,
        ),
        (
            json!({"kind": "number", "gold": "#### 7", "prediction": "so 7"}),
            "correct",
            Value::Null,
        ),
        (
            json!({"kind": "number", "gold": "seven", "prediction": "so 7"}),
            "unparsable",
            Value::Null,
        ),
        (
            json!({"kind": "math", "gold": "7", "prediction": "<think>7"}),
            "unparsable",
            Value::Null,
        ),
        (
            json!({"kind": "choice", "gold": "Paris", "options": ["Rome", "Paris"], "prediction": "(B)"}),
            "correct",
            Value::Null,
        ),
        (
            json!({"kind": "format", "prediction": "<think>a</think><answer>b</answer>"}),
            "correct",
            json!(1.0),
        ),
        (
            json!({"kind": "format", "prediction": "<think>a</think><answer>b</answer>c"}),
            "wrong",
            json!(0.0),
        ),
        (
            json!({"kind": "format", "gold": "think-only", "prediction": "<think>a</think>b"}),
            "correct",
            json!(1.0),
        ),
        (
            json!({"kind": "language", "gold": "en", "prediction": "<think>We 加 two</think>四"}),
            "wrong",
            json!(2.0 / 3.0),
        ),
        (
            json!({"kind": "language", "prompt": "二加二等于几？", "prediction": "<think>四</think>4"}),
            "correct",
            json!(1.0),
        ),
        (
            json!({"kind": "readability", "prediction": "<think>Add them.</think>4"}),
            "correct",
            Value::Null,
        ),
        (
            json!({"kind": "readability", "prediction": "<think>Add 它们 up.\n```\nx\n```\n</think>4"}),
            "wrong",
            Value::Null,
        ),
    ];
    let text: String = cases.iter().map(|(row, ..)| format!("{row}\n")).collect();
    place.file("c.jsonl", text);
    let run = place.works(&[&GRADE[..], &["--json"]].concat());
    for (row, (case, verdict, score)) in rows(&place.read("v.jsonl")).iter().zip(&cases) {
        assert_eq!(row["verdict"], *verdict, "{case}: {row}");
        assert_eq!(row["correct"], *verdict == "correct", "{case}");
        assert_eq!(&row["score"], score, "{case}");
    }
    let last = rows(&place.read("v.jsonl")).pop().unwrap();
    assert_eq!(last["reason"], "mixed_language, code_block");
    assert_eq!(last["readability"]["num_code_blocks"], 1);
    let summary: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(
        summary,
        json!({"num_rows": 13, "correct": 8, "wrong": 3, "unparsable": 2, "gold_unreadable": 1, "rate": 8.0 / 13.0})
    );
}

#[test]
fn what_the_prompt_wrote_belongs_to_the_answer() {
    let place = Place::new();
    let cut = "so \\boxed{12}? wait";
    let code = "Try\n```python\nprint(4)\n```\nhmm";
    let tests = json!([{"input": "", "output": "4"}]);
    let cases = [
        (json!({"gold": "12", "prediction": cut}), "correct"),
        (
            json!({"gold": "12", "prediction": cut, "opening": "<think>\n"}),
            "unparsable",
        ),
        (
            json!({"gold": "12", "prediction": cut, "prompt": "Solve.<think>\n"}),
            "unparsable",
        ),
        (
            json!({"gold": "12", "prediction": format!("{cut}</think>\\boxed{{12}}"), "opening": "<think>\n"}),
            "correct",
        ),
        (
            json!({"kind": "format", "gold": "think-only", "prediction": "a</think>b", "opening": "<think>"}),
            "correct",
        ),
        (
            json!({"kind": "code", "prediction": code, "tests": tests, "opening": "<think>\n"}),
            "unparsable",
        ),
        (
            json!({"kind": "code", "prediction": code, "tests": tests, "opening": null}),
            "correct",
        ),
    ];
    let text: String = cases.iter().map(|(row, _)| format!("{row}\n")).collect();
    place.file("c.jsonl", text);
    place.works(&GRADE);
    for (row, (case, verdict)) in rows(&place.read("v.jsonl")).iter().zip(&cases) {
        assert_eq!(row["verdict"], *verdict, "{case}: {row}");
    }
}

#[test]
fn null_is_as_good_as_absent_and_numbers_stay() {
    let place = Place::new();
    let row = r#"{"gold":"7","prediction":"7","kind":null,"options":null,"messages":null,"x":12345678901234567890123,"reason":"old","y":1.50}"#;
    place.file("c.jsonl", format!("{row}\n"));
    place.works(&GRADE);
    let line = place.read("v.jsonl");
    assert!(
        line.starts_with(r#"{"gold":"7","prediction":"7","kind":null,"options":null,"messages":null,"x":12345678901234567890123,"y":1.50,"verdict":"correct""#),
        "{line}"
    );
}

#[test]
fn a_bad_row_names_its_line() {
    let place = Place::new();
    let good = r#"{"gold":"1","prediction":"1"}"#;
    for (bad, error) in [
        ("{\"gold\":}", "`c.jsonl` line 2 column 9: expected value"),
        ("[1]", "`c.jsonl` line 2 is no JSON object"),
        (
            r#"{"gold":"1"}"#,
            "`c.jsonl` line 2: no `prediction`; the row has `gold`",
        ),
        (
            r#"{"prediction":"1"}"#,
            "`c.jsonl` line 2: no `gold`; the row has `prediction`",
        ),
        (
            r#"{"gold":"1","prediction":1}"#,
            "`c.jsonl` line 2: `prediction`: invalid type: integer `1`, expected a string",
        ),
        (
            r#"{"gold":null,"prediction":"1"}"#,
            "`c.jsonl` line 2: no `gold`; the row has `gold` (null), `prediction`",
        ),
        (
            r#"{"gold":[],"prediction":"1"}"#,
            "`c.jsonl` line 2: `gold`: an empty list, expected a string, a number or a list of accepted ones",
        ),
        (
            r#"{"gold":123456789012345678901234567890,"prediction":"1"}"#,
            "`c.jsonl` line 2: `gold`: 1.2345678901234568e+29 is too large to be read exactly",
        ),
        (
            r#"{"gold":"1","prediction":"1","kind":"mth"}"#,
            "`c.jsonl` line 2: unknown kind `mth`",
        ),
        (
            r#"{"kind":"language","prediction":"1"}"#,
            "`c.jsonl` line 2: no `gold` or `prompt`; the row has `kind`, `prediction`",
        ),
        (
            r#"{"kind":"language","gold":"xx","prediction":"1"}"#,
            "`c.jsonl` line 2: unknown language `xx`",
        ),
    ] {
        place.file("c.jsonl", format!("{good}\n{bad}\n{good}\n"));
        let (found, _) = place.fails(&GRADE);
        assert_eq!(found, error);
        assert!(!place.path().join("v.jsonl").exists(), "{bad}");
        assert!(!place.path().join("v.jsonl.partial").exists(), "{bad}");
    }
    let (error, _) = place.fails(&["grade", "--input", "no.jsonl", "--output", "v.jsonl"]);
    assert!(error.starts_with("opening `no.jsonl`"), "{error}");
}

#[test]
fn stdin_and_stdout() {
    let place = Place::new();
    let call = |input: &str, more: &[&str]| {
        let mut command =
            place.command(&[&["grade", "--input", "-", "--output", "-"], more].concat());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    };
    let output = call(
        "{\"gold\":\"B\",\"prediction\":\"B\"}\n",
        &["--kind", "choice"],
    );
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "{\"gold\":\"B\",\"prediction\":\"B\",\"verdict\":\"correct\",\"correct\":true,\"extracted\":\"B\",\"reason\":\"same letter\"}\n"
    );
    let output = call("{\n", &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("`stdin` line 1")
    );
    let (error, _) = failure(finished(
        place.command(&["grade", "--input", "-", "--output", "-", "--json"]),
    ));
    assert_eq!(error, "`--json` and `--output -` both write to stdout");
}

#[test]
fn order_is_kept_over_chunks_and_threads() {
    let place = Place::new();
    let num_rows = 5000;
    let text: String = (0..num_rows)
        .map(|i| {
            let pad = "x".repeat(i % 37 * 20);
            format!(
                "{{\"i\":{i},\"gold\":{},\"prediction\":\"{pad} \\\\boxed{{{i}}}\"}}\n",
                i - i % 2
            )
        })
        .collect();
    place.file("c.jsonl", text);
    let mut outputs = Vec::new();
    for threads in ["1", "3"] {
        place.works(&[&GRADE[..], &["--kind", "number", "--threads", threads]].concat());
        outputs.push(place.read("v.jsonl"));
    }
    assert_eq!(outputs[0], outputs[1]);
    for (i, row) in rows(&outputs[0]).iter().enumerate() {
        assert_eq!(
            (&row["i"], &row["correct"]),
            (&json!(i), &json!(i % 2 == 0))
        );
    }
}

#[test]
fn an_empty_file_is_graded() {
    let place = Place::new();
    place.file("c.jsonl", "\n");
    let run = place.works(&GRADE);
    assert_eq!(place.read("v.jsonl"), "");
    assert!(
        run.stderr
            .ends_with("0 rows: 0 correct, 0 wrong, 0 unparsable\n"),
        "{}",
        run.stderr
    );
}
