//! Files to traces: every published schema, formats, mappings, labels, and what bad files say.

use distill::data::{Item, Problem, Trace, open, problems};
use distill::recipe::suite::{Dataset, Fields};
use distill::recipe::{Keep, Labels, OnBad, Traces};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

fn spec() -> Traces {
    Traces {
        source: "x".into(),
        config: None,
        split: "train".into(),
        revision: None,
        num_problems: None,
        columns: BTreeMap::new(),
        labels: None,
        keep: Keep::All,
        max_per_problem: None,
        limit: None,
        weight: None,
        on_bad_row: OnBad::Error,
    }
}

fn columns(parts: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pairs = parts.iter().map(|(a, b)| (a.to_string(), b.to_string()));
    pairs.collect()
}

fn read(spec: &Traces, path: &Path) -> Result<Vec<Item>, String> {
    let items = open(spec, &[path.to_path_buf()], 0).map_err(|e| e.to_string())?;
    items.collect::<Result<_, _>>().map_err(|e| match e.hint() {
        Some(hint) => format!("{e} | {hint}"),
        None => e.to_string(),
    })
}

fn traces(spec: &Traces, path: &Path) -> Vec<Trace> {
    let items = read(spec, path).unwrap();
    items
        .into_iter()
        .map(|item| match item {
            Item::Trace(trace) => *trace,
            Item::Dropped { name, reason, .. } => panic!("{name}: {reason}"),
        })
        .collect()
}

/// The one trace of one row of JSON.
fn of_row(json: &str) -> Trace {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("row.jsonl");
    std::fs::write(&path, json).unwrap();
    let mut traces = traces(&spec(), &path);
    assert_eq!(traces.len(), 1, "{json}");
    traces.remove(0)
}

fn test_data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

