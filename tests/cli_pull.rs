//! `distill pull` as a program, against the stand-in Hub: what it prints, what it reads of the environment, that it never
//! says a token, and that a kill at any moment leaves a cache that the next call completes.

mod cli_support;
mod hub_server;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cli_support::{Place, Run};
use hub_server::{Fault, READ_TOKEN, STRANGER_TOKEN, Server};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Moments at which a pull is killed; more with `DISTILL_KILLS=50`.
const NUM_KILLS: usize = 6;

fn pull(place: &Place, server: &Server, token: &str, args: &[&str]) -> Command {
    let mut command = place.command(&["pull"]);
    command
        .args(args)
        .env("HF_ENDPOINT", server.url())
        .env("HF_TOKEN", token)
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("HF_HUB_DISABLE_XET")
        .env("HF_XET_CLIENT_RETRY_BASE_DELAY", "50ms");
    command
}

/// Runs it; whatever it says holds no token.
fn output(mut command: Command) -> Run {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let run = Run {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    };
    for said in [&run.stdout, &run.stderr] {
        assert!(!said.contains("TokenThatMustNotLeak"), "{said}");
        assert!(!said.contains("Bearer"), "{said}");
    }
    run
}

/// A stream of numbers that is the same on every run.
fn dice(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        state >> 33
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut next = dice(seed);
    (0..len).map(|_| next() as u8).collect()
}

fn model() -> Vec<(&'static str, Vec<u8>)> {
    let index = r#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    vec![
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", noise(3, 200_000)),
        ("model.safetensors.index.json", index.into()),
        ("model-00001-of-00002.safetensors", noise(1, 4_000_000)),
        ("model-00002-of-00002.safetensors", noise(2, 6_000_000)),
    ]
}

fn put(server: &Server, with_xet: bool) -> String {
    let files = model();
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(path, c)| (*path, c.as_slice()))
        .collect();
    if with_xet {
        server.put_with_xet("org/name", &files)
    } else {
        server.put("org/name", &files)
    }
}

fn assert_whole(folder: &Path) {
    for (path, content) in model() {
        let found = std::fs::read(folder.join(path)).unwrap();
        assert!(found == content, "{path}");
    }
}

fn cache(place: &Place) -> PathBuf {
    place.path().join("hf/hub/models--org--name")
}

/// Every file that stands under a hash has it, and every file of a snapshot is one of these.
fn assert_no_corruption(cache: &Path) {
    for entry in std::fs::read_dir(cache.join("blobs")).into_iter().flatten() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let content = std::fs::read(entry.path()).unwrap();
        let sha1 = || {
            use sha1::Digest;
            let digest = sha1::Sha1::new()
                .chain_update(format!("blob {}\0", content.len()))
                .chain_update(&content);
            hex::encode(digest.finalize())
        };
        match name.len() {
            64 => assert_eq!(name, hex::encode(Sha256::digest(&content))),
            40 => assert_eq!(name, sha1()),
            _ => assert!(name.ends_with(".incomplete"), "{name}"),
        }
    }
    for commit in std::fs::read_dir(cache.join("snapshots"))
        .into_iter()
        .flatten()
    {
        for file in std::fs::read_dir(commit.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            assert!(path.metadata().is_ok(), "{}", path.display());
        }
    }
}

#[test]
fn what_it_prints() {
    let (server, place) = (Server::start(), Place::new());
    let commit = put(&server, true);
    let run = output(pull(&place, &server, READ_TOKEN, &["org/name"]));
    let folder = cache(&place).join("snapshots").join(&commit);
    assert_eq!(
        (run.code, run.stdout.trim()),
        (Some(0), folder.to_str().unwrap()),
        "{}",
        run.stderr
    );
    assert_whole(&folder);
    let run = output(pull(&place, &server, READ_TOKEN, &["org/name", "--json"]));
    let value: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(value["revision"], commit.as_str());
    assert_eq!(value["folder"], folder.to_str().unwrap());
    let args = ["org/name", "--files", "*.json", "--json"];
    let run = output(pull(&place, &server, READ_TOKEN, &args));
    let value: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(value["files"].as_array().unwrap().len(), 3, "{value}");
    // a folder of that name beside us is not what is asked for
    std::fs::create_dir_all(place.path().join("org/name")).unwrap();
    let run = output(pull(&place, &server, READ_TOKEN, &["org/name"]));
    assert_eq!(run.stdout.trim(), folder.to_str().unwrap());
    // without network, from the cache alone
    server.forget_asked();
    let mut offline = pull(&place, &server, READ_TOKEN, &["org/name"]);
    offline.env("HF_HUB_OFFLINE", "1");
    assert_eq!(output(offline).code, Some(0));
    assert!(server.asked().is_empty());
}

