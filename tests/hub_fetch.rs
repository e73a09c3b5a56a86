//! Models and data sets fetched from a stand-in for the Hub on this machine: what is taken, what is checked, what is said.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use distill::hub::{Hub, HubOptions, Part, Wanted};
use distill::progress::Silent;
use sha1::Sha1;
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const INDEX: &str = r#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;

/// A repository of one kind at one commit, and how its server misbehaves.
#[derive(Default)]
struct Site {
    files: Vec<(&'static str, Vec<u8>)>,
    card: Option<&'static str>,
    /// Answers in place of the usual ones, by method and path.
    answers: HashMap<(&'static str, String), Answer>,
}

#[derive(Clone)]
struct Answer {
    status: &'static str,
    headers: String,
    body: Vec<u8>,
    /// Bytes of the body that are really sent.
    cut: Option<usize>,
}

impl Answer {
    fn error(status: &'static str, code: &str) -> Self {
        Self {
            status,
            headers: format!("X-Error-Code: {code}\r\n"),
            body: br#"{"error":"no"}"#.to_vec(),
            cut: None,
        }
    }
}

/// The stand-in: it answers until the test ends, and keeps what it was asked.
struct Server {
    endpoint: String,
    site: Arc<Mutex<Site>>,
    asked: Arc<Mutex<Vec<String>>>,
    cache: tempfile::TempDir,
}

impl Server {
    fn start(site: Site) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (site, asked) = (Arc::new(Mutex::new(site)), Arc::new(Mutex::new(Vec::new())));
        let (shared, log) = (site.clone(), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (site, asked) = (shared.clone(), log.clone());
                std::thread::spawn(move || answer(stream, &site, &asked));
            }
        });
        Self {
            endpoint,
            site,
            asked,
            cache: tempfile::tempdir().unwrap(),
        }
    }

    fn hub(&self, offline: bool) -> Hub {
        Hub::new(HubOptions {
            endpoint: Some(self.endpoint.clone()),
            cache: Some(self.cache.path().to_path_buf()),
            token: Some("hf_test".into()),
            offline,
            num_retries: Some(0),
        })
        .unwrap()
    }

    fn model(&self) -> distill::Result<distill::hub::Resolved> {
        self.hub(false)
            .model("org/name", None, Part::Everything, &Silent)
    }

    fn misbehave(&self, method: &'static str, path: &str, answer: Answer) {
        self.site
            .lock()
            .unwrap()
            .answers
            .insert((method, path.to_string()), answer);
    }

    fn downloads(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter(|line| line.starts_with("GET") && line.contains("/resolve/"))
            .cloned()
            .collect()
    }
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn git_hash(content: &[u8]) -> String {
    hex(Sha1::new()
        .chain_update(format!("blob {}\0", content.len()))
        .chain_update(content)
        .finalize())
}

fn is_large(path: &str) -> bool {
    path.ends_with(".safetensors") || path.ends_with(".parquet")
}

fn answer(mut stream: TcpStream, site: &Mutex<Site>, asked: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(request)) = lines.next() else {
        return;
    };
    for line in lines.by_ref() {
        if line.unwrap_or_default().is_empty() {
            break;
        }
    }
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let path = target.split('?').next().unwrap();
    asked.lock().unwrap().push(format!("{method} {path}"));
    let site = site.lock().unwrap();
    let special = ["GET", "HEAD"]
        .into_iter()
        .find(|m| *m == method)
        .and_then(|m| site.answers.get(&(m, path.to_string())));
    let answer = special.cloned().unwrap_or_else(|| usual(&site, path));
    let head = format!(
        "HTTP/1.1 {}\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n",
        answer.status,
        answer.body.len(),
        answer.headers
    );
    let _ = stream.write_all(head.as_bytes());
    if method == "GET" {
        let _ = stream.write_all(&answer.body[..answer.cut.unwrap_or(answer.body.len())]);
    }
}