#[test]
fn every_schema_is_told_by_its_columns() {
    // each says: problem P, reasoning R, answer A
    let rows = [
        r#"{"messages":[{"role":"user","content":"P"},{"role":"assistant","content":"<think>\nR\n</think>\n\nA"}],"num_tokens":9,"source":"m"}"#,
        r#"{"system":"Use <|begin_of_thought|> and so on","conversations":[{"from":"user","value":"P"},{"from":"assistant","value":"<|begin_of_thought|>\n\nR\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nA\n\n<|end_of_solution|>"}]}"#,
        r#"{"conversations":[{"from":"human","value":"P"},{"from":"gpt","value":"<think>R</think>A"}]}"#,
        r#"{"problem":"P","deepseek_reasoning":"R","deepseek_solution":"A","ground_truth_solution":"G","domain":"math","test_cases":null}"#,
        r#"{"question":"P","solution":"G","cot_type":"math","deepseek_thinking_trajectory":"R","deepseek_attempt":"A","deepseek_grade":"Yes"}"#,
        r#"{"problem":"P","reannotated_assistant_content":"<think>\nR\n</think>\n\nA","solution":"G"}"#,
        r#"{"problem":"P","solution":"G","messages":[{"role":"user","content":"P"},{"role":"assistant","content":"old"}],"reannotated_messages":[{"role":"user","content":"P"},{"role":"assistant","content":"<think>\nR\n</think>\n\nA"}]}"#,
        r#"{"messages":[{"role":"user","content":"P","info":{"reference_answer":"G","think_content":null}},{"role":"assistant","content":"<think>R</think><answer>A</answer>","info":{"think_content":"R","answer_content":"A"}}]}"#,
        r#"{"messages":[{"role":"user","content":"P"},{"role":"assistant","content":"<think>R</think><answer>A</answer>"}]}"#,
        r#"{"input":"P","output":"<think>\nR\n</think>\n\nA","category":"math","system_prompt":""}"#,
        r#"{"input":[{"role":"user","content":"P"}],"output":"<think>\nR\n</think>\n\nA","category":"math","reasoning":"on"}"#,
        r#"{"messages":[{"role":"user","content":"P"}],"reasoning":"R","answer":"A","model":"R1"}"#,
        r#"{"title":"T","prompt":"P","generation":"<think>\nR\n</think>\n\nA","finish_reason":"stop","messages":[]}"#,
        r#"{"problem":"P","response":"R\n</think>\n\nA","gold":"G"}"#,
        r#"{"problem":"P","response":"think\nR\nanswer\nA","gold":"G"}"#,
        r#"{"question":"P","reasoning":"R","answer":"A"}"#,
        r#"{"messages":[{"role":"user","content":"P"},{"role":"assistant","content":"A","reasoning_content":"R"}]}"#,
        r#"{"messages":[{"role":"user","content":"P"},{"role":"assistant","thinking":"R","content":"A"}]}"#,
        r#"{"messages":[{"role":"user","content":"P"},{"role":"assistant","reasoning_content":"","reasoning":"R","content":"A"}]}"#,
        r#"{"messages":[{"role":"user","content":"P"},{"role":"assistant","reasoning_content":"R","content":"<think>R</think>A"}]}"#,
    ];
    for row in rows {
        let trace = of_row(row);
        let found = (
            trace.problem.as_str(),
            trace.reasoning.as_deref(),
            trace.answer.as_deref(),
        );
        assert_eq!(found, ("P", Some("R"), Some("A")), "{row}");
        assert_eq!(trace.messages, None, "{row}");
        assert_eq!(trace.system, None, "{row}");
        if row.contains("\"G\"") {
            assert_eq!(trace.gold.as_deref(), Some("G"), "{row}");
        }
        if row.contains("Yes") {
            assert_eq!(trace.correct(), Some(true));
        }
    }
    let limo =
        of_row(r#"{"question":"P","solution":"R\n\n**Final Answer**\n\n\\boxed{7}","answer":"7"}"#);
    assert_eq!(limo.reasoning.as_deref(), Some("R"));
    assert_eq!(
        limo.answer.as_deref(),
        Some("**Final Answer**\n\n\\boxed{7}")
    );
    assert_eq!(limo.gold.as_deref(), Some("7"));
}

#[test]
fn several_turns_stay_a_conversation() {
    let trace = of_row(
        r#"{"messages":[{"role":"system","content":"S"},{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"P"},{"role":"assistant","content":"R</think>A"},{"role":"user","content":"bye"}]}"#,
    );
    let messages = trace.messages();
    let said: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
    assert_eq!(said, ["S", "a", "b", "P", "<think>\nR\n</think>\n\nA"]);
    assert_eq!(
        (trace.problem.as_str(), trace.answer.as_deref()),
        ("P", Some("A"))
    );
}

#[test]
fn generations_of_a_row_carry_their_own_verdicts() {
    let items = read(&spec(), &test_data("openr1.parquet")).unwrap();
    let shown: Vec<String> = items
        .iter()
        .map(|item| match item {
            Item::Trace(t) => format!("{} {:?} {:?} {:?}", t.name, t.answer, t.gold, t.correct()),
            Item::Dropped { name, reason, .. } => format!("{name}: {reason}"),
        })
        .collect();
    assert_eq!(
        shown,
        [
            r#"openr1.parquet row 1 trace 1 Some("\\boxed{2}") Some("2") Some(true)"#,
            r#"openr1.parquet row 1 trace 2 Some("\\boxed{3}") Some("2") Some(false)"#,
            r#"openr1.parquet row 2 trace 1 Some("\\boxed{5}") Some("5") Some(true)"#,
            "openr1.parquet row 2 trace 2: incomplete: cut off at the teacher's length limit",
        ]
    );
    let only_correct = Traces {
        keep: Keep::Correct,
        ..spec()
    };
    let items = read(&only_correct, &test_data("openr1.parquet")).unwrap();
    assert!(matches!(&items[1], Item::Dropped { reason, .. } if reason == "wrong by its verdict"));
}

#[test]
fn parquet_streams_over_row_groups() {
    let traces = traces(&spec(), &test_data("messages.parquet"));
    assert_eq!(traces.len(), 40);
    assert_eq!(traces[39].name, "messages.parquet row 40");
    assert_eq!(traces[17].problem, "What is 17+1?");
    assert_eq!(traces[17].reasoning.as_deref(), Some("one after 17"));
}

#[test]
fn packed_files_and_arrays_say_the_same_as_plain_ones() {
    let folder = tempfile::tempdir().unwrap();
    let rows = "{\"problem\":\"P\",\"response\":\"R</think>A\"}\n{\"problem\":\"Q\",\"response\":\"S</think>B\"}\n";
    let array = format!("[{}]", rows.trim().replace('\n', ",\n"));
    let gz = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let files = [
        ("a.jsonl", rows.as_bytes().to_vec()),
        ("a.json", array.clone().into_bytes()),
        ("a.jsonl.gz", gz(rows)),
        ("a.json.gz", gz(&array)),
        ("a.jsonl.zst", zstd::encode_all(rows.as_bytes(), 3).unwrap()),
    ];
    for (name, bytes) in files {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let traces = traces(&spec(), &path);
        let said: Vec<_> = traces
            .iter()
            .map(|t| (t.problem.as_str(), t.answer.as_deref().unwrap()))
            .collect();
        assert_eq!(said, [("P", "A"), ("Q", "B")], "{name}");
        assert_eq!(traces[1].name, format!("{name}:2"));
    }
    let cut = folder.path().join("cut.jsonl.gz");
    let bytes = gz(&rows.repeat(500));
    std::fs::write(&cut, &bytes[..bytes.len() - 12]).unwrap();
    let error = read(&spec(), &cut).unwrap_err();
    assert!(
        error.starts_with("`cut.jsonl.gz:") && error.contains("fetch it again"),
        "{error}"
    );
}

#[test]
fn a_text_without_its_mark_is_unfinished_where_its_neighbours_have_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let plain = r#"{"problem":"P","response":"on and on"}"#;
    std::fs::write(&path, format!("{plain}\n")).unwrap();
    assert_eq!(
        traces(&spec(), &path)[0].answer.as_deref(),
        Some("on and on")
    );
    std::fs::write(
        &path,
        format!(
            "{plain}\n{}\n",
            r#"{"problem":"P","response":"R</think>A"}"#
        ),
    )
    .unwrap();
    let items = read(&spec(), &path).unwrap();
    assert!(matches!(&items[0], Item::Dropped { name, reason, .. }
            if name == "a.jsonl:1" && reason == "incomplete: the reasoning does not end"));
}

