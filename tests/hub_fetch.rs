//! Models and data sets pulled from a stand-in for the Hub on this machine: what is taken, what is checked, what is said,
//! and what is left behind when something goes wrong.

mod hub_server;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use distill::Error;
use distill::hub::{Hub, HubOptions, Part, Resolved, Wanted};
use distill::progress::{Reporter, Silent, Task};
use hub_server::{Fault, READ_TOKEN, STRANGER_TOKEN, Server};

const INDEX: &str = r#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
const SHARD: &str = "model-00002-of-00002.safetensors";

/// A server with one model, and a cache of our own.
struct Site {
    server: Server,
    cache: tempfile::TempDir,
    commit: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Kept {
    Lfs,
    Xet,
}

impl Site {
    fn new(kept: Kept) -> Self {
        let server = Server::start();
        let commit = put(&server, kept, &files());
        Self {
            server,
            cache: tempfile::tempdir().unwrap(),
            commit,
        }
    }

    fn hub_with(&self, token: &str, num_retries: usize) -> Hub {
        hub(
            &self.server.url(),
            self.cache.path(),
            token,
            num_retries,
            false,
        )
    }

    fn hub(&self) -> Hub {
        self.hub_with(READ_TOKEN, 0)
    }

    fn offline(&self) -> Hub {
        hub(&self.server.url(), self.cache.path(), READ_TOKEN, 0, true)
    }

    fn model(&self) -> distill::Result<Resolved> {
        self.hub()
            .model("org/name", None, Part::Everything, &Silent)
    }

    fn downloads(&self) -> usize {
        let asked = self.server.asked();
        let is_download = |line: &&String| line.starts_with("GET") && line.contains("/resolve/");
        asked.iter().filter(is_download).count()
    }

    /// What is in the cache beside whole files that a snapshot names.
    fn leftovers(&self) -> Vec<String> {
        let blobs = self.cache.path().join("models--org--name/blobs");
        names(&blobs)
            .into_iter()
            .filter(|name| name.len() != 40 && name.len() != 64)
            .collect()
    }
}

fn hub(endpoint: &str, cache: &Path, token: &str, num_retries: usize, offline: bool) -> Hub {
    Hub::new(HubOptions {
        endpoint: Some(endpoint.into()),
        cache: Some(cache.to_path_buf()),
        token: Some(token.into()),
        offline,
        num_retries: Some(num_retries),
        patience: None,
    })
    .unwrap()
}

/// A reporter that keeps what is said, and asks to stop after a while.
#[derive(Default)]
struct Told {
    said: Mutex<Vec<String>>,
    stop_at: Option<Instant>,
}

impl Told {
    fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }
}

impl Reporter for Told {
    fn stage(&self, _: &str, _: &str) {}
    fn task(&self, _: &str, _: Option<u64>, _: &'static str) -> Box<dyn Task> {
        Box::new(Silent)
    }
    fn note(&self, text: &str) {
        self.said.lock().unwrap().push(text.into());
    }
    fn warn(&self, text: &str) {
        self.note(text);
    }
    fn stop_requested(&self) -> bool {
        self.stop_at.is_some_and(|at| Instant::now() >= at)
    }
}

fn put(server: &Server, kept: Kept, files: &BTreeMap<&str, Vec<u8>>) -> String {
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(path, c)| (*path, c.as_slice()))
        .collect();
    match kept {
        Kept::Lfs => server.put("org/name", &files),
        Kept::Xet => server.put_with_xet("org/name", &files),
    }
}