fn usual(site: &Site, path: &str) -> Answer {
    let ok = |headers: String, body: Vec<u8>| Answer {
        status: "200 OK",
        headers,
        body,
        cut: None,
    };
    let json = |value: serde_json::Value| {
        ok(
            "Content-Type: application/json\r\n".into(),
            value.to_string().into_bytes(),
        )
    };
    for kind in ["models", "datasets"] {
        if path == format!("/api/{kind}/org/name/revision/main") {
            let card = site
                .card
                .map(|card| serde_json::from_str::<serde_json::Value>(card).unwrap());
            return json(serde_json::json!({"id": "org/name", "sha": COMMIT, "cardData": card}));
        }
        if path == format!("/api/{kind}/org/name/tree/{COMMIT}") {
            let entry = |(path, content): &(&str, Vec<u8>)| {
                let mut entry = serde_json::json!({"type": "file", "path": path, "size": content.len(), "oid": git_hash(content)});
                if is_large(path) {
                    entry["oid"] = "pointer".into();
                    entry["lfs"] = serde_json::json!({"oid": hex(Sha256::digest(content)), "size": content.len(), "pointerSize": 130});
                }
                entry
            };
            return json(site.files.iter().map(entry).collect());
        }
    }
    let prefix = format!("/org/name/resolve/{COMMIT}/");
    let file = path
        .strip_prefix("/datasets")
        .unwrap_or(path)
        .strip_prefix(&prefix);
    match site.files.iter().find(|(name, _)| Some(*name) == file) {
        Some((name, content)) => {
            let etag = if is_large(name) {
                hex(Sha256::digest(content))
            } else {
                git_hash(content)
            };
            ok(
                format!("ETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\n"),
                content.clone(),
            )
        }
        None => Answer::error("404 Not Found", "EntryNotFound"),
    }
}

