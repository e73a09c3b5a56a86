//! A stand-in for vLLM and SGLang on this machine. It speaks both wires, reads the weights that it is told to read, samples
//! from them with our own engine, and breaks as a test tells it.

// every test crate uses a part of it
#![allow(dead_code)]

use super::judge_server::{Reply, Request as Call, Server as Http};
use candle_core::{DType, Device};
use distill::generate::remote::seed;
use distill::generate::{Completion, Engine, FinishReason, LocalEngine, Request, Sampling};
use distill::model::{CausalLm, LoadOptions};
use distill::progress::Stop;
use distill::tokenize::TextTokenizer;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What goes wrong with a call.
pub enum Fault {
    /// This is the answer.
    Reply(Reply),
    /// The answer, changed.
    Edit(fn(&mut Value)),
    /// It says that it has read the weights, and has not.
    NotRead,
}

/// The fault of a call, by its number among those of its path, from 0.
pub type FaultOf = dyn Fn(usize, &str, &Call) -> Option<Fault> + Send + Sync;

/// What the stand-in is.
pub struct Config {
    /// Whether log-probabilities are those of temperature 1 whatever is sampled at.
    pub is_raw: bool,
    /// Seed of the run whose draws it makes.
    pub run_seed: u64,
    pub fault: Box<FaultOf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            is_raw: false,
            run_seed: 5,
            fault: Box::new(|_, _, _| None),
        }
    }
}

/// A call that came in.
#[derive(Clone)]
pub struct Asked {
    pub path: String,
    pub call: Call,
}

type Loaded = Option<(CausalLm, TextTokenizer)>;

pub struct Server {
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    pub fn start(config: Config) -> Self {
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let loaded: Mutex<Loaded> = Mutex::new(None);
        let ids: HashMap<u64, u64> = (0..20_000)
            .map(|id| (seed(config.run_seed, id), id))
            .collect();
        let calls = asked.clone();
        let http = Http::start(move |_, call| {
            let path = call.head.split(' ').nth(1).unwrap().to_string();
            let number = {
                let mut calls = calls.lock().unwrap();
                calls.push(Asked {
                    path: path.clone(),
                    call: call.clone(),
                });
                calls.iter().filter(|c| c.path == path).count() - 1
            };
            let fault = (config.fault)(number, &path, call);
            let edit = match fault {
                Some(Fault::Reply(reply)) => return reply,
                Some(Fault::NotRead) => return ok(json!({"success": true, "message": "read"})),
                Some(Fault::Edit(edit)) => Some(edit),
                None => None,
            };
            let body = &call.body;
            match path.as_str() {
                "/collective_rpc" => {
                    assert_eq!(body["method"], "reload_weights");
                    read(&loaded, &body["kwargs"]["weights_path"]);
                    ok(json!({"results": [null]}))
                }
                "/reset_prefix_cache" => Reply::Status(200, "", String::new()),
                "/update_weights_from_disk" => {
                    read(&loaded, &body["model_path"]);
                    ok(json!({"success": true, "message": "read", "num_paused_requests": 0}))
                }
                "/v1/completions" | "/generate" => {
                    let is_vllm = path != "/generate";
                    let mut answer = complete(&config, &ids, &loaded, body, is_vllm);
                    if let Some(edit) = edit {
                        edit(&mut answer);
                    }
                    ok(answer)
                }
                _ => Reply::Status(404, "", r#"{"detail":"Not Found"}"#.into()),
            }
        });
        Self {
            url: http.url.trim_end_matches("/v1").to_string(),
            asked,
        }
    }

    /// Every call so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// How often a path was called.
    pub fn count(&self, path: &str) -> usize {
        self.asked().iter().filter(|a| a.path == path).count()
    }
}

fn ok(value: Value) -> Reply {
    Reply::Status(200, "", value.to_string())
}

/// Reads a folder as it is at this moment, whole.
fn read(loaded: &Mutex<Loaded>, path: &Value) {
    let folder = PathBuf::from(path.as_str().unwrap());
    assert!(folder.is_absolute(), "{}", folder.display());
    let options = LoadOptions {
        device: Device::Cpu,
        dtype: DType::F32,
    };
    let model = CausalLm::load(&folder, &options).unwrap();
    let tokenizer = TextTokenizer::load(Path::new(&folder)).unwrap();
    *loaded.lock().unwrap() = Some((model, tokenizer));
}

fn complete(
    config: &Config,
    ids: &HashMap<u64, u64>,
    loaded: &Mutex<Loaded>,
    body: &Value,
    is_vllm: bool,
) -> Value {
    let how = if is_vllm {
        body
    } else {
        &body["sampling_params"]
    };
    let numbers = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let (prompt, limit, drawn) = match is_vllm {
        true => (&body["prompt"], &body["max_tokens"], &body["seed"]),
        false => (
            &body["input_ids"],
            &how["max_new_tokens"],
            &how["sampling_seed"],
        ),
    };
    // what the real ones need to tell tokens and log-probabilities
    match is_vllm {
        true => assert!(body["return_token_ids"] == true && body["logprobs"] == 0),
        false => assert!(body["return_logprob"] == true && how["ignore_eos"] == false),
    }
    let filters = ["top_p", "top_k", "min_p", "repetition_penalty"].map(|key| how[key].as_f64());
    assert_eq!(filters, [Some(1.0), Some(-1.0), Some(0.0), Some(1.0)]);
    let sampling = Sampling {
        temperature: how["temperature"].as_f64().unwrap(),
        max_new_tokens: limit.as_u64().unwrap() as usize,
        stop: serde_json::from_value(how["stop"].clone()).unwrap(),
        stop_ids: numbers(&how["stop_token_ids"]),
        seed: config.run_seed,
        ..Sampling::default()
    };
    let drawn = drawn.as_u64().unwrap();
    let request = Request {
        id: ids.get(&drawn).copied().unwrap_or(drawn),
        prompt: numbers(prompt),
    };
    let loaded = loaded.lock().unwrap();
    let (model, tokenizer) = loaded.as_ref().expect("weights before questions");
    let mut found: Option<Completion> = None;
    LocalEngine::new(model, tokenizer, 1)
        .generate(
            &[request],
            &sampling,
            &mut |done| {
                found = Some(done);
                Ok(())
            },
            &Stop::default(),
        )
        .unwrap();
    let found = found.unwrap();
    let logprobs = match config.is_raw {
        true => &found.logprobs,
        false => &found.sampled_logprobs,
    };
    let reason = match found.finish_reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    };
    match is_vllm {
        true => json!({"object": "text_completion", "choices": [{
            "index": 0, "text": found.text, "finish_reason": reason, "token_ids": found.tokens,
            "logprobs": {"token_logprobs": logprobs, "text_offset": [], "top_logprobs": [],
                         "tokens": found.tokens.iter().map(|t| format!("token_id:{t}")).collect::<Vec<_>>()},
        }]}),
        false => {
            let pairs = logprobs.iter().zip(&found.tokens);
            let pairs: Vec<Value> = pairs.map(|(l, t)| json!([l, t, null])).collect();
            json!({"text": found.text, "output_ids": found.tokens, "meta_info": {
                "finish_reason": {"type": reason}, "output_token_logprobs": pairs,
            }})
        }
    }
}