/// Bytes without a pattern, the same on every run.
fn noise(mut seed: u64, len: usize) -> Vec<u8> {
    let mut next = || {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn files() -> BTreeMap<&'static str, Vec<u8>> {
    [
        ("README.md", b"# a model".to_vec()),
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{\"a\":1}".to_vec()),
        ("LICENSE", b"free".to_vec()),
        ("pytorch_model.bin", b"not wanted".to_vec()),
        ("model.safetensors.index.json", INDEX.into()),
        ("model-00001-of-00002.safetensors", b"one".to_vec()),
        (SHARD, noise(2, 3_000_000)),
        ("onnx/model.safetensors", b"not wanted".to_vec()),
    ]
    .into()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn message(error: distill::Error) -> (String, String) {
    (error.to_string(), error.hint().unwrap_or_default())
}

#[track_caller]
fn assert_whole(model: &Resolved) {
    for name in names(&model.folder) {
        let found = std::fs::read(model.folder.join(&name)).unwrap();
        assert!(found == files()[name.as_str()], "{name}");
    }
    assert_eq!(names(&model.folder).len(), 6);
}

#[test]
fn a_model_is_fetched_once_and_only_what_loads_it() {
    for kept in [Kept::Lfs, Kept::Xet] {
        let site = Site::new(kept);
        let model = site.model().unwrap();
        assert_eq!(model.revision.as_ref(), Some(&site.commit));
        assert_eq!(
            names(&model.folder),
            [
                "LICENSE",
                "config.json",
                "model-00001-of-00002.safetensors",
                SHARD,
                "model.safetensors.index.json",
                "tokenizer.json"
            ]
        );
        assert_whole(&model);
        // small files, and large ones where there is no Xet
        assert_eq!(site.downloads(), if kept == Kept::Lfs { 6 } else { 4 });
        site.server.forget_asked();
        assert_eq!(site.model().unwrap(), model);
        assert_eq!(site.downloads(), 0, "the second call fetches nothing");
        // Python finds it too
        let reference = site.cache.path().join("models--org--name/refs/main");
        assert_eq!(std::fs::read_to_string(reference).unwrap(), site.commit);
        let target = std::fs::read_link(model.folder.join("config.json")).unwrap();
        assert!(target.starts_with("../../blobs"), "{}", target.display());
        // and so does a run without network
        site.server.forget_asked();
        let again = site
            .offline()
            .model("org/name", None, Part::Everything, &Silent);
        assert_eq!(again.unwrap(), model);
        assert!(site.server.asked().is_empty());
        assert!(site.leftovers().is_empty());
    }
}

#[test]
fn a_revision_is_a_branch_a_tag_or_a_commit() {
    let site = Site::new(Kept::Lfs);
    let first = site.commit.clone();
    let second = site
        .server
        .put("org/name", &[("config.json", b"{\"b\":2}")]);
    let config = |revision: Option<&str>| {
        let hub = site.hub();
        let model = hub
            .model("org/name", revision, Part::WithoutWeights, &Silent)
            .unwrap();
        let config = std::fs::read_to_string(model.folder.join("config.json")).unwrap();
        (model.revision.unwrap(), config)
    };
    assert_eq!(config(None), (second.clone(), "{\"b\":2}".into()));
    assert_eq!(config(Some(&first)), (first, "{}".into()));
    let hub = site.hub();
    let error = hub
        .model("org/name", Some("v9"), Part::Everything, &Silent)
        .unwrap_err();
    assert_eq!(error.to_string(), "model `org/name` has no revision `v9`");
}

#[test]
fn a_listing_may_come_in_pages() {
    let site = Site::new(Kept::Lfs);
    site.server.page_size(2);
    assert_whole(&site.model().unwrap());
}

#[test]
fn files_of_a_model_by_pattern() {
    let site = Site::new(Kept::Lfs);
    let fetch = |hub: &Hub, pattern: &str| {
        let found = hub.model_files("org/name", None, &[pattern.into()], &Silent)?;
        let names = found.files.iter().map(|path| {
            assert!(path.is_file());
            path.file_name().unwrap().to_str().unwrap().to_string()
        });
        Ok::<_, distill::Error>(names.collect::<Vec<_>>())
    };
    assert_eq!(fetch(&site.hub(), "*.bin").unwrap(), ["pytorch_model.bin"]);
    assert_eq!(site.downloads(), 1);
    assert_eq!(fetch(&site.offline(), "*").unwrap(), ["pytorch_model.bin"]);
    // `*` stays within a folder
    assert_eq!(fetch(&site.hub(), "onnx/*").unwrap(), ["model.safetensors"]);
    let (text, hint) = message(fetch(&site.hub(), "*.gguf").unwrap_err());
    assert_eq!(text, "no file of model `org/name` matches `*.gguf`");
    assert_eq!(hint, "it has 10 files, `.gitattributes` among them");
}

#[test]
fn a_tokenizer_does_not_bring_the_weights() {
    let site = Site::new(Kept::Lfs);
    let model = site
        .hub()
        .model("org/name", None, Part::WithoutWeights, &Silent)
        .unwrap();
    assert_eq!(
        names(&model.folder),
        ["LICENSE", "config.json", "tokenizer.json"]
    );
    let hub = site.offline();
    assert!(
        hub.model("org/name", None, Part::WithoutWeights, &Silent)
            .is_ok()
    );
    let (text, hint) = message(
        hub.model("org/name", None, Part::Everything, &Silent)
            .unwrap_err(),
    );
    assert_eq!(
        text,
        "`model.safetensors` of model `org/name` is not in the cache, and the network is not used"
    );
    assert_eq!(hint, "run once with network and without `HF_HUB_OFFLINE`");
}

#[test]
fn without_network_and_cache_the_error_says_so() {
    let site = Site::new(Kept::Lfs);
    let offline = site.offline();
    let (text, hint) = message(
        offline
            .model("org/name", None, Part::Everything, &Silent)
            .unwrap_err(),
    );
    assert_eq!(
        text,
        "model `org/name` at revision `main` is not in the cache, and the network is not used"
    );
    assert_eq!(
        hint,
        "run once with network and without `HF_HUB_OFFLINE`, or give a local folder"
    );
    assert!(site.server.asked().is_empty());
}

#[test]
fn an_error_page_is_not_taken_for_the_file() {
    // the listing is as if all were well, the file is refused
    let site = Site::new(Kept::Lfs);
    site.server.fault(Fault::Refuse {
        on: format!("GET /org/name/resolve/{}/{SHARD}", site.commit),
        status: 403,
        code: "",
        retry_after_s: None,
    });
    let (text, hint) = message(site.model().unwrap_err());
    assert_eq!(
        text,
        format!("`{SHARD}` of model `org/name` may not be read with this token (403)")
    );
    assert!(hint.contains("ask for access"));
    // and nothing of it stays: once the server is well again, so are we
    site.server.clear_faults();
    assert_whole(&site.model().unwrap());
}

#[test]
fn a_listed_file_that_is_gone_is_an_error() {
    let site = Site::new(Kept::Lfs);
    site.server.fault(Fault::Refuse {
        on: "/tokenizer.json".into(),
        status: 404,
        code: "EntryNotFound",
        retry_after_s: None,
    });
    let (text, _) = message(site.model().unwrap_err());
    assert_eq!(
        text,
        "`tokenizer.json` of model `org/name` is listed at revision `main` but the server does not have it (404)"
    );
}

#[test]
fn other_bytes_than_listed_are_refused() {
    for kept in [Kept::Lfs, Kept::Xet] {
        let site = Site::new(kept);
        let on = if kept == Kept::Lfs {
            SHARD
        } else {
            "config.json"
        };
        site.server.fault(Fault::Corrupt { on: on.into() });
        let (text, hint) = message(site.model().unwrap_err());
        let start = format!("`{on}` of model `org/name` arrived damaged: hash ");
        assert!(text.starts_with(&start), "{text}");
        assert!(hint.contains("error page"));
        // nothing of it is gone on with; of others, which were told to stop, the beginning may be
        let hash = text[start.len()..].split(' ').next().unwrap();
        assert!(!site.leftovers().contains(&format!("{hash}.incomplete")));
        site.server.clear_faults();
        assert_whole(&site.model().unwrap());
        assert!(site.leftovers().is_empty());
    }
    // once is forgiven
    let site = Site::new(Kept::Lfs);
    site.server
        .fault_times(Fault::Corrupt { on: SHARD.into() }, 1);
    assert_whole(&site.model().unwrap());
}

#[test]
fn a_cut_body_is_gone_on_with_where_it_broke() {
    let site = Site::new(Kept::Lfs);
    site.server.fault(Fault::Cut {
        on: "/-/large/".into(),
        after: 1_000_000,
    });
    // without attempts, by the next call
    let (text, hint) = message(site.model().unwrap_err());
    let start = format!("`{SHARD}` of model `org/name` did not arrive whole: ");
    assert!(text.starts_with(&start), "{text}");
    assert_eq!(
        hint,
        "run the same command again: it goes on where it stopped"
    );
    let [partial] = site.leftovers().try_into().unwrap();
    let partial = site
        .cache
        .path()
        .join("models--org--name/blobs")
        .join(partial);
    let len = partial.metadata().unwrap().len();
    assert!((1..=1_000_000).contains(&len), "{len}");
    site.server.clear_faults();
    assert_whole(&site.model().unwrap());
    assert!(site.leftovers().is_empty());
    // with attempts, by the same call
    let site = Site::new(Kept::Lfs);
    site.server.fault(Fault::Cut {
        on: "/-/large/".into(),
        after: 1_000_000,
    });
    let hub = site.hub_with(READ_TOKEN, 2);
    assert_whole(
        &hub.model("org/name", None, Part::Everything, &Silent)
            .unwrap(),
    );
}

#[test]
fn what_a_kill_left_is_looked_at_before_it_is_gone_on_with() {
    let whole = files()[SHARD].clone();
    let beginnings: [(&str, Vec<u8>); 4] = [
        ("right", whole[..1_234_567].to_vec()),
        ("other bytes", noise(9, 1_234_567)),
        ("too long", noise(9, whole.len() + 1)),
        ("whole", whole.clone()),
    ];
    for kept in [Kept::Lfs, Kept::Xet] {
        for (what, beginning) in &beginnings {
            let site = Site::new(kept);
            let hash = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&whole));
            let blobs = site.cache.path().join("models--org--name/blobs");
            std::fs::create_dir_all(&blobs).unwrap();
            std::fs::write(blobs.join(format!("{hash}.incomplete")), beginning).unwrap();
            let model = site.model().unwrap();
            assert_whole(&model);
            assert!(site.leftovers().is_empty(), "{what}");
            // a whole one needs no more of the server
            let large = site
                .server
                .asked()
                .iter()
                .filter(|l| l.contains(SHARD))
                .count();
            if *what == "whole" {
                assert_eq!(large, 0);
            }
        }
    }
}

