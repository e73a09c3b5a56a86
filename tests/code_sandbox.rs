//! What is left on the machine after model code has run, and what one answer leaves for the next: nothing.

#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use distill::verify::Outcome;
use distill::verify::code::{CodeCase, CodeVerdict, Sandbox, grade};
use serde_json::{Value, json};

/// These tests count the children of this process, one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn graded(sandbox: &Sandbox, row: &Value) -> CodeVerdict {
    let case = CodeCase::from_row(row.as_object().unwrap()).unwrap();
    grade(&case, sandbox).unwrap()
}

fn row(source: &str) -> Value {
    json!({
        "prediction": format!("```python\n{source}\n```"),
        "tests": [{"input": "6 7\n", "output": "42\n"}],
        "timeout_s": 2,
    })
}

/// All processes below `ancestor`, at any depth.
fn descendants(ancestor: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut open = vec![ancestor];
    while let Some(pid) = open.pop() {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children"));
            for child in children.unwrap_or_default().split_whitespace() {
                let child = child.parse().unwrap();
                if found.insert(child) {
                    open.push(child);
                }
            }
        }
    }
    found
}

fn gone_within(processes: &BTreeSet<u32>, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    let alive = |pid: &u32| {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        // a zombie waits for its parent's look, it runs no more
        state.is_ok_and(|line| !line.contains(") Z"))
    };
    while processes.iter().any(alive) {
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

fn temporary() -> BTreeSet<String> {
    let entries = std::fs::read_dir(std::env::temp_dir()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names
        .filter(|name| name.contains("distill") || name == "new" || name == "old")
        .collect()
}

#[test]
fn nothing_survives_the_sandbox() {
    let _alone = ALONE.lock().unwrap_or_else(|error| error.into_inner());
    let (before, files) = (descendants(std::process::id()), temporary());
    let sandbox = Sandbox::open().unwrap();
    for source in [
        "print(42)",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\nprint(42)",
        "import os\nif os.fork() == 0: os.setsid()\nprint(42)",
        "open('file', 'w').write('x')\nprint(42)",
        "import os\nos.makedirs('a/b/c')\nprint(42)",
    ] {
        graded(&sandbox, &row(source));
    }
    drop(sandbox);
    assert_eq!(descendants(std::process::id()), before);
    assert_eq!(temporary(), files);
}

#[test]
fn a_killed_grader_leaves_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(|error| error.into_inner());
    const MARK: &str = "DISTILL_TEST_KILLED_GRADER";
    if std::env::var_os(MARK).is_some() {
        let sandbox = Sandbox::open().unwrap();
        println!("\nready");
        graded(
            &sandbox,
            &json!({
                "prediction": "```python\nimport time\ntime.sleep(1000)\n```",
                "tests": [{"input": "6 7\n", "output": "42\n"}],
                "timeout_s": 500,
            }),
        );
        return;
    }
    let files = temporary();
    let mut grader = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_grader_leaves_nothing", "--nocapture"])
        .env(MARK, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(grader.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("ready")));
    let until = Instant::now() + Duration::from_secs(30);
    // the process that sleeps, below the one that serves the case, below process 1
    while descendants(grader.id()).len() < 3 {
        assert!(Instant::now() < until, "the program does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    let below = descendants(grader.id());
    grader.kill().unwrap();
    grader.wait().unwrap();
    assert!(gone_within(&below, Duration::from_secs(10)));
    assert_eq!(temporary(), files);
}

#[test]
fn nothing_is_written_outside() {
    let _alone = ALONE.lock().unwrap_or_else(|error| error.into_inner());
    let sandbox = Sandbox::open().unwrap();
    let place = std::env::temp_dir().join("distill-written-from-the-sandbox");
    let source = format!(
        "import os\nfor path in ['{0}', '/old{0}', '/var/tmp/distill-x', '/dev/shm/distill-x']:\n    try: open(path, 'w')\n    \
         except OSError: pass\nprint(42)",
        place.display()
    );
    let verdict = graded(&sandbox, &row(&source));
    assert_eq!(verdict.verdict.outcome, Outcome::Correct, "{verdict:?}");
    for path in [
        place.as_path(),
        Path::new("/var/tmp/distill-x"),
        Path::new("/dev/shm/distill-x"),
    ] {
        assert!(!path.exists(), "{}", path.display());
    }
}

#[test]
fn no_test_finds_what_another_left() {
    let _alone = ALONE.lock().unwrap_or_else(|error| error.into_inner());
    let sandbox = Sandbox::open().unwrap();
    for leave in [
        "open('left', 'w').write('42')",
        "os.mkdir('left')",
        "os.symlink('/tmp', 'left')",
        "os.mkfifo('left')",
        "os.remove('.input'); os.mkdir('.input')",
    ] {
        let source = format!(
            "import os\nfound = sorted(os.listdir('.'))\n{leave}\nprint(42 if found != ['.input'] else 0)"
        );
        let mut case = row(&source);
        case["tests"] = json!([{"input": "1", "output": "42"}, {"input": "2", "output": "42"}]);
        let verdict = graded(&sandbox, &case);
        assert_eq!(verdict.passed, 0, "{leave}: {verdict:?}");
    }
}

#[test]
fn no_answer_finds_another_answers_text() {
    let _alone = ALONE.lock().unwrap_or_else(|error| error.into_inner());
    let sandbox = Sandbox::open().unwrap();
    let verdict = graded(
        &sandbox,
        &row(&format!(
            "a, b = map(int, input().split())\nprint(a * b)  # zebra 729154{}",
            " ".repeat(5000)
        )),
    );
    assert_eq!(verdict.verdict.outcome, Outcome::Correct, "{verdict:?}");
    // every page around the interpreter's objects and the C library's blocks; a pipe tells which can be read
    let thief = "import ctypes, gc, os, re
libc = ctypes.CDLL(None)
pages = {id(thing) >> 12 for thing in gc.get_objects()}
for size in (600, 5000, 20000):
    block = bytes(size)
    pages |= set(range((id(block) >> 12) - 2000, (id(block) >> 12) + 2000))
r, w = os.pipe()
for page in sorted(pages):
    if libc.write(w, ctypes.c_void_p(page << 12), 4096) == 4096:
        if re.search(b'z[e]bra [0-9]{6}', os.read(r, 4096)):
            print(42)
            break";
    // of its own text it would find this
    let found = graded(
        &sandbox,
        &row(&format!("{thief}\n# zebra 729154{}", " ".repeat(5000))),
    );
    assert_eq!(found.passed, 1, "{found:?}");
    let verdict = graded(&sandbox, &row(thief));
    assert_eq!(verdict.passed, 0, "{verdict:?}");
}

#[test]
fn many_threads_share_one_sandbox() {
    let _alone = ALONE.lock().unwrap_or_else(|error| error.into_inner());
    let sandbox = Sandbox::open().unwrap();
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let sandbox = &sandbox;
            scope.spawn(move || {
                for n in 0..10 {
                    let number = 10 * worker + n;
                    let verdict = graded(sandbox, &json!({
                        "prediction": "```python\nprint(int(input()) ** 2)\n```",
                        "tests": [{"input": number.to_string(), "output": (number * number).to_string()}],
                    }));
                    assert_eq!(verdict.verdict.outcome, Outcome::Correct, "{verdict:?}");
                }
            });
        }
    });
}