#[test]
fn errors_say_what_to_do_and_no_secret() {
    let server = Server::start();
    put(&server, false);
    server.create("org/secret", true);
    let refuse = |on: &str, status, code| Fault::Refuse {
        on: on.into(),
        status,
        code,
        retry_after_s: Some(0),
    };
    let cases: Vec<(&str, &str, Option<Fault>, &str)> = vec![
        (
            STRANGER_TOKEN,
            "org/secret",
            None,
            "error: there is no model `org/secret` at ",
        ),
        (
            READ_TOKEN,
            "org/none",
            None,
            "error: there is no model `org/none` at ",
        ),
        (
            READ_TOKEN,
            "org/name@v9",
            None,
            "error: model `org/name` has no revision `v9`",
        ),
        (
            "hf_UnknownTokenThatMustNotLeak",
            "org/name",
            None,
            "does not know the token",
        ),
        (
            READ_TOKEN,
            "org/name",
            Some(refuse("", 403, "GatedRepo")),
            "is gated and this token has no access",
        ),
        (
            READ_TOKEN,
            "org/name",
            Some(refuse("/resolve/", 403, "")),
            "may not be read with this token (403)",
        ),
        (
            READ_TOKEN,
            "org/name",
            Some(refuse("/resolve/", 404, "EntryNotFound")),
            "the server does not have it (404)",
        ),
        (
            READ_TOKEN,
            "org/name",
            Some(refuse("", 429, "")),
            "refuses more requests",
        ),
        (
            READ_TOKEN,
            "org/name",
            Some(refuse("/tree/", 502, "")),
            "the server answered 502 Bad Gateway",
        ),
        (
            READ_TOKEN,
            "org/name",
            Some(Fault::Corrupt {
                on: "config.json".into(),
            }),
            "arrived damaged",
        ),
    ];
    for (token, id, fault, want) in cases {
        let place = Place::new();
        server.clear_faults();
        if let Some(fault) = fault {
            server.fault(fault);
        }
        let run = output(pull(&place, &server, token, &[id]));
        assert_eq!(run.code, Some(1), "{want}: {}", run.stderr);
        assert!(run.stderr.contains(want), "{want}: {}", run.stderr);
        assert!(run.stderr.contains("\nhint: "), "{}", run.stderr);
        assert!(run.stdout.is_empty());
        assert_no_corruption(&cache(&place));
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let server = Server::start();
    put(&server, false);
    let place = Place::new();
    place.file("hf", "");
    let run = output(pull(&place, &server, READ_TOKEN, &["org/name"]));
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.starts_with("error: "), "{}", run.stderr);
    assert!(run.stderr.contains("hf/hub"), "{}", run.stderr);
}

#[test]
fn where_the_xet_store_breaks_off_the_plain_way_goes_on() {
    let (server, place) = (Server::start(), Place::new());
    let commit = put(&server, true);
    server.fault(Fault::CutXet { after: 1_500_000 });
    let run = output(pull(&place, &server, READ_TOKEN, &["org/name"]));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_whole(&cache(&place).join("snapshots").join(&commit));
    // and where the user wants none of it, it is not asked
    let place = Place::new();
    server.forget_asked();
    let mut command = pull(&place, &server, READ_TOKEN, &["org/name"]);
    command.env("HF_HUB_DISABLE_XET", "1");
    assert_eq!(output(command).code, Some(0));
    assert_whole(&cache(&place).join("snapshots").join(&commit));
    assert!(!server.asked().iter().any(|line| line.contains("xet")));
}