#[test]
fn the_xet_store_failing_the_plain_way_goes_on() {
    // the store sends something else under the file's Xet hash
    let site = Site::new(Kept::Xet);
    site.server.fault(Fault::WrongXetHash);
    assert_whole(&site.model().unwrap());
    // no store at all
    let site = Site::new(Kept::Xet);
    site.server.fault(Fault::Refuse {
        on: "xet-read-token".into(),
        status: 500,
        code: "",
        retry_after_s: None,
    });
    assert_whole(&site.model().unwrap());
    // a server that knows no Xet
    let site = Site::new(Kept::Xet);
    site.server.fault(Fault::NoXet);
    assert_whole(&site.model().unwrap());
}

#[test]
fn a_damaged_cache_is_mended() {
    for kept in [Kept::Lfs, Kept::Xet] {
        let site = Site::new(kept);
        let model = site.model().unwrap();
        for (file, damage) in [
            (SHARD, b"<html>".to_vec()),
            // the right size
            (SHARD, noise(7, 3_000_000)),
            ("config.json", b"[]".to_vec()),
        ] {
            let blob = std::fs::canonicalize(model.folder.join(file)).unwrap();
            std::fs::write(&blob, damage).unwrap();
            let offline = site
                .offline()
                .model("org/name", None, Part::Everything, &Silent);
            let (text, hint) = message(offline.unwrap_err());
            assert!(
                text.starts_with(&format!("cached `{file}` of model `org/name` is damaged (")),
                "{text}"
            );
            assert!(hint.contains("fetched again"));
            assert_eq!(site.model().unwrap(), model);
            assert_whole(&model);
        }
    }
}

