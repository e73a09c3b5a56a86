//! The judge against an endpoint on this machine: order, cache, budget, faults. Nothing that goes wrong becomes a score.

mod cli_support;
mod judge_server;

use cli_support::Place;
use distill::progress::Stop;
use distill::recipe::reward::JudgeSettings;
use distill::reward::judge::{JudgePair, JudgeVerdict};
use distill::reward::{Judge, JudgeCase};
use distill::{Error, Result};
use judge_server::{Reply, Server, nobody, says, verdict};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

fn settings(url: &str, cache: &Path) -> JudgeSettings {
    JudgeSettings {
        key_variable: "NO_SUCH_KEY".into(),
        backoff_s: 0.01,
        max_retries: 3,
        timeout_s: 5.0,
        cache: cache.display().to_string(),
        ..JudgeSettings::new(url, "judge-1")
    }
}

fn cases(texts: &[String]) -> Vec<JudgeCase<'_>> {
    texts
        .iter()
        .map(|text| JudgeCase {
            question: Some("even?"),
            reference: "an even number",
            prediction: text,
        })
        .collect()
}

fn numbers(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("<think>hm</think> {i}")).collect()
}

/// Right are even numbers.
fn is_even(request: &judge_server::Request) -> bool {
    request
        .part("candidate answer")
        .parse::<usize>()
        .unwrap()
        .is_multiple_of(2)
}

fn ask(settings: &JudgeSettings, texts: &[String]) -> Result<Vec<Option<bool>>> {
    let judge = Judge::open(settings, Stop::default())?;
    let verdicts = judge.verdicts(&cases(texts))?;
    Ok(verdicts.into_iter().map(|v| v.map(|v| v.correct)).collect())
}

fn evens(n: usize) -> Vec<Option<bool>> {
    (0..n).map(|i| Some(i % 2 == 0)).collect()
}

#[test]
fn answers_come_in_order_and_several_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, request| {
        let n: u64 = request.part("candidate answer").parse().unwrap();
        Reply::Slow(
            Duration::from_millis(40 - n),
            json!({"analysis": "", "correctness": if n.is_multiple_of(2) {"correct"} else {"incorrect"}})
                .to_string(),
        )
    });
    let mut settings = settings(&server.url, dir.path());
    settings.concurrency = 4;
    assert_eq!(ask(&settings, &numbers(24)).unwrap(), evens(24));
    assert!(
        (2..=4).contains(&server.most_at_once()),
        "{}",
        server.most_at_once()
    );
    let request = &server.requests()[0];
    assert!(
        request.head.starts_with("POST /v1/chat/completions"),
        "{}",
        request.head
    );
    assert!(
        !request.head.to_lowercase().contains("authorization"),
        "{}",
        request.head
    );
    assert_eq!(request.body["model"], "judge-1");
    assert_eq!(request.part("question"), "even?");
    assert_eq!(request.part("reference answer"), "an even number");
    // the thinking is not judged
    assert!(!request.user().contains("hm"));
}

#[test]
fn a_second_run_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, request| verdict(is_even(request)));
    let mut settings = settings(&server.url, dir.path());
    let texts = numbers(6);
    assert_eq!(ask(&settings, &texts).unwrap(), evens(6));
    assert_eq!(ask(&settings, &texts).unwrap(), evens(6));
    assert_eq!(server.num_requests(), 6);
    // equal answers are asked once, a new one is asked
    let more: Vec<String> = [numbers(8), numbers(8)].concat();
    assert_eq!(
        ask(&settings, &more).unwrap(),
        [evens(8), evens(8)].concat()
    );
    assert_eq!(server.num_requests(), 8);
    // another judge is asked again
    settings.model = "judge-2".into();
    assert_eq!(ask(&settings, &texts).unwrap(), evens(6));
    assert_eq!(server.num_requests(), 14);
    // nobody needs to be there for what is known
    settings.model = "judge-1".into();
    drop(server);
    assert_eq!(ask(&settings, &texts).unwrap(), evens(6));
}

