//! Ctrl-C: the first one asks to stop and says so, the second ends the process. This binary is its own subject.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use distill::cli::terminal::{Terminal, Verbosity, stop_on_signals};
use distill::progress::Stop;

const SUBJECT: &str = "DISTILL_TEST_SIGNAL_SUBJECT";

#[test]
fn the_first_asks_the_second_ends() {
    if std::env::var_os(SUBJECT).is_some() {
        return subject();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["the_first_asks_the_second_ends", "--exact", "--nocapture"])
        .env(SUBJECT, "1")
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id() as i32;
    let interrupt = || assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
    let mut lines = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert_eq!(lines.find(|line| line == "ready").as_deref(), Some("ready"));
    interrupt();
    let said: Vec<String> = lines.by_ref().take(2).collect();
    assert!(said.iter().any(|line| line == "asked to stop"), "{said:?}");
    assert!(
        said.iter()
            .any(|line| line.starts_with("warning: stopping: the current step is finished")),
        "{said:?}"
    );
    interrupt();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

fn subject() {
    let stop = Stop::default();
    stop_on_signals(&stop, &Terminal::new(Verbosity::Lines)).unwrap();
    let say = |text: &str| std::io::stderr().write_all(text.as_bytes()).unwrap();
    say("ready\n");
    while !stop.requested() {
        std::thread::sleep(Duration::from_millis(5));
    }
    say("asked to stop\n");
    std::thread::sleep(Duration::from_secs(30));
}