#[test]
fn a_busy_server_is_asked_again() {
    for (status, retry_after_s) in [(429, Some(1)), (429, None), (503, None), (500, None)] {
        let site = Site::new(Kept::Lfs);
        let fault = Fault::Refuse {
            on: "/resolve/".into(),
            status,
            code: "",
            retry_after_s,
        };
        site.server.fault_times(fault, 2);
        let hub = site.hub_with(READ_TOKEN, 3);
        assert_whole(
            &hub.model("org/name", None, Part::Everything, &Silent)
                .unwrap(),
        );
    }
}

#[test]
fn refusals_are_told_apart() {
    let cases = [
        (
            401,
            "",
            "model `org/name` cannot be read without a valid token, or does not exist (401)",
        ),
        (
            403,
            "",
            "model `org/name` may not be read with this token (403)",
        ),
        (
            403,
            "GatedRepo",
            "model `org/name` is gated and this token has no access",
        ),
        (
            401,
            "GatedRepo",
            "model `org/name` is gated and this token has no access",
        ),
        (
            404,
            "RevisionNotFound",
            "model `org/name` has no revision `main`",
        ),
        (
            429,
            "",
            "the server refuses more requests for model `org/name` (429)",
        ),
        (
            503,
            "",
            "the server answered 503 Service Unavailable for model `org/name`",
        ),
    ];
    for (status, code, want) in cases {
        for on in [
            "GET /api/models/org/name/revision",
            "GET /api/models/org/name/tree",
        ] {
            let site = Site::new(Kept::Lfs);
            site.server.fault(Fault::Refuse {
                on: on.into(),
                status,
                code,
                retry_after_s: None,
            });
            let (text, hint) = message(site.model().unwrap_err());
            assert_eq!(text, want, "{on}");
            assert!(!hint.is_empty(), "{want}");
        }
    }
}