#[test]
fn a_recipe_maps_columns_and_joins_labels() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let labels = folder.path().join("labels.jsonl");
    let row = |id: &str, text: &str| {
        format!("{{\"meta\":{{\"id\":\"{id}\"}},\"ask\":\"P\",\"out\":[\"{text}\"],\"right\":5}}\n")
    };
    std::fs::write(
        &path,
        row("x", "R</think>A") + &row("y", "R</think>B") + &row("z", "R</think>C"),
    )
    .unwrap();
    std::fs::write(&labels, "{\"meta.id\":\"x\",\"correct\":true}\n{\"meta.id\":\"y\",\"correct\":false}\n{\"meta.id\":\"z\",\"correct\":null}\n").unwrap();
    let mapped = Traces {
        columns: columns(&[("problem", "ask"), ("generation", "out"), ("gold", "right")]),
        labels: Some(Labels {
            file: labels.to_str().unwrap().into(),
            key: "meta.id".into(),
            column: "correct".into(),
        }),
        keep: Keep::Correct,
        ..spec()
    };
    let items = read(&mapped, &path).unwrap();
    let Item::Trace(first) = &items[0] else {
        panic!("{items:?}")
    };
    assert_eq!(
        (first.answer.as_deref(), first.gold.as_deref()),
        (Some("A"), Some("5"))
    );
    let reasons: Vec<&str> = items[1..]
        .iter()
        .map(|item| match item {
            Item::Dropped { reason, .. } => reason.as_str(),
            Item::Trace(_) => "kept",
        })
        .collect();
    assert_eq!(reasons, ["wrong by its verdict", "no verdict"]);

    let wrong = Traces {
        columns: columns(&[("problem", "asks"), ("generation", "out")]),
        ..spec()
    };
    let error = read(&wrong, &path).unwrap_err();
    assert!(
        error.ends_with("a.jsonl`: no column `asks`; the columns are meta, ask, out, right | did you mean `ask`?"),
        "{error}"
    );
    let unknown = Traces {
        columns: columns(&[("problm", "ask")]),
        ..spec()
    };
    assert_eq!(
        read(&unknown, &path).unwrap_err(),
        "`traces.columns` has no part `problm`"
    );
}