/// A name, and what the endpoint does with each of the first requests.
type Fault = (&'static str, fn(usize) -> Reply);

/// A name, what the endpoint always does, how often it is asked, and what the error says.
type Broken = (&'static str, fn() -> Reply, usize, &'static str);

#[test]
fn faults_are_retried() {
    let busy = |headers| Reply::Status(429, headers, "{\"error\": \"slow down\"}".into());
    let faults: [Fault; 9] = [
        ("429", |_| Reply::Status(429, "", String::new())),
        ("500", |_| Reply::Status(500, "", "oops".into())),
        ("503", |_| Reply::Status(503, "", String::new())),
        ("cut", |_| {
            Reply::Cut("{\"correctness\": \"correct\"}".into())
        }),
        ("html", |_| Reply::Status(200, "", "<html>".into())),
        ("no choices", |_| {
            Reply::Status(200, "", "{\"choices\": []}".into())
        }),
        ("no text", |_| {
            Reply::Status(
                200,
                "",
                "{\"choices\": [{\"message\": {\"content\": null}}]}".into(),
            )
        }),
        ("invalid", |_| says("{\"correctness\": \"correct\"")),
        ("prose", |_| says("It is correct.")),
    ];
    for (name, fault) in faults {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(move |n, _| if n < 2 { fault(n) } else { verdict(false) });
        let found = ask(&settings(&server.url, dir.path()), &numbers(1)).unwrap();
        assert_eq!(
            (found, server.num_requests()),
            (vec![Some(false)], 3),
            "{name}"
        );
    }
    // as long as the endpoint asks for
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(move |n, _| {
        if n == 0 {
            busy("retry-after: 1\r\n")
        } else {
            verdict(true)
        }
    });
    let start = Instant::now();
    assert_eq!(
        ask(&settings(&server.url, dir.path()), &numbers(1)).unwrap(),
        [Some(true)]
    );
    assert!(start.elapsed() >= Duration::from_secs(1));
    // but not for an hour
    let server = Server::start(move |_, _| busy("retry-after: 3600\r\n"));
    let error = ask(&settings(&server.url, &dir.path().join("b")), &numbers(1)).unwrap_err();
    assert!(
        error.to_string().contains("longer than 10 minutes"),
        "{error}"
    );
}

#[test]
fn what_stays_broken_is_an_error_and_no_score() {
    let faults: [Broken; 8] = [
        ("500", || Reply::Status(500, "", "oops".into()), 4, "500"),
        ("cut", || Reply::Cut("{}".into()), 4, "cut off"),
        (
            "slow",
            || Reply::Slow(Duration::from_secs(2), String::new()),
            4,
            "no answer in time",
        ),
        ("prose", || says("I am not sure."), 4, "no JSON object"),
        (
            "two",
            || says("{\"correctness\": \"correct\"} {\"correctness\": \"correct\"}"),
            4,
            "several JSON objects",
        ),
        (
            "400",
            || Reply::Status(400, "", "too long".into()),
            1,
            "too long",
        ),
        (
            "404",
            || Reply::Status(404, "", "no model".into()),
            1,
            "no model",
        ),
        (
            "302",
            || Reply::Status(302, "location: http://127.0.0.1:1/\r\n", String::new()),
            1,
            "302",
        ),
    ];
    for (name, fault, num_requests, why) in faults {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(move |_, _| fault());
        let mut settings = settings(&server.url, dir.path());
        settings.timeout_s = 0.2;
        let error = ask(&settings, &numbers(1)).unwrap_err();
        assert!(error.to_string().contains(why), "{name}: {error}");
        assert!(
            error.hint().unwrap().contains("what was judged is kept"),
            "{name}"
        );
        assert_eq!(server.num_requests(), num_requests, "{name}");
    }
    let dir = tempfile::tempdir().unwrap();
    let error = ask(&settings(&nobody(), dir.path()), &numbers(1)).unwrap_err();
    assert!(
        error.to_string().contains("it cannot be reached"),
        "{error}"
    );
}

#[test]
fn what_was_judged_before_a_failure_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let broken = Server::start(|n, request| match n {
        0..3 => verdict(is_even(request)),
        _ => Reply::Status(500, "", String::new()),
    });
    let mut settings = settings(&broken.url, dir.path());
    settings.concurrency = 1;
    settings.max_retries = 0;
    assert!(ask(&settings, &numbers(5)).is_err());
    assert_eq!(broken.num_requests(), 4);
    assert!(ask(&settings, &numbers(5)).is_err());
    // the same address, as it is part of what was asked
    assert_eq!(broken.num_requests(), 5);
    assert_eq!(ask(&settings, &numbers(3)).unwrap(), evens(3));
    assert_eq!(broken.num_requests(), 5);
}