#[test]
fn who_may_read_what() {
    let site = Site::new(Kept::Lfs);
    site.server.create("org/secret", true);
    site.server.put("org/secret", &[("config.json", b"{}")]);
    site.server.set_gated("org/name", true);
    let ask = |token: &str, id: &str| {
        let hub = site.hub_with(token, 0);
        hub.model(id, None, Part::WithoutWeights, &Silent)
            .map_err(message)
    };
    assert!(ask(READ_TOKEN, "org/secret").is_ok());
    assert!(ask(READ_TOKEN, "org/name").is_ok());
    let endpoint = site.server.url();
    let (text, hint) = ask(STRANGER_TOKEN, "org/secret").unwrap_err();
    assert_eq!(
        text,
        format!("there is no model `org/secret` at {endpoint}")
    );
    assert!(hint.contains("private"));
    let other = tempfile::tempdir().unwrap();
    let stranger = hub(&endpoint, other.path(), STRANGER_TOKEN, 0, false);
    let gated = stranger.model("org/name", None, Part::WithoutWeights, &Silent);
    let (text, hint) = message(gated.unwrap_err());
    assert!(
        text.ends_with("of model `org/name` is gated and this token has no access"),
        "{text}"
    );
    assert!(hint.contains(&format!("{endpoint}/org/name")));
    site.server.put("datasets/org/rows", &[("a.jsonl", b"{}")]);
    site.server.set_gated("datasets/org/rows", true);
    let gated = stranger.dataset("org/rows", None, Wanted::default(), &Silent);
    let (_, hint) = message(gated.unwrap_err());
    assert!(
        hint.contains(&format!("{endpoint}/datasets/org/rows,")),
        "{hint}"
    );
    let (text, hint) = ask("hf_NoSuchToken", "org/name").unwrap_err();
    assert_eq!(
        text,
        format!("{endpoint} does not know the token that it was given for model `org/name` (401)")
    );
    assert!(hint.contains("HF_TOKEN"));
    assert!(!text.contains("NoSuchToken") && !hint.contains("NoSuchToken"));
}

#[test]
fn an_unreachable_server_falls_back_on_the_cache() {
    let site = Site::new(Kept::Lfs);
    let model = site.model().unwrap();
    // a port where nobody listens
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let ask = |cache: &Path| {
        let hub = hub(&format!("http://{closed}"), cache, READ_TOKEN, 0, false);
        hub.model("org/name", None, Part::Everything, &Silent)
    };
    assert_eq!(ask(site.cache.path()).unwrap(), model);
    let empty = tempfile::tempdir().unwrap();
    let (text, hint) = message(ask(empty.path()).unwrap_err());
    let start = format!("http://{closed} cannot be reached for model `org/name`: ");
    assert!(text.starts_with(&start), "{text}");
    assert!(hint.contains("HF_ENDPOINT"));
}