#[test]
fn bad_files_and_rows_each_say_one_thing() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let good = r#"{"problem":"P","response":"A"}"#;
    let empty = write("empty.jsonl", b"");
    assert!(
        read(&spec(), &empty)
            .unwrap_err()
            .ends_with("empty.jsonl` is empty")
    );
    let blank = write("blank.jsonl", b"\n\n");
    assert!(
        read(&spec(), &blank)
            .unwrap_err()
            .ends_with("blank.jsonl` has no rows")
    );
    let broken = write("b.jsonl", format!("{good}\n{{\"problem\":}}\n").as_bytes());
    let error = read(&spec(), &broken).unwrap_err();
    assert!(
        error.starts_with("`b.jsonl:2`: invalid JSON at column 12: expected value"),
        "{error}"
    );
    let typed = write("t.jsonl", br#"{"problem":["x"],"response":"A"}"#);
    let error = read(&spec(), &typed).unwrap_err();
    assert!(
        error.starts_with("`t.jsonl:1`: column `problem.0` holds text, expected an object"),
        "{error}"
    );
    let strange = write("s.jsonl", br#"{"foo":1,"bar":2}"#);
    let error = read(&spec(), &strange).unwrap_err();
    assert!(
        error.starts_with(
            "`s.jsonl:1`: no known schema of traces has these columns: foo, bar | say where"
        ),
        "{error}"
    );
    let whole = std::fs::read(test_data("messages.parquet")).unwrap();
    let cut = write("cut.parquet", &whole[..whole.len() - 100]);
    let error = read(&spec(), &cut).unwrap_err();
    assert!(
        error.contains("cut.parquet`: no readable parquet file: "),
        "{error}"
    );

    let lenient = Traces {
        on_bad_row: OnBad::Drop,
        ..spec()
    };
    let items = read(&lenient, &broken).unwrap();
    assert!(
        matches!(&items[1], Item::Dropped { name, reason, .. } if name == "b.jsonl:2" && reason == "the row cannot be read")
    );
    assert!(read(&lenient, &cut).is_err());
}

#[test]
fn damaged_pages_are_errors_too() {
    let whole = std::fs::read(test_data("messages.parquet")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.parquet");
    let mut seen = 0;
    for at in (4..whole.len() - 8).step_by(23) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        std::fs::write(&path, &bytes).unwrap();
        // some bytes do not matter; none may end the program
        seen += usize::from(read(&spec(), &path).is_err());
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn problems_of_a_suite() {
    let fields = |problem: &str, answer: &str, id: Option<&str>| Fields {
        problem: problem.into(),
        answer: answer.into(),
        id: id.map(String::from),
    };
    let dataset = |source: &str| Dataset {
        source: source.into(),
        config: None,
        split: None,
        revision: None,
        num_problems: Some(5),
    };
    let files = [test_data("problems.parquet")];
    let all: Vec<Problem> = problems(
        &dataset("x"),
        &fields("question", "final_answer", Some("id")),
        &files,
    )
    .unwrap()
    .collect::<Result<_, _>>()
    .unwrap();
    let said: Vec<_> = all
        .iter()
        .map(|p| (p.id.as_str(), p.problem.as_str(), p.gold.as_str()))
        .collect();
    assert_eq!(
        said,
        [("7", "What is 1+1?", "2"), ("8", "Was ist 2²?", "4")]
    );
    let mut wrong = problems(&dataset("x"), &fields("question", "answer", None), &files).unwrap();
    let error = wrong.next().unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "`problems.parquet row 1`: no column `answer`; the columns are id, question, final_answer"
    );
    assert!(wrong.next().is_none());
    let made = problems(
        &dataset("builtin:arithmetic"),
        &fields("problem", "answer", None),
        &[],
    )
    .unwrap();
    assert_eq!(made.count(), 5);
}

#[test]
fn the_system_prompt_of_several_turns_is_trained() {
    let roles = |trace: &Trace| -> Vec<String> {
        trace.messages().iter().map(|m| m.role.clone()).collect()
    };
    let turns = r#"{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}"#;
    let trace = of_row(&format!(
        r#"{{"input":[{turns}],"output":"<think>r</think>d","system_prompt":"S"}}"#
    ));
    let expected = ["system", "user", "assistant", "user", "assistant"];
    assert_eq!(roles(&trace), expected);
    assert_eq!(trace.messages()[0].content, "S");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let last = r#"{"role":"assistant","content":"<think>r</think>d"}"#;
    std::fs::write(&path, format!(r#"{{"conv":[{turns},{last}],"sys":"S"}}"#)).unwrap();
    let mapped = Traces {
        columns: columns(&[("messages", "conv"), ("system", "sys")]),
        ..spec()
    };
    let trace = traces(&mapped, &path).remove(0);
    assert_eq!(roles(&trace), expected);
    assert_eq!(trace.messages()[0].content, "S");
}

#[test]
fn a_row_without_generations_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, r#"{"problem":"P","generations":[]}"#).unwrap();
    let mapped = Traces {
        columns: columns(&[("problem", "problem"), ("generation", "generations")]),
        ..spec()
    };
    for spec in [spec(), mapped] {
        let items = read(&spec, &path).unwrap();
        let [Item::Dropped { name, reason, .. }] = &items[..] else {
            panic!("{items:?}")
        };
        assert_eq!(
            (name.as_str(), reason.as_str()),
            ("a.jsonl:1", "no generations")
        );
    }
}

#[test]
fn verdicts_are_read_in_every_schema_and_overruled_by_labels() {
    for row in [
        r#"{"messages":[{"role":"user","content":"P"},{"role":"assistant","content":"A"}],"correct":false}"#,
        r#"{"prompt":"P","generation":"<think>r</think>A","correct":false}"#,
        r#"{"input":"P","output":"<think>r</think>A","correct":"false"}"#,
        r#"{"problem":"P","response":"<think>r</think>A","correct":false}"#,
        r#"{"problem":"P","generations":["<think>r</think>A"],"correct":[false]}"#,
        r#"{"problem":"P","reannotated_assistant_content":"<think>r</think>A","verified":false}"#,
    ] {
        assert_eq!(of_row(row).correct(), Some(false), "{row}");
    }

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let labels = folder.path().join("labels.jsonl");
    let row = |id: u32, correct: bool| {
        format!("{{\"id\":{id},\"problem\":\"P\",\"response\":\"A\",\"correct\":{correct}}}\n")
    };
    std::fs::write(&path, row(1, true) + &row(2, false) + &row(3, true)).unwrap();
    std::fs::write(&labels, "{\"id\":1,\"ok\":false}\n{\"id\":2,\"ok\":true}\n").unwrap();
    let labelled = Traces {
        labels: Some(Labels {
            file: labels.to_str().unwrap().into(),
            key: "id".into(),
            column: "ok".into(),
        }),
        ..spec()
    };
    let said: Vec<_> = traces(&labelled, &path)
        .iter()
        .map(Trace::correct)
        .collect();
    assert_eq!(said, [Some(false), Some(true), Some(true)]);
}

#[test]
fn the_assistants_turn_wins_over_the_short_answer_beside_it() {
    let trace = of_row(
        r#"{"messages":[{"role":"user","content":"P"},{"role":"assistant","content":"It is 42."}],"reasoning":"r","answer":"42"}"#,
    );
    assert_eq!(trace.answer.as_deref(), Some("It is 42."));
    assert_eq!(trace.reasoning.as_deref(), Some("r"));
    assert_eq!(trace.gold.as_deref(), Some("42"));
}

#[test]
fn generations_without_their_mark_can_be_unfinished() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(
        &path,
        r#"{"problem":"P","generations":["r</think>A","r and no end"]}"#,
    )
    .unwrap();
    let mapped = Traces {
        columns: columns(&[("problem", "problem"), ("generation", "generations")]),
        ..spec()
    };
    for spec in [spec(), mapped] {
        let items = read(&spec, &path).unwrap();
        assert!(matches!(&items[0], Item::Trace(t) if t.answer.as_deref() == Some("A")));
        assert!(
            matches!(&items[1], Item::Dropped { reason, .. } if reason == "incomplete: the reasoning does not end"),
            "{items:?}"
        );
    }
}

/// The items of rows in a file of their own.
fn of_rows(spec: &Traces, rows: &str) -> Result<Vec<Item>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, rows).unwrap();
    read(spec, &path)
}