#[test]
fn a_budget_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, request| verdict(is_even(request)));
    let mut settings = settings(&server.url, dir.path());
    settings.concurrency = 1;
    settings.max_requests = Some(4);
    let error = ask(&settings, &numbers(6)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the judge's budget of 4 requests is spent"
    );
    assert_eq!(server.num_requests(), 4);
    // four are known: the next four are within the budget again
    assert_eq!(ask(&settings, &numbers(6)).unwrap(), evens(6));
    assert_eq!(server.num_requests(), 6);
    // the endpoint says 100 tokens a request
    settings.max_requests = None;
    settings.max_total_tokens = Some(250);
    settings.model = "judge-2".into();
    let error = ask(&settings, &numbers(6)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the judge's budget of 250 tokens is spent"
    );
    assert_eq!(server.num_requests(), 9);
}

#[test]
fn unfinished_thinking_is_no_answer_and_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| verdict(true));
    let texts = vec!["<think>4, I think".to_string()];
    assert_eq!(
        ask(&settings(&server.url, dir.path()), &texts).unwrap(),
        [None]
    );
    assert_eq!(server.num_requests(), 0);
}

#[test]
fn preferences_are_asked_in_both_orders() {
    let dir = tempfile::tempdir().unwrap();
    let label = |label: &str| says(json!({"analysis": "", "preference": label}).to_string());
    // prefers the first place, whatever stands there
    let biased = Server::start(move |_, _| label("A>B"));
    // prefers the longer answer
    let honest = Server::start(move |_, request| {
        match request
            .part("answer of A")
            .len()
            .cmp(&request.part("answer of B").len())
        {
            std::cmp::Ordering::Greater => label("A>>B"),
            std::cmp::Ordering::Equal => label("A=B"),
            std::cmp::Ordering::Less => label("B>A"),
        }
    });
    let pairs = [("long", "x"), ("x", "long"), ("x", "y")].map(|(first, second)| JudgePair {
        question: "q",
        first,
        second,
    });
    let ask = |url: &str| {
        let judge = Judge::open(&settings(url, dir.path()), Stop::default()).unwrap();
        let found = judge.preferences(&pairs).unwrap();
        found
            .iter()
            .map(|p| (p.score, p.consistent))
            .collect::<Vec<_>>()
    };
    assert_eq!(ask(&biased.url), [(0.0, false), (0.0, false), (0.0, false)]);
    assert_eq!(ask(&honest.url), [(1.5, true), (-1.5, true), (0.0, true)]);
    // the second pair is the first one turned round
    assert_eq!(honest.num_requests(), 4);
}

#[test]
fn a_stop_is_heard() {
    let dir = tempfile::tempdir().unwrap();
    let stop = Stop::default();
    let judge = Judge::open(&settings(&nobody(), dir.path()), stop.clone()).unwrap();
    stop.request();
    let texts = numbers(1);
    let error = judge.verdicts(&cases(&texts)).unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error}");
}