#[test]
fn a_kill_at_any_moment_leaves_a_cache_that_the_next_call_completes() {
    let num_kills = std::env::var("DISTILL_KILLS")
        .ok()
        .and_then(|n| n.parse().ok());
    let num_kills: usize = num_kills.unwrap_or(NUM_KILLS);
    for with_xet in [false, true] {
        let (server, place) = (Server::start(), Place::new());
        let commit = put(&server, with_xet);
        server.fault(Fault::Slow {
            on: "/-/large/".into(),
            bytes_per_s: 8_000_000,
        });
        server.fault(Fault::SlowXet {
            bytes_per_s: 8_000_000,
        });
        let mut next = dice(17);
        let mut num_killed = 0;
        for _ in 0..num_kills {
            let mut child = pull(&place, &server, READ_TOKEN, &["org/name"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(next() % 900));
            let is_done = child.try_wait().unwrap().is_some();
            child.kill().unwrap();
            child.wait().unwrap();
            assert_no_corruption(&cache(&place));
            if is_done {
                // the next one shall meet a transfer again
                assert_whole(&cache(&place).join("snapshots").join(&commit));
                std::fs::remove_dir_all(cache(&place)).unwrap();
            }
            num_killed += usize::from(!is_done);
        }
        assert!(num_killed > 0);
        server.clear_faults();
        let run = output(pull(&place, &server, READ_TOKEN, &["org/name"]));
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert_whole(&cache(&place).join("snapshots").join(&commit));
        assert_no_corruption(&cache(&place));
        let blobs = std::fs::read_dir(cache(&place).join("blobs")).unwrap();
        assert_eq!(blobs.count(), model().len(), "nothing is left over");
        println!("{num_killed} of {num_kills} kills met a pull (Xet: {with_xet})");
    }
}

/// Ctrl-C, and what is left of the time until it ends.
fn interrupted(mut command: Command, server: &Server, once_asked: &str) -> Run {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !server.asked().iter().any(|line| line.contains(once_asked)) {
        assert!(begun.elapsed() < Duration::from_secs(60));
        assert!(child.try_wait().unwrap().is_none(), "it ends too soon");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(700));
    let asked = Instant::now();
    assert_eq!(
        unsafe { libc::kill(child.id() as i32, libc::SIGINT) },
        0,
        "the signal is sent"
    );
    let output = child.wait_with_output().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(10));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

#[test]
fn the_first_ctrl_c_ends_a_pull_within_a_run() {
    let (server, place) = (Server::start(), Place::new());
    let rows = noise(5, 4_000_000);
    server.put("datasets/org/rows", &[("rows.jsonl.gz", &rows)]);
    server.fault(Fault::Slow {
        on: "/-/large/".into(),
        bytes_per_s: 300_000,
    });
    let recipe = concat!(
        "name = \"small\"\n",
        small_student!(),
        "[[traces]]\nsource = \"org/rows\"\n[sft]\nlearning_rate = 1e-3\n"
    );
    place.file("r.toml", recipe);
    let mut run = place.command(&["--recipe", "r.toml", "--run-dir", "run"]);
    run.env("HF_ENDPOINT", server.url())
        .env_remove("HF_HUB_OFFLINE");
    let run = interrupted(run, &server, "/-/large/");
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("\nstopped: "), "{}", run.stderr);
    // what has arrived is gone on with
    let blobs = place.path().join("hf/hub/datasets--org--rows/blobs");
    let [partial] = std::fs::read_dir(&blobs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    let len = partial.metadata().unwrap().len();
    assert!((1..4_000_000).contains(&len), "{len}");
    server.clear_faults();
    server.forget_asked();
    let args = ["org/rows", "--dataset"];
    let run = output(pull(&place, &server, READ_TOKEN, &args));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(std::fs::read(run.stdout.trim()).unwrap() == rows);
}

#[test]
fn a_server_that_says_nothing_is_told_after_the_time_that_was_set() {
    let (server, place) = (Server::start(), Place::new());
    put(&server, false);
    server.fault(Fault::Silent { on: String::new() });
    let mut command = pull(&place, &server, READ_TOKEN, &["org/name"]);
    command.env("HF_HUB_ETAG_TIMEOUT", "1");
    let begun = Instant::now();
    let run = output(command);
    assert_eq!(run.code, Some(1));
    assert!(
        run.stderr
            .contains("says nothing about model `org/name` for 1 s\nhint: "),
        "{}",
        run.stderr
    );
    assert!(begun.elapsed() < Duration::from_secs(8));
}

#[test]
fn the_base_of_an_adapter_from_the_hub_is_on_the_hub() {
    let (server, place) = (Server::start(), Place::new());
    let config =
        br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/base"}"#;
    server.put(
        "org/adapter",
        &[
            ("adapter_config.json", &config[..]),
            ("adapter_model.safetensors", b"x"),
        ],
    );
    // a folder of that name is somebody else's
    place.file("org/base/config.json", "{}");
    place.file("rows.jsonl", "{\"text\": \"a\"}\n");
    let args = [
        "score",
        "--model",
        "org/adapter",
        "--input",
        "rows.jsonl",
        "--output",
        "o.jsonl",
    ];
    let mut command = place.command(&args);
    command
        .env("HF_ENDPOINT", server.url())
        .env("HF_TOKEN", READ_TOKEN)
        .env_remove("HF_HUB_OFFLINE");
    let run = output(command);
    assert_eq!(run.code, Some(1));
    assert!(
        run.stderr.contains("there is no model `org/base` at "),
        "{}",
        run.stderr
    );
}
