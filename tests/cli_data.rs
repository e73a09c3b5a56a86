//! `distill data stats`: files of traces in, exact text out.

mod cli_support;

use cli_support::Place;
use serde_json::Value;

const ROWS: &str = r#"{"problem":"1+1","generations":["<think>a</think>2","<think>bb</think>3"],"answer":"2","correctness_math_verify":[true,false]}
{"problem":"2+2","generations":["<think>cccc</think>4"],"answer":"4","correctness_math_verify":[null]}
{"problem":"3+3","answer":"6"}
"#;

#[test]
fn stats_say_what_a_file_holds() {
    let place = Place::new();
    place.file("t.jsonl", ROWS);
    let run = place.works(&["data", "stats", "t.jsonl"]);
    assert_eq!(
        run.stdout,
        "\
t.jsonl
  schema     Generations (problem, generations, answer, correctness_math_verify)
  rows       3
  traces     3, 3 with reasoning
  verdicts   1 correct, 1 wrong, 1 without
  characters 2 to 5, median 3, 90% below 5
  unusable   1 x the row does not hold what its schema says (first: `t.jsonl:3`)
"
    );
    let json: Value =
        serde_json::from_str(&place.works(&["data", "stats", "t.jsonl", "--json"]).stdout).unwrap();
    assert_eq!(json[0]["num_traces"], 3);
    assert_eq!(json[0]["dropped"][0]["count"], 1);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let place = Place::new();
    place.file("foo.jsonl", "{\"foo\":1}\n");
    place.file("cut.parquet", "PAR1....");
    place.file("t.txt", "hello");
    for (name, part) in [
        ("gone.jsonl", "gone.jsonl"),
        (
            "foo.jsonl",
            "`foo.jsonl`: no known schema of traces has these columns: foo",
        ),
        ("cut.parquet", "cut.parquet"),
        ("t.txt", "t.txt"),
    ] {
        let (error, _) = place.fails(&["data", "stats", name]);
        assert!(error.contains(part), "{name}: {error}");
    }
    assert_eq!(place.run(&["data", "stats"]).code, Some(2));
}
