//! Traces to the token store: order, masks, drops with their reasons, reuse and repair.

use distill::data::{BuildOptions, BuildReport, Store, TraceSource, builtin};
use distill::progress::{Silent, Stop};
use distill::recipe::{Keep, OnBad, OverLength, Traces, TrainOn};
use distill::tokenize::Chat;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn options() -> BuildOptions {
    BuildOptions {
        max_length: 1000,
        over_length: OverLength::Drop,
        on_untrainable: OnBad::Drop,
        train_on: TrainOn::Last,
        seed: 1,
    }
}

fn source(name: &str, files: &[PathBuf]) -> TraceSource {
    TraceSource {
        spec: Traces {
            source: name.into(),
            config: None,
            split: "train".into(),
            revision: None,
            num_problems: Some(1500),
            columns: BTreeMap::new(),
            labels: None,
            keep: Keep::All,
            max_per_problem: None,
            limit: None,
            weight: None,
            on_bad_row: OnBad::Error,
        },
        files: files.to_vec(),
        revision: None,
    }
}

fn chat() -> Chat {
    Chat::new(builtin::tokenizer("arithmetic").unwrap(), None).unwrap()
}

fn build(
    options: &BuildOptions,
    sources: &[TraceSource],
    dir: &Path,
) -> Result<(Store, BuildReport), String> {
    Store::build(options, sources, &chat(), dir, &Silent, &Stop::default()).map_err(|e| {
        match e.hint() {
            Some(hint) => format!("{e} | {hint}"),
            None => e.to_string(),
        }
    })
}

/// Five rows of known lengths: the texts are bytes but for their digits.
fn rows(folder: &Path) -> PathBuf {
    let path = folder.join("rows.jsonl");
    let row = |problem: &str, response: &str| {
        format!("{{\"problem\":\"{problem}\",\"response\":\"{response}\"}}\n")
    };
    let text = row("1", "<think>2</think>3")
        + &row("1", "44")
        + &row("1", "5")
        + &row("6", &"7".repeat(50))
        + &row("8", "");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn rows_are_in_order_with_their_masks() {
    let dir = tempfile::tempdir().unwrap();
    let (store, report) =
        build(&options(), &[source("builtin:arithmetic", &[])], dir.path()).unwrap();
    assert_eq!(
        (store.len(), report.kept, report.num_dropped()),
        (1500, 1500, 0)
    );
    let chat = chat();
    let traces = builtin::traces("arithmetic", 1, 1500).unwrap();
    let mut tokens = 0;
    for (i, trace) in traces.enumerate() {
        assert_eq!(store.name(i), trace.name);
        let messages = trace.messages();
        let prompt = chat.prompt(&messages[..1]).unwrap();
        assert_eq!(store.tokens(i)[..prompt.len()], prompt);
        assert!(store.trained(i)[..prompt.len()].iter().all(|&t| t == 0));
        let learnt: Vec<u32> = store
            .tokens(i)
            .iter()
            .zip(store.trained(i))
            .filter(|(_, t)| **t == 1)
            .map(|(id, _)| *id)
            .collect();
        let text = chat.tokenizer.decode(&learnt, false).unwrap();
        assert_eq!(text, format!("{}<|im_end|>", messages[1].content));
        tokens += store.tokens(i).len() as u64;
    }
    assert_eq!(report.tokens, tokens);
    assert_eq!(report.lengths.iter().map(|b| b.count).sum::<u64>(), 1500);
    assert_eq!(report.verdicts.correct, 1500);
}

#[test]
fn drops_are_counted_by_reason() {
    let dir = tempfile::tempdir().unwrap();
    let mut rows = source("rows", &[rows(dir.path())]);
    rows.spec.max_per_problem = Some(2);
    let short = BuildOptions {
        max_length: 40,
        ..options()
    };
    let (store, report) = build(&short, &[rows.clone()], &dir.path().join("a")).unwrap();
    let dropped: Vec<_> = report
        .dropped
        .iter()
        .map(|d| (d.reason.as_str(), d.count, d.examples[0].as_str()))
        .collect();
    assert_eq!(
        dropped,
        [
            ("more than 2 traces of its problem", 1, "rows.jsonl:3"),
            ("longer than `max_length = 40`", 1, "rows.jsonl:4"),
            ("no answer", 1, "rows.jsonl:5"),
        ]
    );
    assert_eq!((store.len(), store.name(1).as_str()), (2, "rows.jsonl:2"));
    assert_eq!((report.sources[0].kept, report.sources[0].dropped), (2, 3));

    rows.spec.max_per_problem = None;
    rows.spec.limit = Some(3);
    let (_, report) = build(&short, &[rows.clone()], &dir.path().join("b")).unwrap();
    assert_eq!((report.kept, report.num_dropped()), (3, 0));

    rows.spec.limit = None;
    let cut = BuildOptions {
        over_length: OverLength::Truncate,
        ..short.clone()
    };
    let (store, report) = build(&cut, &[rows.clone()], &dir.path().join("c")).unwrap();
    assert_eq!(
        (report.truncated, store.tokens(3).len(), report.longest),
        (1, 40, 40)
    );

    let strict = BuildOptions {
        over_length: OverLength::Error,
        ..short.clone()
    };
    let error = build(&strict, &[rows.clone()], &dir.path().join("d"))
        .err()
        .unwrap();
    assert!(
        error.starts_with("`rows.jsonl:4`: ") && error.contains("over `max_length = 40`"),
        "{error}"
    );

    let tiny = BuildOptions {
        max_length: 2,
        ..short
    };
    let error = build(
        &tiny,
        &[source("builtin:arithmetic", &[])],
        &dir.path().join("e"),
    )
    .err()
    .unwrap();
    assert_eq!(
        error,
        "no row is left to train on: 1500 x longer than `max_length = 2` (first: `builtin:arithmetic 1`) | raise `max_length`, or cut the rows with `over_length = \"truncate\"`"
    );
    assert!(
        std::fs::read_dir(dir.path().join("e"))
            .unwrap()
            .next()
            .is_none()
    );
}

#[test]
fn a_store_is_used_again_only_where_nothing_changed() {
    let dir = tempfile::tempdir().unwrap();
    let file = rows(dir.path());
    let sources = [source("rows", std::slice::from_ref(&file))];
    let at = dir.path().join("store");
    let made = |options: &BuildOptions| {
        let (store, report) = build(options, &sources, &at).unwrap();
        let time = std::fs::metadata(at.join("store.json"))
            .unwrap()
            .modified()
            .unwrap();
        (store.key().to_string(), report, time)
    };
    let first = made(&options());
    assert_eq!(made(&options()), first);

    // a damaged one is made anew and is the same
    let path = at.join("tokens.bin");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[3] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let again = made(&options());
    assert_eq!((&again.0, &again.1), (&first.0, &first.1));
    assert_ne!(again.2, first.2);

    let other = BuildOptions {
        max_length: 999,
        ..options()
    };
    assert_ne!(made(&other).0, first.0);
    let mut text = std::fs::read_to_string(&file).unwrap();
    text.push_str("{\"problem\":\"9\",\"response\":\"9\"}\n");
    std::fs::write(&file, text).unwrap();
    let grown = made(&options());
    assert_ne!(grown.0, first.0);
    assert_eq!(grown.1.kept, first.1.kept + 1);
}

#[test]
fn a_wish_to_stop_leaves_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let stop = Stop::default();
    stop.request();
    let sources = [source("builtin:arithmetic", &[])];
    assert!(Store::build(&options(), &sources, &chat(), dir.path(), &Silent, &stop).is_err());
    assert!(Store::open(dir.path()).is_err());
}

