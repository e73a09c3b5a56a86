//! `distill push` against the stand-in Hub: what goes up arrives byte for byte, once, whatever goes wrong on the way; what
//! must not go up does not; a push that was killed goes on.

mod cli_support;
mod hub_server;

use cli_support::{Place, Run, failure, finished, model};
use hub_server::{Fault, READ_TOKEN, STRANGER_TOKEN, Server, WRITE_TOKEN};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What goes wrong, and how often.
type Faults = Vec<(Fault, u32)>;

/// `distill` with the server and a token.
fn command(place: &Place, server: &Server, args: &[&str]) -> Command {
    let mut command = place.command(args);
    command
        .env_remove("HF_HUB_OFFLINE")
        .env("HF_ENDPOINT", server.url())
        .env("HF_TOKEN", WRITE_TOKEN);
    command
}

fn push(place: &Place, server: &Server, args: &[&str]) -> Run {
    let mut all = vec!["push"];
    all.extend(args);
    let run = finished(command(place, server, &all));
    assert!(!run.stdout.contains("Marker") && !run.stderr.contains("Marker"));
    run
}

/// The JSON of a push that works; one for each repository.
fn pushed(place: &Place, server: &Server, args: &[&str]) -> Vec<Value> {
    let mut all = args.to_vec();
    all.push("--json");
    let run = push(place, server, &all);
    assert_eq!(run.code, Some(0), "{args:?}: {}", run.stderr);
    serde_json::from_str(&run.stdout).unwrap()
}

fn fails(place: &Place, server: &Server, args: &[&str]) -> (String, String) {
    failure(push(place, server, args))
}