#[test]
fn missing_weights_are_named() {
    let site = Site::new(Kept::Lfs);
    site.server.delete("org/name", SHARD);
    let (text, _) = message(site.model().unwrap_err());
    assert_eq!(
        text,
        format!(
            "`model.safetensors.index.json` of model `org/name` names `{SHARD}`, which the repository does not have"
        )
    );
    site.server
        .delete("org/name", "model.safetensors.index.json");
    let (text, hint) = message(site.model().unwrap_err());
    assert_eq!(
        text,
        "model `org/name` has no `model.safetensors` and no `model.safetensors.index.json`"
    );
    assert!(hint.contains("safetensors"));
}

#[test]
fn two_at_once_do_not_disturb_each_other() {
    let site = Site::new(Kept::Lfs);
    site.server.fault(Fault::Slow {
        on: "/-/large/".into(),
        bytes_per_s: 6_000_000,
    });
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_whole(&site.model().unwrap()));
        }
    });
    let large = site
        .server
        .asked()
        .iter()
        .filter(|l| l.contains("/-/large/"))
        .count();
    assert_eq!(large, 2, "each large file is fetched once");
}

#[test]
fn a_data_set_brings_the_training_split_of_its_config() {
    let server = Server::start();
    let card = "---\nconfigs:\n- config_name: math\n  data_files:\n  - split: train\n    path: math/train-*\n  - split: test\n    path: math/test-*\n- config_name: code\n  data_files:\n  - split: train\n    path: code/train-*\n---\n";
    let commit = server.put(
        "datasets/org/name",
        &[
            ("README.md", card.as_bytes()),
            ("math/train-00000-of-00001.parquet", b"math train"),
            ("math/test-00000-of-00001.parquet", b"math test"),
            ("code/train-00000-of-00001.parquet", b"code train"),
        ],
    );
    let cache = tempfile::tempdir().unwrap();
    let fetch = |offline, config, patterns: &[String]| {
        let wanted = Wanted {
            config: Some(config),
            split: None,
            patterns,
        };
        let hub = hub(&server.url(), cache.path(), READ_TOKEN, 0, offline);
        let data = hub.dataset("org/name", None, wanted, &Silent)?;
        let snapshot = cache
            .path()
            .join("datasets--org--name/snapshots")
            .join(&commit);
        let relative = data.files.iter().map(|f| {
            let path = f.strip_prefix(&snapshot).unwrap();
            path.to_str().unwrap().to_string()
        });
        Ok::<_, distill::Error>(relative.collect::<Vec<_>>())
    };
    let train = ["math/train-00000-of-00001.parquet"];
    assert_eq!(fetch(false, "math", &[]).unwrap(), train);
    assert_eq!(fetch(true, "math", &[]).unwrap(), train);
    assert_eq!(
        fetch(false, "math", &["*/test-*".into()]).unwrap(),
        ["math/test-00000-of-00001.parquet"]
    );
    assert!(fetch(true, "code", &[]).is_err());
    let (text, hint) = message(fetch(false, "science", &[]).unwrap_err());
    assert_eq!(
        text,
        "no file of data set `org/name` belongs to config `science`"
    );
    assert_eq!(hint, "its configs are `math`, `code`");
}

#[test]
fn an_adapter_comes_without_a_model() {
    let site = Site::new(Kept::Lfs);
    let config =
        br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/base"}"#;
    let weights = noise(5, 3000);
    site.server.put(
        "org/adapter",
        &[
            ("adapter_config.json", &config[..]),
            ("adapter_model.safetensors", &weights[..]),
            ("optimizer.pt", &b"not asked for"[..]),
        ],
    );
    let pull = |hub: Hub, part| hub.model("org/adapter", None, part, &Silent);
    let small = pull(site.hub(), Part::WithoutWeights).unwrap().folder;
    assert_eq!(names(&small), ["adapter_config.json"]);
    let error = pull(site.offline(), Part::Everything).unwrap_err();
    assert!(
        error.to_string().contains("adapter_model.safetensors"),
        "{error}"
    );
    let whole = pull(site.hub(), Part::Everything).unwrap().folder;
    assert_eq!(
        names(&whole),
        ["adapter_config.json", "adapter_model.safetensors"]
    );
    assert_eq!(
        std::fs::read(whole.join("adapter_model.safetensors")).unwrap(),
        weights
    );
    assert_eq!(
        pull(site.offline(), Part::Everything).unwrap().folder,
        whole
    );

    site.server
        .put("org/old", &[("adapter_config.json", &config[..])]);
    let error = site
        .hub()
        .model("org/old", None, Part::Everything, &Silent)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("an adapter without `adapter_model.safetensors`"),
        "{error}"
    );
}