fn model_site() -> Site {
    let files = [
        ("README.md", "# a model"),
        ("config.json", "{}"),
        ("tokenizer.json", "{\"a\":1}"),
        ("LICENSE", "free"),
        ("pytorch_model.bin", "not wanted"),
        ("model.safetensors.index.json", INDEX),
        ("model-00001-of-00002.safetensors", "one"),
        ("model-00002-of-00002.safetensors", "three"),
        ("onnx/model.safetensors", "not wanted"),
    ];
    Site {
        files: files
            .map(|(name, text)| (name, text.as_bytes().to_vec()))
            .into(),
        ..Site::default()
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn message(error: distill::Error) -> (String, String) {
    (error.to_string(), error.hint().unwrap_or_default())
}

#[test]
fn a_model_is_fetched_once_and_only_what_loads_it() {
    let server = Server::start(model_site());
    let model = server.model().unwrap();
    assert_eq!(model.revision.as_deref(), Some(COMMIT));
    assert_eq!(
        names(&model.folder),
        [
            "LICENSE",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json"
        ]
    );
    assert_eq!(
        std::fs::read(model.folder.join("model-00002-of-00002.safetensors")).unwrap(),
        b"three"
    );
    assert_eq!(server.downloads().len(), 6);
    assert_eq!(server.model().unwrap(), model);
    assert_eq!(
        server.downloads().len(),
        6,
        "the second call fetches nothing"
    );
    // Python finds it too
    let reference = server.cache.path().join("models--org--name/refs/main");
    assert_eq!(std::fs::read_to_string(reference).unwrap(), COMMIT);
    // and so does a run without network
    let asked = server.asked.lock().unwrap().len();
    assert_eq!(
        server
            .hub(true)
            .model("org/name", None, Part::Everything, &Silent)
            .unwrap(),
        model
    );
    assert_eq!(server.asked.lock().unwrap().len(), asked);
}

#[test]
fn a_tokenizer_does_not_bring_the_weights() {
    let server = Server::start(model_site());
    let model = server
        .hub(false)
        .model("org/name", None, Part::WithoutWeights, &Silent)
        .unwrap();
    assert_eq!(
        names(&model.folder),
        ["LICENSE", "config.json", "tokenizer.json"]
    );
    let hub = server.hub(true);
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
    let server = Server::start(model_site());
    let (text, hint) = message(
        server
            .hub(true)
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
    assert!(server.asked.lock().unwrap().is_empty());
}

#[test]
fn an_error_page_is_not_taken_for_the_file() {
    // HEAD answers as if all were well, GET refuses: the client would keep the error's text as the file
    for page in ["forbidden", "thr**"] {
        let server = Server::start(model_site());
        let path = format!("/org/name/resolve/{COMMIT}/model-00002-of-00002.safetensors");
        let refusal = Answer {
            status: "403 Forbidden",
            headers: String::new(),
            body: page.into(),
            cut: None,
        };
        server.misbehave("GET", &path, refusal);
        let (text, hint) = message(server.model().unwrap_err());
        let start = "`model-00002-of-00002.safetensors` of model `org/name` arrived damaged: ";
        let why = text.strip_prefix(start).unwrap();
        match page.len() {
            5 => assert!(
                why.starts_with("hash ") && why.ends_with(" arrived"),
                "{why}"
            ),
            _ => assert_eq!(why, "5 bytes expected, 9 arrived"),
        }
        assert!(hint.contains("error page"));
        // and nothing of it stays: once the server is well again, so are we
        server.site.lock().unwrap().answers.clear();
        let model = server.model().unwrap();
        assert_eq!(
            std::fs::read(model.folder.join("model-00002-of-00002.safetensors")).unwrap(),
            b"three"
        );
    }
}

#[test]
fn a_damaged_cache_is_mended() {
    let server = Server::start(model_site());
    let model = server.model().unwrap();
    let shard = model.folder.join("model-00001-of-00002.safetensors");
    let blob = std::fs::canonicalize(&shard).unwrap();
    std::fs::write(&blob, "<html>").unwrap();
    assert_eq!(server.model().unwrap(), model);
    assert_eq!(std::fs::read(&shard).unwrap(), b"one");
}

#[test]
fn a_listed_file_that_is_gone_is_an_error() {
    let server = Server::start(model_site());
    let path = format!("/org/name/resolve/{COMMIT}/tokenizer.json");
    server.misbehave(
        "HEAD",
        &path,
        Answer::error("404 Not Found", "EntryNotFound"),
    );
    let (text, _) = message(server.model().unwrap_err());
    assert_eq!(
        text,
        "`tokenizer.json` of model `org/name` is listed at revision `main` but the server does not have it (404)"
    );
}

#[test]
fn a_cut_body_is_an_error_and_leaves_nothing_behind() {
    let server = Server::start(model_site());
    let path = format!("/org/name/resolve/{COMMIT}/config.json");
    let whole = usual(&server.site.lock().unwrap(), &path);
    server.misbehave(
        "GET",
        &path,
        Answer {
            cut: Some(1),
            ..whole
        },
    );
    let (text, hint) = message(server.model().unwrap_err());
    assert!(
        text.starts_with("`config.json` of model `org/name` did not arrive whole: "),
        "{text}"
    );
    assert_eq!(hint, "run the same command again");
    server.site.lock().unwrap().answers.clear();
    assert!(server.model().is_ok());
}

#[test]
fn refusals_are_told_apart() {
    let info = "/api/models/org/name/revision/main";
    let cases = [
        (
            "401 Unauthorized",
            "",
            "model `org/name` cannot be read without a valid token, or does not exist (401)",
        ),
        (
            "403 Forbidden",
            "",
            "model `org/name` may not be read with this token (403)",
        ),
        (
            "403 Forbidden",
            "GatedRepo",
            "model `org/name` is gated and this token has no access",
        ),
        (
            "401 Unauthorized",
            "GatedRepo",
            "model `org/name` is gated and this token has no access",
        ),
        (
            "404 Not Found",
            "RevisionNotFound",
            "model `org/name` has no revision `main`",
        ),
        (
            "429 Too Many Requests",
            "",
            "the server refuses more requests for model `org/name` (429)",
        ),
        (
            "503 Service Unavailable",
            "",
            "the server answered 503 Service Unavailable for model `org/name`",
        ),
    ];
    for (status, code, want) in cases {
        let server = Server::start(model_site());
        server.misbehave("GET", info, Answer::error(status, code));
        let (text, hint) = message(server.model().unwrap_err());
        assert_eq!(text, want);
        assert!(!hint.is_empty(), "{want}");
    }
    let server = Server::start(model_site());
    server.misbehave("GET", info, Answer::error("404 Not Found", "RepoNotFound"));
    let (text, _) = message(server.model().unwrap_err());
    assert_eq!(
        text,
        format!("there is no model `org/name` at {}", server.endpoint)
    );
}

#[test]
fn an_unreachable_server_falls_back_on_the_cache() {
    let server = Server::start(model_site());
    let model = server.model().unwrap();
    // a port where nobody listens
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let hub = |cache: &Path| {
        let options = HubOptions {
            endpoint: Some(format!("http://{closed}")),
            cache: Some(cache.to_path_buf()),
            num_retries: Some(0),
            ..HubOptions::default()
        };
        Hub::new(options)
            .unwrap()
            .model("org/name", None, Part::Everything, &Silent)
    };
    assert_eq!(hub(server.cache.path()).unwrap(), model);
    let empty = tempfile::tempdir().unwrap();
    let (text, hint) = message(hub(empty.path()).unwrap_err());
    assert!(
        text.starts_with(&format!(
            "http://{closed} cannot be reached for model `org/name`: "
        )),
        "{text}"
    );
    assert!(hint.contains("HF_ENDPOINT"));
}

#[test]
fn missing_weights_are_named() {
    let mut site = model_site();
    site.files
        .retain(|(name, _)| *name != "model-00002-of-00002.safetensors");
    let (text, _) = message(Server::start(site).model().unwrap_err());
    assert_eq!(
        text,
        "`model.safetensors.index.json` of model `org/name` names `model-00002-of-00002.safetensors`, which the repository does not have"
    );
    let mut site = model_site();
    site.files.retain(|(name, _)| !name.starts_with("model"));
    let (text, hint) = message(Server::start(site).model().unwrap_err());
    assert_eq!(
        text,
        "model `org/name` has no `model.safetensors` and no `model.safetensors.index.json`"
    );
    assert!(hint.contains("safetensors"));
}

#[test]
fn a_data_set_brings_the_training_split_of_its_config() {
    let files = [
        "README.md",
        "math/train-00000-of-00001.parquet",
        "math/test-00000-of-00001.parquet",
        "code/train-00000-of-00001.parquet",
    ];
    let site = Site {
        files: files.map(|name| (name, name.as_bytes().to_vec())).into(),
        card: Some(
            r#"{"configs": [
                {"config_name": "math", "data_files": [{"split": "train", "path": "math/train-*"}, {"split": "test", "path": "math/test-*"}]},
                {"config_name": "code", "data_files": [{"split": "train", "path": "code/train-*"}]}]}"#,
        ),
        ..Site::default()
    };
    let server = Server::start(site);
    let fetch = |offline, config, patterns: &[String]| {
        let wanted = Wanted {
            config: Some(config),
            split: None,
            patterns,
        };
        let data = server
            .hub(offline)
            .dataset("org/name", None, wanted, &Silent)?;
        let snapshot = server
            .cache
            .path()
            .join("datasets--org--name/snapshots")
            .join(COMMIT);
        let relative = data.files.iter().map(|f| {
            f.strip_prefix(&snapshot)
                .unwrap()
                .to_str()
                .unwrap()
                .to_string()
        });
        Ok::<_, distill::Error>(relative.collect::<Vec<_>>())
    };
    assert_eq!(
        fetch(false, "math", &[]).unwrap(),
        ["math/train-00000-of-00001.parquet"]
    );
    assert_eq!(
        fetch(true, "math", &[]).unwrap(),
        ["math/train-00000-of-00001.parquet"]
    );
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