/// Each item in short: its answer, or why it was dropped.
fn short(items: &[Item]) -> Vec<&str> {
    items
        .iter()
        .map(|item| match item {
            Item::Trace(trace) => trace.answer.as_deref().unwrap_or("-"),
            Item::Dropped { reason, .. } => reason.as_str(),
        })
        .collect()
}

const UNFINISHED: &str = "incomplete: the reasoning does not end";
const MARKS: &str = "marks such as `<think>` within the reasoning or the answer";

#[test]
fn reasoning_that_is_no_text_is_not_lost_in_silence() {
    let row = r#"{"messages":[{"role":"user","content":"P"},{"role":"assistant","content":"A","thinking":[{"text":"R"}]}]}"#;
    let error = of_rows(&spec(), row).unwrap_err();
    assert!(
        error.starts_with(
            "`a.jsonl:1`: `thinking` of an assistant turn holds a list, expected text"
        ),
        "{error}"
    );
}

#[test]
fn labels_judge_each_trace_of_a_row() {
    let folder = tempfile::tempdir().unwrap();
    let labels = folder.path().join("labels.jsonl");
    std::fs::write(
        &labels,
        r#"{"id":1,"ok":[true,false,null]}
{"id":2,"ok":true}
{"id":3,"ok":[true]}
{"id":4,"ok":null}
{"id":5,"ok":[true]}
"#,
    )
    .unwrap();
    let labelled = |on_bad_row| Traces {
        labels: Some(Labels {
            file: labels.to_str().unwrap().into(),
            key: "id".into(),
            column: "ok".into(),
        }),
        keep: Keep::Correct,
        on_bad_row,
        ..spec()
    };
    let row = |id: u32, num: usize| {
        let texts: Vec<String> = (0..num)
            .map(|n| format!("\"<think>r</think>{n}\""))
            .collect();
        let judged: Vec<bool> = (0..num).map(|n| n == 2).collect();
        format!(
            "{{\"id\":{id},\"problem\":\"P\",\"generations\":[{}],\"correctness_math_verify\":{judged:?}}}\n",
            texts.join(",")
        )
    };
    let lenient = labelled(OnBad::Drop);
    let wrong = "wrong by its verdict";
    // one by one; where the label says nothing, what the row says
    let items = of_rows(&lenient, &row(1, 3)).unwrap();
    assert_eq!(short(&items), ["0", wrong, "2"]);
    for other in [4, 9] {
        let items = of_rows(&lenient, &row(other, 3)).unwrap();
        assert_eq!(short(&items), [wrong, wrong, "2"], "{other}");
    }
    assert_eq!(short(&of_rows(&lenient, &row(5, 1)).unwrap()), ["0"]);
    assert_eq!(short(&of_rows(&lenient, &row(2, 1)).unwrap()), ["0"]);

    let strict = labelled(OnBad::Error);
    for (id, says) in [
        (
            2,
            "`a.jsonl:1`: the label of `2` has one verdict for 3 traces | a row of several traces takes a list",
        ),
        (
            3,
            "`a.jsonl:1`: the label of `3` has 1 verdicts for 3 traces | a list of verdicts has one a trace",
        ),
    ] {
        let error = of_rows(&strict, &row(id, 3)).unwrap_err();
        assert!(error.starts_with(says), "{error}");
        let items = of_rows(&lenient, &row(id, 3)).unwrap();
        assert_eq!(short(&items), ["its label cannot be joined"]);
    }
}