/// A hub that waits for a second, and tries again twice.
fn impatient(site: &Site) -> Hub {
    Hub::new(HubOptions {
        endpoint: Some(site.server.url()),
        cache: Some(site.cache.path().to_path_buf()),
        token: Some(READ_TOKEN.into()),
        offline: false,
        num_retries: Some(2),
        patience: Some(Duration::from_secs(1)),
    })
    .unwrap()
}

#[test]
fn a_server_that_says_nothing_is_not_waited_for_without_end() {
    let silent = |on: &str| Fault::Silent { on: on.into() };
    let stall = Fault::Stall {
        on: "/-/large/".into(),
        after: 1_000_000,
    };
    let cases = [
        ("model `org/name`", silent("/revision/")),
        ("model `org/name`", silent("/tree/")),
        ("`config.json` of model `org/name`", silent("/config.json")),
    ];
    for (subject, fault) in cases {
        let site = Site::new(Kept::Lfs);
        site.server.fault(fault);
        let begun = Instant::now();
        let found = impatient(&site).model("org/name", None, Part::Everything, &Silent);
        let (text, hint) = message(found.unwrap_err());
        let want = format!("{} says nothing about {subject} for 1 s", site.server.url());
        assert_eq!(text, want);
        assert!(hint.contains("HF_HUB_ETAG_TIMEOUT"), "{hint}");
        assert!(begun.elapsed() < Duration::from_secs(8));
    }
    // a body that stops is gone on with
    let site = Site::new(Kept::Lfs);
    site.server.fault(stall);
    let found = impatient(&site).model("org/name", None, Part::Everything, &Silent);
    assert_whole(&found.unwrap());
    // and a cached model is used
    site.server.fault(silent("/revision/"));
    let told = Told::default();
    let found = impatient(&site).model("org/name", None, Part::Everything, &told);
    assert_whole(&found.unwrap());
    assert!(told.said().contains("taken from the cache"));
}

#[test]
fn a_listing_without_end_is_refused() {
    let site = Site::new(Kept::Lfs);
    let here = format!(
        "{}/api/models/org/name/tree/{}",
        site.server.url(),
        site.commit
    );
    for (address, why) in [
        (format!("{here}?recursive=true"), "lead back"),
        (format!("{here}?recursive=true&cursor=1"), "lead back"),
        ("http://127.0.0.1:9/next".into(), "on another server"),
        (format!("{here}?recursive=true&cursor=99{{}}"), "has no end"),
    ] {
        site.server.clear_faults();
        site.server.fault(Fault::NextPage {
            address: address.clone(),
        });
        let (text, hint) = message(site.model().unwrap_err());
        assert!(
            text.starts_with("the listing of model `org/name` cannot be used: ")
                && text.contains(why),
            "{address}: {text}"
        );
        assert!(hint.contains("HF_ENDPOINT"));
    }
}

#[test]
fn an_odd_entry_matters_where_it_is_wanted() {
    let site = Site::new(Kept::Lfs);
    let oid = "0".repeat(40);
    for entry in [
        serde_json::json!({"type": "file", "path": "../evil.json", "size": 1, "oid": oid}),
        serde_json::json!({"type": "file", "path": "sub/none.json", "size": 1}),
        serde_json::json!({"type": "commit", "path": "sub", "oid": oid}),
    ] {
        let path = entry["path"].as_str().unwrap().to_string();
        site.server.clear_faults();
        site.server.fault(Fault::Entry(entry));
        let told = Told::default();
        let found = site
            .hub()
            .model("org/name", None, Part::Everything, &told)
            .unwrap();
        assert_whole(&found);
        assert!(
            told.said().contains(&format!(
                "1 of the 11 entries listed are left out, `{path}` among them"
            )),
            "{}",
            told.said()
        );
        let all = ["**".to_string()];
        let found = site.hub().model_files("org/name", None, &all, &Silent);
        let (text, _) = message(found.unwrap_err());
        assert!(
            text.starts_with(&format!("the server lists `{path}` of model `org/name`")),
            "{text}"
        );
    }
}