/// Bytes that no compression or chunking makes less of.
fn noise(len: usize, mut state: u64) -> Vec<u8> {
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// A model folder with a card of its own.
fn folder(place: &Place, name: &str) {
    model::save(&place.path().join(name));
    place.file(
        &format!("{name}/README.md"),
        "---\nlicense: mit\n---\n\n# m\n",
    );
}

/// The files of a folder that a push sends.
fn on_disk(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

/// What the server holds, but for the file that every repository begins with.
fn on_server(server: &Server, repo: &str, revision: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files = server.files(repo, revision);
    files.remove(".gitattributes");
    files
}

/// How many commits came after the first.
fn num_commits(server: &Server, repo: &str, revision: &str) -> usize {
    server.commits(repo, revision).len() - 1
}

#[test]
fn a_folder_arrives_byte_for_byte_and_goes_up_once() {
    let (place, server) = (Place::new(), Server::start());
    folder(&place, "m");
    let wanted = on_disk(&place.path().join("m"));
    // what stays
    place.file("m/optimizer.safetensors", "o");
    place.file("m/metrics.jsonl", "{}");
    place.file("m/.env", "HF_TOKEN=x");
    place.file("m/sub/config.json", "{}");
    let dry = place.works(&["push", "m", "--repo", "tester/m", "--dry-run", "--json"]);
    let dry: Value = serde_json::from_str(&dry.stdout).unwrap();
    let first = &pushed(&place, &server, &["m", "--repo", "tester/m"])[0];
    assert_eq!(on_server(&server, "tester/m", "main"), wanted);
    assert_eq!(server.is_private("tester/m"), Some(true));
    assert_eq!(num_commits(&server, "tester/m", "main"), 1);
    assert_eq!(first["num_commits"], 1);
    assert_eq!(
        first["commit"],
        server.commit_of("tester/m", "main").unwrap()
    );
    // the dry run said exactly this
    assert_eq!(dry[0]["files"], first["files"]);
    assert_eq!(dry[0]["left_out"].as_array().unwrap().len(), 4);
    server.forget_asked();
    let again = &pushed(&place, &server, &["m", "--repo", "tester/m"])[0];
    assert_eq!(again["num_commits"], 0);
    assert_eq!(again["commit"], first["commit"]);
    let writes = |line: &&String| line.contains("/commit/") || line.contains("/lfs/");
    assert_eq!(server.asked().iter().filter(writes).count(), 0);
    // what is read beside the files holds no token either
    let title = format!("with {WRITE_TOKEN}");
    for args in [["--message", title.as_str()], ["--tag", WRITE_TOKEN]] {
        let all = ["m", "--repo", "tester/m", args[0], args[1]];
        let (error, _) = fails(&place, &server, &all);
        assert!(
            error.ends_with("holds what looks like an access token"),
            "{error}"
        );
    }
    // one file changes: it alone is sent
    place.file("m/README.md", "---\nlicense: mit\n---\n\n# new\n");
    server.forget_asked();
    pushed(
        &place,
        &server,
        &["m", "--repo", "tester/m", "--message", "a new card"],
    );
    assert_eq!(
        server
            .asked()
            .iter()
            .filter(|line| line.contains("/lfs/"))
            .count(),
        0
    );
    assert_eq!(server.commits("tester/m", "main")[0], "a new card");
    assert_eq!(
        on_server(&server, "tester/m", "main")["README.md"],
        b"---\nlicense: mit\n---\n\n# new\n"
    );
    // and comes back through `pull`
    let pulled = finished(command(&place, &server, &["pull", "tester/m", "--json"]));
    let pulled: Value = serde_json::from_str(&pulled.stdout).unwrap();
    let folder = Path::new(pulled["folder"].as_str().unwrap());
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    ] {
        assert_eq!(
            std::fs::read(folder.join(name)).unwrap(),
            wanted[name],
            "{name}"
        );
    }
}

#[test]
fn shards_of_an_earlier_version_go_with_the_commit_that_replaces_them() {
    let (place, server) = (Place::new(), Server::start());
    folder(&place, "m");
    server.put(
        "tester/m",
        &[
            ("model-00001-of-00002.safetensors", b"a"),
            ("model-00002-of-00002.safetensors", b"b"),
            ("model.safetensors.index.json", b"{}"),
            ("notes.md", b"mine"),
        ],
    );
    let before = num_commits(&server, "tester/m", "main");
    pushed(&place, &server, &["m", "--repo", "tester/m"]);
    let mut wanted = on_disk(&place.path().join("m"));
    wanted.insert("notes.md".into(), b"mine".to_vec());
    assert_eq!(on_server(&server, "tester/m", "main"), wanted);
    assert_eq!(num_commits(&server, "tester/m", "main"), before + 1);
}

#[test]
fn adapters_and_sharded_models_arrive_as_they_are() {
    let (place, server) = (Place::new(), Server::start());
    let adapter = |base: &str| {
        let config =
            format!("{{\"base_model_name_or_path\": \"{base}\", \"peft_type\": \"LORA\"}}");
        place.file("a/adapter_config.json", config);
    };
    adapter("Qwen/Qwen2.5-0.5B");
    place.file("a/adapter_model.safetensors", noise(70_000, 3));
    place.file("a/tokenizer.json", "{}");
    pushed(&place, &server, &["a", "--repo", "tester/a"]);
    let mut found = on_server(&server, "tester/a", "main");
    let card = String::from_utf8(found.remove("README.md").unwrap()).unwrap();
    for line in [
        "library_name: peft",
        "base_model: Qwen/Qwen2.5-0.5B",
        "base_model_relation: adapter",
    ] {
        assert!(card.contains(line), "{card}");
    }
    assert_eq!(found, on_disk(&place.path().join("a")));
    adapter("meta-llama/Llama-3.1-8B");
    let (error, _) = fails(&place, &server, &["a", "--repo", "tester/a"]);
    assert!(error.contains("begins with `Llama`"), "{error}");
    for i in 1..=3 {
        let shard = format!("s/model-0000{i}-of-00003.safetensors");
        place.file(&shard, noise(400_000, i));
    }
    place.file("s/model.safetensors.index.json", "{\"weight_map\": {}}");
    place.file("s/config.json", "{}");
    place.file("s/README.md", "---\nlicense: mit\n---\n");
    pushed(&place, &server, &["s", "--repo", "tester/s"]);
    assert!(on_server(&server, "tester/s", "main") == on_disk(&place.path().join("s")));
}

#[test]
fn whatever_goes_wrong_there_is_one_commit_with_everything() {
    let place = Place::new();
    folder(&place, "m");
    // over LFS in several parts
    place.file("m/model.gguf", noise(6 << 20, 7));
    let wanted = on_disk(&place.path().join("m"));
    let refuse = |on: &str, status, retry_after_s| Fault::Refuse {
        on: on.into(),
        status,
        code: "",
        retry_after_s,
    };
    let faults: [(&str, Faults, usize); 12] = [
        ("no fault", vec![], 0),
        (
            "500 after the commit",
            vec![(Fault::ErrorAfterCommit, 1)],
            0,
        ),
        (
            "silence after the commit",
            vec![(Fault::SilenceAfterCommit, 1)],
            0,
        ),
        ("overtaken", vec![(Fault::Overtaken, 1)], 1),
        ("no Xet", vec![(Fault::NoXet, u32::MAX)], 0),
        (
            "no Xet and a lost upload",
            vec![(Fault::NoXet, u32::MAX), (Fault::LostUpload, 1)],
            0,
        ),
        (
            "too many requests",
            vec![(refuse("commit", 429, Some(1)), 1)],
            0,
        ),
        (
            "busy before the commit",
            vec![(refuse("commit", 503, None), 2)],
            0,
        ),
        ("busy everywhere", vec![(refuse("api", 502, None), 3)], 0),
        ("no listing", vec![(refuse("tree", 500, None), 2)], 0),
        (
            "no way into the store",
            vec![(refuse("xet-write-token", 503, None), 2)],
            0,
        ),
        (
            "a store that breaks off",
            vec![(Fault::CutXet { after: 100 }, 2)],
            0,
        ),
    ];
    for (name, all, num_others) in faults {
        let server = Server::start();
        for (fault, times) in all {
            server.fault_times(fault, times);
        }
        let done = &pushed(&place, &server, &["m", "--repo", "tester/m"])[0];
        assert_eq!(
            num_commits(&server, "tester/m", "main"),
            1 + num_others,
            "{name}"
        );
        assert_eq!(
            done["commit"],
            server.commit_of("tester/m", "main").unwrap(),
            "{name}"
        );
        let mut found = on_server(&server, "tester/m", "main");
        assert_eq!(
            found.remove("other.txt").is_some(),
            num_others > 0,
            "{name}"
        );
        assert!(found == wanted, "{name}: {:?}", found.keys());
    }
}

#[test]
fn what_stays_wrong_is_told_with_what_to_do() {
    let (place, server) = (Place::new(), Server::start());
    folder(&place, "m");
    let with = |token: Option<&str>, args: &[&str]| {
        let mut all = vec!["push", "m", "--repo"];
        all.extend(args);
        let mut command = command(&place, &server, &all);
        match token {
            Some(token) => command.env("HF_TOKEN", token),
            None => command.env_remove("HF_TOKEN"),
        };
        let run = finished(command);
        assert!(
            !run.stderr.contains("Marker") && !run.stderr.contains("hf_wrong"),
            "{}",
            run.stderr
        );
        failure(run)
    };
    let (error, hint) = with(None, &["tester/m"]);
    assert_eq!(error, "publishing needs an access token, and there is none");
    assert!(hint.contains("HF_TOKEN"), "{hint}");
    let (error, hint) = with(Some("hf_wrong"), &["tester/m"]);
    assert!(error.contains("the server answered 401"), "{error}");
    assert!(hint.contains("the token is not valid"), "{hint}");
    for (token, repo) in [
        (READ_TOKEN, "tester/m"),
        (STRANGER_TOKEN, "tester/m"),
        (WRITE_TOKEN, "other/m"),
    ] {
        let (error, hint) = with(Some(token), &[repo]);
        assert!(
            error.starts_with(&format!(
                "model `{repo}` cannot be created: the server answered 403"
            )),
            "{error}"
        );
        assert!(hint.contains("write permission"), "{hint}");
    }
    assert_eq!(server.is_private("tester/m"), None);
    let (error, _) = with(Some(WRITE_TOKEN), &["tester"]);
    assert_eq!(error, "`--repo = \"tester\"` cannot name a repository");
    let mut offline = command(&place, &server, &["push", "m", "--repo", "tester/m"]);
    offline.env("HF_HUB_OFFLINE", "1");
    let (error, _) = failure(finished(offline));
    assert_eq!(
        error,
        "nothing can be published while `HF_HUB_OFFLINE` is set"
    );
    let mut nobody = command(&place, &server, &["push", "m", "--repo", "tester/m"]);
    nobody.env("HF_ENDPOINT", "http://127.0.0.1:9");
    let (error, hint) = failure(finished(nobody));
    assert!(
        error.contains("http://127.0.0.1:9 gave no answer"),
        "{error}"
    );
    assert!(hint.contains("check the network"), "{hint}");
    // a branch that always moves
    server.fault(Fault::Overtaken);
    let (error, hint) = fails(&place, &server, &["m", "--repo", "tester/m"]);
    assert!(
        error.contains("takes no commit: the server answered 412"),
        "{error}"
    );
    assert!(hint.contains("somebody else writes"), "{hint}");
    server.clear_faults();
    // a card that the server cannot read
    place.file("m/README.md", "---\nlicense: {\n---\n");
    let (error, _) = fails(&place, &server, &["m", "--repo", "tester/n"]);
    assert!(
        error.starts_with("the server refuses the card of model `tester/n`"),
        "{error}"
    );
    assert_eq!(
        server.is_private("tester/n"),
        None,
        "it was not even created"
    );
}

#[test]
fn what_must_not_go_up_is_refused_before_anything_is_asked() {
    let (place, server) = (Place::new(), Server::start());
    folder(&place, "m");
    let refused = |args: &[&str]| {
        let told = fails(&place, &server, args);
        assert_eq!(server.asked(), Vec::<String>::new(), "{}", told.0);
        told
    };
    let secret = format!("hf_{}", "x7".repeat(17));
    place.file(
        "m/generation_config.json",
        format!("{{\"note\": \"{secret}\"}}"),
    );
    let (error, _) = refused(&["m", "--repo", "tester/m"]);
    assert_eq!(
        error,
        "`generation_config.json` holds an access token near byte 10"
    );
    // this user's own, whatever it looks like
    place.file(
        "m/generation_config.json",
        format!("{{\"note\": \"{WRITE_TOKEN}\"}}"),
    );
    refused(&["m", "--repo", "tester/m"]);
    std::fs::remove_file(place.path().join("m/generation_config.json")).unwrap();
    let outside = place.file("outside.txt", "secret");
    std::os::unix::fs::symlink(outside, place.path().join("m/merges.txt")).unwrap();
    let (error, hint) = refused(&["m", "--repo", "tester/m"]);
    assert!(
        error.contains("is a link to a file outside of it"),
        "{error}"
    );
    assert!(hint.contains("cp -rL"), "{hint}");
    std::fs::remove_file(place.path().join("m/merges.txt")).unwrap();
    // a Llama under another name, and without its papers
    place.file(
        "m/README.md",
        "---\nlicense: llama3.1\n---\nBuilt with Llama\n",
    );
    let (error, hint) = refused(&["m", "--repo", "tester/m"]);
    assert!(
        error.contains("wants a name that begins with `Llama`"),
        "{error}"
    );
    assert_eq!(hint, "for example `tester/Llama-m`");
    let (error, _) = refused(&["m", "--repo", "tester/Llama-m"]);
    assert!(error.contains("has no `LICENSE`"), "{error}");
    place.file("empty/x.txt", "");
    let (error, _) = refused(&["empty", "--repo", "tester/m"]);
    assert!(error.ends_with("holds no model"), "{error}");
    let (error, _) = refused(&["m"]);
    assert_eq!(error, "it is not said where to push");
}

#[test]
fn branches_tags_and_pull_requests() {
    let (place, server) = (Place::new(), Server::start());
    folder(&place, "m");
    let wanted = on_disk(&place.path().join("m"));
    let args = [
        "m",
        "--repo",
        "tester/m",
        "--revision",
        "runs/1",
        "--tag",
        "v1",
    ];
    let done = &pushed(&place, &server, &args)[0];
    assert_eq!(on_server(&server, "tester/m", "runs/1"), wanted);
    assert_eq!(on_server(&server, "tester/m", "main"), BTreeMap::new());
    assert_eq!(
        server.commit_of("tester/m", "v1").as_deref(),
        done["commit"].as_str()
    );
    // the same once more is the same tag, another commit is not
    pushed(&place, &server, &args);
    place.file("m/README.md", "---\nlicense: mit\n---\n\n# 2\n");
    let (error, _) = fails(&place, &server, &args);
    assert!(
        error.ends_with("has a tag `v1` already, of another commit"),
        "{error}"
    );
    let (error, _) = fails(
        &place,
        &server,
        &["m", "--repo", "tester/m", "--revision", "v1"],
    );
    assert!(error.contains("is a tag"), "{error}");
    // a pull request is opened once, even where the answer is lost
    server.fault_times(Fault::ErrorAfterCommit, 1);
    let args = ["m", "--repo", "tester/m", "--create-pr"];
    for _ in 0..2 {
        let done = &pushed(&place, &server, &args)[0];
        assert_eq!(done["revision"], "refs/pr/1");
        assert!(
            done["pull_request"]
                .as_str()
                .unwrap()
                .ends_with("/tester/m/discussions/1")
        );
        assert_eq!(server.num_pull_requests("tester/m"), 1);
    }
    assert_eq!(
        on_server(&server, "tester/m", "refs/pr/1"),
        on_disk(&place.path().join("m"))
    );
    assert_eq!(on_server(&server, "tester/m", "main"), BTreeMap::new());
}

#[test]
fn many_files_go_up_in_commits_of_a_hundred() {
    let (place, server) = (Place::new(), Server::start());
    for i in 0..230 {
        place.file(&format!("d/part-{i:03}.jsonl"), format!("{{\"i\": {i}}}\n"));
    }
    server.page_size(50);
    let args = ["d", "--repo", "tester/d", "--dataset"];
    server.fault_times(Fault::ErrorAfterCommit, 1);
    pushed(&place, &server, &args);
    let titles = server.commits("datasets/tester/d", "main");
    assert_eq!(titles.len() - 1, 3, "{titles:?}");
    let files = on_server(&server, "datasets/tester/d", "main");
    assert_eq!(files.len(), 231);
    assert_eq!(files["part-229.jsonl"], b"{\"i\": 229}\n");
    assert!(files["README.md"].starts_with(b"---\n"));
    let again = &pushed(&place, &server, &args)[0];
    assert_eq!(again["num_commits"], 0);
}

#[test]
fn a_push_that_is_killed_anywhere_goes_on() {
    let place = Place::new();
    folder(&place, "m");
    place.file("m/model.gguf", noise(3 << 20, 11));
    let wanted = on_disk(&place.path().join("m"));
    let begun = Instant::now();
    pushed(&place, &Server::start(), &["m", "--repo", "tester/m"]);
    let whole = begun.elapsed();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..8 {
        let server = Server::start();
        if round % 2 == 1 {
            server.fault(Fault::NoXet);
        }
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let share = (state >> 40) as f64 / (1u64 << 24) as f64;
        let mut child = command(&place, &server, &["push", "m", "--repo", "tester/m"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_secs_f64(whole.as_secs_f64() * share));
        let _ = child.kill();
        child.wait().unwrap();
        pushed(&place, &server, &["m", "--repo", "tester/m"]);
        assert_eq!(num_commits(&server, "tester/m", "main"), 1, "round {round}");
        assert!(
            on_server(&server, "tester/m", "main") == wanted,
            "round {round}"
        );
    }
}

#[test]
fn a_dry_run_says_what_goes_up_and_what_goes() {
    let (place, server) = (Place::new(), Server::start());
    folder(&place, "m");
    let args = ["m", "--repo", "tester/m", "--dry-run"];
    let dry = || {
        let found = &pushed(&place, &server, &args)[0];
        found["on_server"].clone()
    };
    let names = |value: &Value| -> Vec<String> {
        let all = value.as_array().unwrap().iter();
        all.map(|name| name.as_str().unwrap().to_string()).collect()
    };
    let all: Vec<String> = on_disk(&place.path().join("m")).into_keys().collect();
    let found = dry();
    assert_eq!(found["exists"], false);
    let mut changed = names(&found["changed"]);
    changed.sort();
    assert_eq!(changed, all);
    assert_eq!(server.is_private("tester/m"), None);
    server.put(
        "tester/m",
        &[
            (
                "config.json",
                &std::fs::read(place.path().join("m/config.json")).unwrap(),
            ),
            ("model-00001-of-00001.safetensors", b"a"),
            ("model.safetensors.index.json", b"{}"),
            ("notes.md", b"mine"),
        ],
    );
    let found = dry();
    assert!(!names(&found["changed"]).contains(&"config.json".to_string()));
    assert_eq!(names(&found["changed"]).len(), all.len() - 1);
    let gone = [
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
    ];
    assert_eq!(names(&found["removed"]), gone);
    let text = push(&place, &server, &args).stdout;
    assert!(
        text.contains(&format!(
            "  {} go up, 1 are there already, 2 of an earlier version are removed\n  removed: {}\n  removed: {}\n",
            all.len() - 1,
            gone[0],
            gone[1]
        )),
        "{text}"
    );
    // and that is what happens
    pushed(&place, &server, &["m", "--repo", "tester/m"]);
    let left = on_server(&server, "tester/m", "main");
    assert!(left.keys().all(|path| !gone.contains(&path.as_str())));
    let found = dry();
    assert_eq!(
        (
            names(&found["changed"]).len(),
            names(&found["removed"]).len()
        ),
        (0, 0)
    );
}

#[test]
fn only_an_open_pull_request_of_ours_is_gone_on_with() {
    let (place, server) = (Place::new(), Server::start());
    folder(&place, "m");
    server.create("tester/m", false);
    let number = |args: &[&str]| {
        let mut all = vec!["m", "--repo", "tester/m", "--create-pr"];
        all.extend(args);
        pushed(&place, &server, &all)[0]["revision"]
            .as_str()
            .unwrap()
            .to_string()
    };
    assert_eq!(number(&[]), "refs/pr/1");
    assert_eq!(number(&[]), "refs/pr/1");
    // closed, of another name, of somebody else
    server.change_pull_request("tester/m", 1, "closed", "tester");
    assert_eq!(number(&[]), "refs/pr/2");
    assert_eq!(number(&["--message", "another"]), "refs/pr/3");
    server.change_pull_request("tester/m", 2, "open", "stranger");
    assert_eq!(number(&[]), "refs/pr/4");
    assert_eq!(number(&[]), "refs/pr/4");
}

#[test]
fn a_new_branch_holds_what_is_pushed_and_nothing_of_main() {
    let (place, server) = (Place::new(), Server::start());
    folder(&place, "m");
    server.put(
        "tester/m",
        &[
            ("model.gguf", b"of another run"),
            (".eval_results/x.yaml", b"[]"),
        ],
    );
    let args = ["m", "--repo", "tester/m", "--revision", "checkpoint-7"];
    pushed(&place, &server, &args);
    assert_eq!(
        on_server(&server, "tester/m", "checkpoint-7"),
        on_disk(&place.path().join("m"))
    );
    assert_eq!(on_server(&server, "tester/m", "main").len(), 2);
}

#[test]
fn results_of_earlier_weights_go_where_they_are_ours() {
    let (place, server) = (Place::new(), Server::start());
    folder(&place, "m");
    let ours = "- dataset:\n    id: \"a/b\"\n  value: 50\n  notes: \"pass@1 in percent over 4 samples of 30 problems\"\n";
    let theirs = "- dataset:\n    id: a/b\n  value: 51\n  notes: measured by hand\n";
    server.put(
        "tester/m",
        &[
            (".eval_results/aime.yaml", ours.as_bytes()),
            (".eval_results/theirs.yaml", theirs.as_bytes()),
            (".eval_results/notes.txt", ours.as_bytes()),
        ],
    );
    let before = num_commits(&server, "tester/m", "main");
    pushed(&place, &server, &["m", "--repo", "tester/m"]);
    let left = on_server(&server, "tester/m", "main");
    assert!(!left.contains_key(".eval_results/aime.yaml"));
    assert!(left.contains_key(".eval_results/theirs.yaml"));
    assert!(left.contains_key(".eval_results/notes.txt"));
    assert_eq!(num_commits(&server, "tester/m", "main"), before + 1);
}

#[test]
fn large_files_go_up_several_at_once_without_xet() {
    let place = Place::new();
    folder(&place, "m");
    for i in 0..5 {
        place.file(&format!("m/q{i}.gguf"), noise(40_000, i + 1));
    }
    let wanted = on_disk(&place.path().join("m"));
    let server = Server::start();
    server.fault(Fault::Late {
        on: "PUT /-/upload".into(),
        millis: 400,
    });
    let mut command = command(&place, &server, &["push", "m", "--repo", "tester/m"]);
    // as for a server that has no Xet
    command.env("HF_HUB_DISABLE_XET", "1");
    let run = finished(command);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(on_server(&server, "tester/m", "main") == wanted);
    let asked = server.asked();
    assert!(!asked.iter().any(|line| line.contains("xet")), "{asked:?}");
    assert_eq!(server.most_uploads_at_once(), 4);
    // one that is refused is told by its name, and no commit is made
    let server = Server::start();
    server.fault(Fault::NoXet);
    server.fault(Fault::Refuse {
        on: "PUT /-/upload".into(),
        status: 403,
        code: "",
        retry_after_s: None,
    });
    let (error, _) = fails(&place, &server, &["m", "--repo", "tester/m"]);
    assert!(
        error.contains("cannot be sent to model `tester/m`: the server answered 403"),
        "{error}"
    );
    assert_eq!(num_commits(&server, "tester/m", "main"), 0);
}

#[test]
fn the_first_ctrl_c_ends_an_upload() {
    let place = Place::new();
    folder(&place, "m");
    place.file("m/model.gguf", noise(9 << 20, 3));
    for fault in [
        Fault::Silent {
            on: "PUT /-/upload".into(),
        },
        Fault::SlowXet {
            bytes_per_s: 200_000,
        },
        Fault::Silent {
            on: "/commit/".into(),
        },
    ] {
        let server = Server::start();
        let once_asked = match &fault {
            Fault::Silent { on } if on.starts_with("PUT") => {
                server.fault(Fault::NoXet);
                "PUT /-/upload"
            }
            Fault::Silent { .. } => "/commit/",
            _ => "xet-write-token",
        };
        server.fault(fault.clone());
        let mut child = command(&place, &server, &["push", "m", "--repo", "tester/m"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while !server.asked().iter().any(|line| line.contains(once_asked)) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{fault:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(500));
        assert!(child.try_wait().unwrap().is_none(), "{fault:?}");
        let asked = Instant::now();
        assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            asked.elapsed() < Duration::from_secs(5),
            "{fault:?}: {text}"
        );
        assert_eq!(output.status.code(), Some(1), "{fault:?}: {text}");
        assert!(text.contains("stopped: "), "{fault:?}: {text}");
        server.clear_faults();
        pushed(&place, &server, &["m", "--repo", "tester/m"]);
        assert_eq!(num_commits(&server, "tester/m", "main"), 1);
    }
}

#[test]
fn a_hub_that_says_nothing_is_told_so() {
    let (place, server) = (Place::new(), Server::start());
    folder(&place, "m");
    server.fault(Fault::Silent { on: String::new() });
    let mut command = command(&place, &server, &["push", "m", "--repo", "tester/m"]);
    command.env("HF_HUB_ETAG_TIMEOUT", "1");
    let begun = Instant::now();
    let (error, hint) = failure(finished(command));
    assert!(error.contains("says nothing for 2 s"), "{error}");
    assert!(hint.contains("HF_HUB_ETAG_TIMEOUT"), "{hint}");
    assert!(begun.elapsed() < Duration::from_secs(15));
}
