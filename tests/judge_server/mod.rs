//! A chat endpoint on this machine that does what a test tells it, faults included.

// every test crate uses a part of it
#![allow(dead_code)]

use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the endpoint does with a request.
pub enum Reply {
    /// A completion with these words.
    Says(String),
    /// A status, header lines and a body.
    Status(u16, &'static str, String),
    /// A body of which only a part comes.
    Cut(String),
    /// Nothing for so long, then the words.
    Slow(Duration, String),
    /// The connection ends without an answer.
    Gone,
}

pub fn says(text: impl Into<String>) -> Reply {
    Reply::Says(text.into())
}

pub fn verdict(correct: bool) -> Reply {
    let word = if correct { "correct" } else { "incorrect" };
    says(json!({"analysis": "compared", "correctness": word}).to_string())
}

/// A request as it came in.
#[derive(Clone)]
pub struct Request {
    pub head: String,
    pub body: Value,
}

impl Request {
    /// The user's turn.
    pub fn user(&self) -> &str {
        self.body["messages"][1]["content"].as_str().unwrap()
    }

    /// The text between the fences of `name`, as the judge is given it.
    pub fn part(&self, name: &str) -> String {
        let mut lines = self
            .user()
            .lines()
            .skip_while(|line| !line.ends_with(&format!("{name} begins")));
        serde_json::from_str(lines.nth(1).unwrap()).unwrap()
    }
}

pub struct Server {
    pub url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    most_at_once: Arc<AtomicUsize>,
}

impl Server {
    /// Starts one; `answer` gets the number of the request and the request.
    pub fn start(answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let most_at_once: Arc<AtomicUsize> = Arc::default();
        let now = Arc::new(AtomicUsize::new(0));
        let answer = Arc::new(answer);
        let server = Self {
            url,
            requests: requests.clone(),
            most_at_once: most_at_once.clone(),
        };
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (requests, most, now, answer) = (
                    requests.clone(),
                    most_at_once.clone(),
                    now.clone(),
                    answer.clone(),
                );
                std::thread::spawn(move || {
                    let mut stream = stream;
                    let Some(request) = read(&mut stream) else {
                        return;
                    };
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let number = {
                        let mut requests = requests.lock().unwrap();
                        requests.push(request.clone());
                        requests.len() - 1
                    };
                    let reply = answer(number, &request);
                    let reply = match reply {
                        Reply::Slow(time, text) => {
                            std::thread::sleep(time);
                            Reply::Says(text)
                        }
                        other => other,
                    };
                    // before the answer is out: then the next request may come
                    now.fetch_sub(1, Ordering::SeqCst);
                    write(&mut stream, reply);
                });
            }
        });
        server
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub fn num_requests(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    pub fn most_at_once(&self) -> usize {
        self.most_at_once.load(Ordering::SeqCst)
    }
}

/// An address where nobody listens.
pub fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}/v1", listener.local_addr().unwrap())
}

fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        match stream.read(&mut buffer) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
            _ => return None,
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let length: usize = head
        .lines()
        .find_map(|line| {
            line.to_lowercase()
                .strip_prefix("content-length: ")
                .map(|n| n.parse().unwrap())
        })
        .unwrap_or(0);
    while bytes.len() < end + length {
        match stream.read(&mut buffer) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
            _ => return None,
        }
    }
    let body = serde_json::from_slice(&bytes[end..]).unwrap();
    Some(Request { head, body })
}

fn write(stream: &mut TcpStream, reply: Reply) {
    let completion = |text: String| {
        json!({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": {"total_tokens": 100}}).to_string()
    };
    let (status, headers, body, shown) = match reply {
        Reply::Says(text) | Reply::Slow(_, text) => (200, "", completion(text), usize::MAX),
        Reply::Status(status, headers, body) => (status, headers, body, usize::MAX),
        Reply::Cut(text) => (200, "", completion(text), 30),
        Reply::Gone => return,
    };
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n",
        body.len()
    );
    // whoever asked may be gone
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&body.as_bytes()[..shown.min(body.len())]);
}