#[test]
fn one_verdict_of_a_row_says_nothing_of_its_several_traces() {
    let correct = Traces {
        keep: Keep::Correct,
        ..spec()
    };
    let texts = r#""problem":"P","generations":["<think>r</think>A","<think>r</think>B"]"#;
    let items = of_rows(&correct, &format!(r#"{{{texts},"correct":true}}"#)).unwrap();
    assert_eq!(short(&items), ["no verdict", "no verdict"]);
    let items = of_rows(&correct, &format!(r#"{{{texts},"correct":[false,true]}}"#)).unwrap();
    assert_eq!(short(&items), ["wrong by its verdict", "B"]);
    let error = of_rows(&correct, &format!(r#"{{{texts},"correct":[true]}}"#)).unwrap_err();
    assert!(
        error.starts_with("`a.jsonl:1`: column `correct` has 1 verdicts for 2 traces"),
        "{error}"
    );

    let mapped = Traces {
        columns: columns(&[
            ("problem", "problem"),
            ("generation", "generations"),
            ("correct", "right"),
        ]),
        ..correct
    };
    let items = of_rows(&mapped, &format!(r#"{{{texts},"right":[false,true]}}"#)).unwrap();
    assert_eq!(short(&items), ["wrong by its verdict", "B"]);
    let error = of_rows(&mapped, &format!(r#"{{{texts},"right":true}}"#)).unwrap_err();
    assert!(
        error.starts_with("`a.jsonl:1`: column `right` has one verdict for 2 traces | "),
        "{error}"
    );
}

#[test]
fn conversations_without_their_mark_can_be_unfinished() {
    let turns = |role: &str, content: &str, text: &str| {
        format!(
            r#"[{{"{role}":"user","{content}":"P"}},{{"{role}":"assistant","{content}":"{text}"}}]"#
        )
    };
    let openai = |text: &str| turns("role", "content", text);
    let mapped = Traces {
        columns: columns(&[("messages", "turns")]),
        ..spec()
    };
    type Write<'a> = Box<dyn Fn(&str) -> String + 'a>;
    let schemas: [(Traces, Write); 5] = [
        (
            spec(),
            Box::new(|text| format!(r#"{{"messages":{}}}"#, openai(text))),
        ),
        (
            spec(),
            Box::new(|text| format!(r#"{{"conversations":{}}}"#, turns("from", "value", text))),
        ),
        (
            spec(),
            Box::new(|text| format!(r#"{{"reannotated_messages":{}}}"#, openai(text))),
        ),
        (
            spec(),
            Box::new(|text| {
                format!(r#"{{"problem":"P","reannotated_assistant_content":"{text}"}}"#)
            }),
        ),
        (
            mapped,
            Box::new(|text| format!(r#"{{"turns":{}}}"#, openai(text))),
        ),
    ];
    for (spec, row) in schemas {
        let rows = format!("{}\n{}\n", row("on and on"), row("r</think>A"));
        let items = of_rows(&spec, &rows).unwrap();
        assert_eq!(short(&items), [UNFINISHED, "A"], "{rows}");
        let rows = format!("{}\n{}\n", row("plain"), row("<think>r</think>A"));
        let items = of_rows(&spec, &rows).unwrap();
        assert_eq!(short(&items), ["plain", "A"], "{rows}");
    }
    // the thoughts of earlier answers are left out as a rule
    let several = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"P"},{"role":"assistant","content":"r</think>A"}]}"#;
    assert_eq!(short(&of_rows(&spec(), several).unwrap()), ["A"]);
}

#[test]
fn a_prompt_of_several_turns_is_whole_in_every_schema() {
    let turns = r#"[{"role":"user","content":"a"},{"role":"assistant","content":"r</think>b"},{"role":"user","content":"P"}]"#;
    for rest in [
        r#""problem":TURNS,"generations":["<think>R</think>A"]"#,
        r#""prompt":TURNS,"generation":"<think>R</think>A""#,
        r#""problem":TURNS,"reannotated_assistant_content":"<think>R</think>A""#,
        r#""input":TURNS,"output":"<think>R</think>A""#,
        r#""problem":TURNS,"response":"<think>R</think>A""#,
        r#""problem":TURNS,"reasoning":"R","answer":"A""#,
        r#""problem":TURNS,"solution":"<think>R</think>A","answer":"7""#,
        r#""messages":TURNS,"reasoning":"R","answer":"A""#,
    ] {
        let row = format!("{{{}}}", rest.replace("TURNS", turns));
        let trace = of_row(&row);
        let messages = trace.messages();
        let said: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
        let expected = [
            "a",
            "<think>\nr\n</think>\n\nb",
            "P",
            "<think>\nR\n</think>\n\nA",
        ];
        assert_eq!(said, expected, "{row}");
    }
}

#[test]
fn traces_with_marks_inside_are_dropped() {
    let rows = r#"{"problem":"P","response":"<think>a</think>b<think>c</think>d"}
{"question":"P","reasoning":"a</think>b<think>c","answer":"A"}
{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"<think>a</think>b</think>c"},{"role":"user","content":"P"},{"role":"assistant","content":"A"}]}
{"problem":"P","response":"<think>a</think><answer>A</answer>\nDone."}
{"problem":"What is <think> for?","response":"<think>a</think>B"}
"#;
    let items = of_rows(&spec(), rows).unwrap();
    assert_eq!(short(&items), [MARKS, MARKS, MARKS, "A", "B"]);
}

#[test]
fn every_system_prompt_is_kept_but_those_that_ask_for_other_marks() {
    let said = |row: &str| -> Vec<String> {
        let messages = of_row(row).messages();
        messages.into_iter().map(|m| m.content).collect()
    };
    let system = |text: &str| format!(r#"{{"role":"system","content":"{text}"}}"#);
    let user = r#"{"role":"user","content":"P"}"#;
    let (one, two) = (system("S"), system("T"));
    let other = system("Use <|begin_of_thought|> and so on");
    for row in [
        r#"{"messages":[TURNS,{"role":"assistant","content":"A"}]}"#,
        r#"{"input":[TURNS],"output":"A"}"#,
        r#"{"problem":[TURNS],"generations":["A"]}"#,
    ] {
        let of = |turns: &[&str]| said(&row.replace("TURNS", &turns.join(",")));
        assert_eq!(of(&[&one, &two, user]), ["S", "T", "P", "A"], "{row}");
        assert_eq!(of(&[&other, &one, user]), ["S", "P", "A"], "{row}");
        assert_eq!(of(&[&other, user]), ["P", "A"], "{row}");
        let earlier = [&other, user, r#"{"role":"assistant","content":"b"}"#, user];
        assert_eq!(of(&earlier), ["P", "b", "P", "A"], "{row}");
    }
    assert_eq!(
        said(r#"{"input":"P","output":"A","system_prompt":"Use <|begin_of_thought|>"}"#),
        ["P", "A"]
    );
}

#[test]
fn a_mapped_id_names_the_row() {
    let mapped = Traces {
        columns: columns(&[("problem", "p"), ("generation", "out"), ("id", "meta.id")]),
        ..spec()
    };
    let long = "x".repeat(300);
    let rows = format!(
        r#"{{"p":"P","out":["A","B"],"meta":{{"id":"q\n1"}}}}
{{"p":"P","out":"A","meta":{{"id":7}}}}
{{"p":"P","out":"A","meta":{{"id":null}}}}
{{"p":"P","out":"","meta":{{"id":"{long}"}}}}
"#
    );
    let items = of_rows(&mapped, &rows).unwrap();
    let names: Vec<&str> = items
        .iter()
        .map(|item| match item {
            Item::Trace(trace) => trace.name.as_str(),
            Item::Dropped { name, .. } => name.as_str(),
        })
        .collect();
    let cut = format!("a.jsonl:4 ({})", &long[..100]);
    let expected = [
        "a.jsonl:1 (q 1) trace 1",
        "a.jsonl:1 (q 1) trace 2",
        "a.jsonl:2 (7)",
        "a.jsonl:3",
        &cut,
    ];
    assert_eq!(names, expected);
}

#[test]
fn files_of_one_name_are_told_apart_by_their_folders() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["en/a.jsonl", "de/a.jsonl"].map(|name| folder.path().join(name));
    for path in &files {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, r#"{"problem":"P","response":"A"}"#).unwrap();
    }
    let items: Vec<Item> = open(&spec(), &files, 0)
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let names: Vec<&str> = items
        .iter()
        .map(|item| match item {
            Item::Trace(trace) => trace.name.as_str(),
            Item::Dropped { name, .. } => name.as_str(),
        })
        .collect();
    assert_eq!(names, ["en/a.jsonl:1", "de/a.jsonl:1"]);
}