#[test]
fn settings_that_mean_nothing_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = settings("http://localhost:1/v1", dir.path());
    let refused = |change: fn(&mut JudgeSettings), why: &str| {
        let mut settings = good.clone();
        change(&mut settings);
        let error = Judge::open(&settings, Stop::default())
            .err()
            .map(|e| e.to_string());
        assert!(
            error.as_ref().is_some_and(|e| e.contains(why)),
            "{why}: {error:?}"
        );
    };
    refused(|s| s.url = "localhost".into(), "`url`");
    refused(|s| s.model = String::new(), "`model`");
    refused(|s| s.concurrency = 0, "`concurrency`");
    refused(|s| s.timeout_s = f64::NAN, "`timeout_s`");
    refused(|s| s.backoff_s = -1.0, "`backoff_s`");
    refused(|s| s.max_tokens = 0, "`max_tokens`");
    refused(|s| s.temperature = 9.0, "`temperature`");
}

#[test]
fn verdicts_are_read_back_as_they_were_said() {
    let said = JudgeVerdict {
        analysis: "é \"4\"".into(),
        correct: true,
    };
    let text = serde_json::to_string(&said).unwrap();
    assert_eq!(serde_json::from_str::<JudgeVerdict>(&text).unwrap(), said);
}

#[test]
fn the_command_asks_the_judge() {
    let place = Place::new();
    let server = Server::start(|_, request| verdict(request.part("candidate answer") == "Paris"));
    place.file(
        "c.jsonl",
        "{\"gold\":\"the capital of France\",\"prediction\":\"Paris\",\"prompt\":\"q\",\"kind\":\"judge\"}\n\
         {\"gold\":\"4\",\"prediction\":\"\\\\boxed{4}\"}\n\
         {\"gold\":[\"Rome\",\"Roma\"],\"prediction\":\"Milan\",\"kind\":\"judge\"}\n",
    );
    let call = |url: &str| {
        let args = [
            "grade",
            "--input",
            "c.jsonl",
            "--output",
            "v.jsonl",
            "--judge-model",
            "m",
            "--judge-retries",
            "0",
        ];
        let mut command = place.command(
            &[
                &args[..],
                &["--judge-url", url, "--judge-key-variable", "THE_KEY"],
            ]
            .concat(),
        );
        command.env("THE_KEY", "secret-123");
        cli_support::finished(command)
    };
    let run = call(&server.url);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(
        run.stderr
            .contains("the judge was asked 2 times, 200 tokens"),
        "{}",
        run.stderr
    );
    let verdicts: Vec<Value> = place
        .read("v.jsonl")
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let correct: Vec<&Value> = verdicts.iter().map(|row| &row["correct"]).collect();
    assert_eq!(correct, [true, true, false]);
    assert_eq!(verdicts[0]["reason"], "compared");
    assert!(server.requests()[0].head.contains("Bearer secret-123"));
    // the key is written nowhere
    let mut folders = vec![place.path().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                assert!(
                    !bytes.windows(10).any(|w| w == b"secret-123"),
                    "{}",
                    path.display()
                );
            }
        }
    }
    // a wrong key is told by the name of its variable
    let refuses = Server::start(|_, _| Reply::Status(401, "", "bad key".into()));
    std::fs::remove_file(place.path().join("v.jsonl")).unwrap();
    let (error, hint) = cli_support::failure(call(&refuses.url));
    assert!(
        error.contains("401") && hint.contains("`THE_KEY`"),
        "{error} {hint}"
    );
    assert!(!format!("{error}{hint}").contains("secret"));
    let (error, hint) = cli_support::failure(call(&nobody()));
    assert!(error.contains("cannot be reached"), "{error}");
    assert!(hint.contains("runs/judge-cache"), "{hint}");
    assert!(!place.path().join("v.jsonl").exists());
    let (error, _) = place.fails(&["grade", "--input", "c.jsonl", "--output", "v.jsonl"]);
    assert_eq!(error, "rows of kind `judge` need a judge");
}