#[test]
fn what_stands_behind_the_limit_cannot_fail() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let good = "{\"problem\":\"1\",\"response\":\"2\"}\n";
    std::fs::write(&path, format!("{good}{{\"problem\":}}\n")).unwrap();
    let broken = dir.path().join("broken.parquet");
    std::fs::write(&broken, "PAR1").unwrap();
    let mut rows = source("rows", &[path, broken]);
    for limit in [1, 2] {
        rows.spec.limit = Some(limit);
        let built = build(&options(), &[rows.clone()], &dir.path().join("store"));
        match limit {
            1 => {
                let (store, report) = built.unwrap();
                assert_eq!((store.len(), report.num_dropped()), (1, 0));
                assert!(report.sources[0].limit_reached);
            }
            _ => assert!(
                built
                    .err()
                    .unwrap()
                    .starts_with("`rows.jsonl:2`: invalid JSON")
            ),
        }
    }
}

#[test]
fn dropped_rows_are_named_with_their_source() {
    let dir = tempfile::tempdir().unwrap();
    let sources = ["a", "b"].map(|name| {
        let path = dir.path().join(name).join("train.jsonl");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let good = "{\"problem\":\"1\",\"response\":\"2\"}\n";
        std::fs::write(&path, format!("{good}{}", good.replace('2', ""))).unwrap();
        source(&format!("{name}/train.jsonl"), &[path])
    });
    let at = dir.path().join("store");
    let (_, report) = build(&options(), &sources, &at).unwrap();
    assert!(!report.sources[0].limit_reached);
    let text = std::fs::read_to_string(at.join("dropped.jsonl")).unwrap();
    let named: Vec<(String, String)> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| {
            let part = |key: &str| line[key].as_str().unwrap().to_string();
            (part("source"), part("row"))
        })
        .collect();
    let expected = ["a/train.jsonl", "b/train.jsonl"]
        .map(|source| (source.to_string(), "train.jsonl:2".to_string()));
    assert_eq!(named, expected);
}

#[test]
fn a_conversation_is_one_problem_with_all_its_turns() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let row = |system: &str, first: &str| {
        format!(
            "{{\"messages\":[{system}{{\"role\":\"user\",\"content\":\"{first}\"}},{{\"role\":\"assistant\",\"content\":\"2\"}},{{\"role\":\"user\",\"content\":\"3\"}},{{\"role\":\"assistant\",\"content\":\"4\"}}]}}\n"
        )
    };
    let system = "{\"role\":\"system\",\"content\":\"9\"},";
    // the third one asks the same as the first; the last two are of one turn, one of them with two system prompts
    let text = row("", "1")
        + &row("", "5")
        + &row(system, "1")
        + "{\"problem\":\"3\",\"response\":\"4\"}\n"
        + &format!(
            "{{\"messages\":[{system}{system}{{\"role\":\"user\",\"content\":\"3\"}},{{\"role\":\"assistant\",\"content\":\"4\"}}]}}\n"
        );
    std::fs::write(&path, text).unwrap();
    let mut rows = source("rows", &[path]);
    rows.spec.max_per_problem = Some(1);
    let (store, report) = build(&options(), &[rows], &dir.path().join("store")).unwrap();
    let names: Vec<String> = (0..store.len()).map(|i| store.name(i)).collect();
    assert_eq!(names, ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:4"]);
    assert_eq!(
        report.dropped[0].reason,
        "more than 1 traces of its problem"
    );
    assert_eq!(report.num_dropped(), 2);
}