#[test]
fn a_wish_to_stop_ends_a_pull_and_leaves_its_beginning() {
    for kept in [Kept::Lfs, Kept::Xet] {
        let site = Site::new(kept);
        let slow = Fault::Slow {
            on: "/-/large/".into(),
            bytes_per_s: 400_000,
        };
        site.server.fault(slow);
        site.server.fault(Fault::SlowXet {
            bytes_per_s: 400_000,
        });
        for fault in [
            None,
            Some(Fault::Silent {
                on: "/tree/".into(),
            }),
        ] {
            let is_silent = fault.is_some();
            if let Some(fault) = fault {
                site.server.fault(fault);
            }
            let begun = Instant::now();
            let told = Told {
                stop_at: Some(begun + Duration::from_millis(1500)),
                ..Told::default()
            };
            let found = site
                .hub()
                .model("org/name", None, Part::Everything, &told)
                .unwrap_err();
            assert!(matches!(found, Error::Interrupted { .. }), "{found}");
            assert!(begun.elapsed() < Duration::from_secs(10));
            if !is_silent && kept == Kept::Lfs {
                assert_eq!(site.leftovers().len(), 1, "{:?}", site.leftovers());
            }
        }
        site.server.clear_faults();
        assert_whole(&site.model().unwrap());
        assert!(site.leftovers().is_empty());
    }
}

#[test]
fn without_network_the_card_says_which_files() {
    let server = Server::start();
    let card = "---\nconfigs:\n- config_name: x\n  default: true\n  data_files: 'a/*.jsonl'\n- config_name: y\n  data_files:\n  - split: train\n    path: b/*\n---\n";
    server.put(
        "datasets/org/name",
        &[
            ("README.md", card.as_bytes()),
            ("a/one.jsonl", b"{}"),
            ("a/two.jsonl", b"{\"a\": 2}"),
            ("b/three.jsonl", b"{\"a\": 3}"),
        ],
    );
    let cache = tempfile::tempdir().unwrap();
    let told = Told::default();
    let fetch = |offline, config: Option<&str>, patterns: &[String]| {
        let wanted = Wanted {
            config,
            split: None,
            patterns,
        };
        let hub = hub(&server.url(), cache.path(), READ_TOKEN, 0, offline);
        let data = hub
            .dataset("org/name", None, wanted, &told)
            .map_err(message)?;
        let names = data
            .files
            .iter()
            .map(|f| f.file_name().unwrap().to_str().unwrap().to_string());
        Ok::<Vec<String>, (String, String)>(names.collect())
    };
    let pattern = |text: &str| vec![text.to_string()];
    assert_eq!(
        fetch(false, None, &pattern("b/*")).unwrap(),
        ["three.jsonl"]
    );
    // the default config is not `b/`, which alone is there
    let want = ["one.jsonl", "two.jsonl"];
    assert_eq!(fetch(false, None, &[]).unwrap(), want);
    assert_eq!(fetch(true, None, &[]).unwrap(), want);
    assert_eq!(fetch(true, Some("y"), &[]).unwrap(), ["three.jsonl"]);
    let (text, hint) = fetch(true, Some("z"), &[]).unwrap_err();
    assert!(
        text.contains("no file of data set `org/name` belongs to config `z`"),
        "{text}"
    );
    assert_eq!(hint, "its configs are `x`, `y`");
    // by pattern: what is not known is said
    assert_eq!(fetch(true, None, &pattern("a/*")).unwrap(), want);
    assert!(
        told.said()
            .contains("2 cached files match; what else on the Hub does is not known"),
        "{}",
        told.said()
    );
    let both = ["a/*".to_string(), "c/*".to_string()];
    let (text, _) = fetch(true, None, &both).unwrap_err();
    assert!(
        text.contains("no file of data set `org/name` matches `c/*`"),
        "{text}"
    );
}
