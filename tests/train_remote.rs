//! Rollouts of an engine elsewhere, against a stand-in that samples from the weights it is given: the same run as with our
//! own engine to the bit, older weights counted and corrected for, and every fault one error after which the run goes on.

mod judge_server;
mod remote_server;
mod train_common;

use candle_core::{DType, Device};
use distill::generate::RemoteEngine;
use distill::model::{CausalLm, ModelConfig};
use distill::progress::Stop;
use distill::recipe::grpo::{Correction, Grpo, Kl};
use distill::recipe::remote::{Remote, RemoteKind};
use distill::recipe::reward::{RepetitionReward, RewardKind, RewardSettings, RewardTable};
use distill::reward::{Rewards, Tools};
use distill::tokenize::Chat;
use distill::train::grpo_record::GrpoRecord;
use distill::train::{GrpoJob, GrpoOutcome, train_grpo};
use distill::{Error, Result};
use judge_server::{Reply, nobody};
use remote_server::{Config, Fault, Server};
use std::path::Path;
use train_common::grpo::{END, Log, prompts, settings, timeless, tokenizer};
use train_common::{bits, tiny};

fn remote(kind: RemoteKind, url: &str) -> Remote {
    Remote {
        engine: kind,
        url: url.to_string(),
        model: None,
        api_key_env: None,
        concurrency: 4,
        timeout_s: 20.0,
        retries: 1,
        backoff_s: 0.0,
        weights_dir: None,
        sync_every_steps: 1,
    }
}

/// Few words twice: every group has better and worse ones.
fn rewards() -> Rewards {
    let kind = RewardKind::RepetitionPenalty(RepetitionReward {
        ngram_size: 1,
        max_penalty: -1.0,
    });
    let table = RewardTable::List(vec![RewardSettings {
        weight: 1.0,
        domains: Vec::new(),
        kind,
    }]);
    Rewards::build(&table, Tools::default()).unwrap()
}

/// Six updates of 4 groups of 4.
fn small(kind: RemoteKind, url: &str) -> Grpo {
    Grpo {
        num_steps: Some(6),
        group_size: 4,
        max_new_tokens: 8,
        checkpoint_every_steps: 2,
        remote: Some(remote(kind, url)),
        ..settings()
    }
}

fn with(settings: &Grpo, change: impl FnOnce(&mut Remote)) -> Grpo {
    let mut settings = settings.clone();
    change(settings.remote.as_mut().unwrap());
    settings
}

fn train(model: &CausalLm, settings: &Grpo, dir: &Path, log: &mut Log) -> Result<GrpoOutcome> {
    let stop = match &log.stop {
        Some((_, stop)) => stop.clone(),
        None => Stop::default(),
    };
    let (prompts, rewards) = (prompts(), rewards());
    let chat = Chat::new(tokenizer(), Some("{{ messages[0].content }}")).unwrap();
    let mut local = distill::generate::LocalEngine::new(model, &chat.tokenizer, 64);
    let mut remote = settings.remote.as_ref().map(|remote| {
        RemoteEngine::open(remote, model, &chat, dir.join("weights"), stop.clone()).unwrap()
    });
    let job = GrpoJob {
        engine: match &mut remote {
            Some(remote) => remote,
            None => &mut local,
        },
        prompts: &prompts,
        rewards: &rewards,
        tokenizer: &chat.tokenizer,
        settings,
        stop_ids: &[END],
        seed: 5,
        inputs_key: "test",
    };
    train_grpo(model, job, dir, log, &stop)
}

/// The records and final weights of a run without interruption.
fn run(settings: &Grpo) -> (Vec<GrpoRecord>, Vec<Vec<u32>>) {
    let (model, mut log) = (tiny(3), Log::default());
    let dir = tempfile::tempdir().unwrap();
    train(&model, settings, dir.path(), &mut log).unwrap();
    (timeless(&log.records), bits(&model))
}

fn sampled(kind: RemoteKind) -> &'static str {
    match kind {
        RemoteKind::Vllm => "/v1/completions",
        RemoteKind::Sglang => "/generate",
    }
}

fn reloaded(kind: RemoteKind) -> &'static str {
    match kind {
        RemoteKind::Vllm => "/collective_rpc",
        RemoteKind::Sglang => "/update_weights_from_disk",
    }
}

const BOTH: [RemoteKind; 2] = [RemoteKind::Vllm, RemoteKind::Sglang];

#[test]
fn the_same_run_as_with_our_own_engine() {
    for kind in BOTH {
        for temperature in [1.0, 0.7] {
            let server = Server::start(Config::default());
            let settings = Grpo {
                temperature,
                stop: vec!["t4 t5".into(), "t6".into()],
                ..small(kind, &server.url)
            };
            let local = Grpo {
                remote: None,
                ..settings.clone()
            };
            let (model, mut log) = (tiny(3), Log::default());
            let dir = tempfile::tempdir().unwrap();
            train(&model, &settings, dir.path(), &mut log).unwrap();
            let (records, weights) = run(&local);
            assert_eq!(timeless(&log.records), records, "{kind:?} {temperature}");
            assert!(bits(&model) == weights);
            assert!(records.iter().all(|r| r.gap < 1e-5 && r.staleness == 0.0));
            assert!(records[0].grad_norm > 0.0);
            assert!(weights != bits(&tiny(3)));

            // one handing over, one look at it and 16 completions an update; the newest weights stay
            assert_eq!(server.count(reloaded(kind)), 6);
            assert_eq!(server.count(sampled(kind)), 6 * (1 + 16));
            let folders = std::fs::read_dir(dir.path().join("weights")).unwrap();
            assert_eq!(folders.count(), 1);
            let first = &server.asked()[0];
            assert_eq!(first.path, reloaded(kind));
        }
    }
}

#[test]
fn older_weights_are_counted_and_corrected_for() {
    let server = Server::start(Config::default());
    let settings = with(&small(RemoteKind::Sglang, &server.url), |r| {
        r.sync_every_steps = 3
    });
    let settings = Grpo {
        num_steps: Some(7),
        learning_rate: 5e-2,
        // every completion has a gradient, whatever its group's rewards
        kl: Kl::K3,
        kl_coef: 1e-3,
        correction: Correction::TokenTruncate,
        correction_max: 1.01,
        ..settings
    };
    let (records, _) = run(&settings);
    let staleness: Vec<f64> = records.iter().map(|r| r.staleness).collect();
    assert_eq!(staleness, [0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0]);
    for record in &records {
        let is_stale = record.staleness > 0.0;
        assert_eq!(record.num_stale_completions, if is_stale { 16 } else { 0 });
        // what the ratio is held to, and what is corrected for
        assert_eq!((record.ratio_min, record.ratio_max), (1.0, 1.0));
        match is_stale {
            true => assert!(record.gap > 1e-3 && record.corrected > 0.0, "{record:?}"),
            false => assert!(record.gap < 1e-5 && record.corrected == 0.0, "{record:?}"),
        }
    }
    assert_eq!(server.count("/update_weights_from_disk"), 3);

    // several updates of a rollout: its weights are those before the first of them
    let server = Server::start(Config::default());
    let settings = Grpo {
        num_minibatches: 2,
        num_prompts_per_step: 2,
        ..with(&settings, |r| {
            r.url = server.url.clone();
            r.sync_every_steps = 3;
        })
    };
    let staleness: Vec<f64> = run(&settings).0.iter().map(|r| r.staleness).collect();
    assert_eq!(staleness, [0.0, 0.0, 2.0, 2.0, 0.0, 0.0, 2.0]);
}

#[test]
fn a_run_whose_engine_dies_goes_on() {
    for kind in BOTH {
        let straight = {
            let server = Server::start(Config::default());
            run(&small(kind, &server.url))
        };
        // in the third rollout, with some of its groups whole; then nobody answers any more
        let dying = Server::start(Config {
            fault: Box::new(move |number, path, _| {
                let dead = path == sampled(kind) && number >= 2 * 17 + 11;
                dead.then_some(Fault::Reply(Reply::Gone))
            }),
            ..Config::default()
        });
        let settings = with(&small(kind, &dying.url), |r| r.concurrency = 1);
        let dir = tempfile::tempdir().unwrap();
        let (policy, mut log) = (tiny(3), Log::default());
        let error = train(&policy, &settings, dir.path(), &mut log).unwrap_err();
        let (name, url) = (settings.remote.as_ref().unwrap().engine.name(), &dying.url);
        let expected =
            format!("step 3: {name} at `{url}` gave no completion, 2 times: it cannot be reached");
        assert!(error.to_string().starts_with(&expected), "{error}");
        assert!(error.hint().unwrap().contains("the same command goes on"));
        assert_eq!(timeless(&log.records), straight.0[..2]);

        // the address is another one: that changes nothing of what is learnt
        let server = Server::start(Config::default());
        let settings = small(kind, &server.url);
        let (policy, mut log) = (tiny(3), Log::default());
        let outcome = train(&policy, &settings, dir.path(), &mut log).unwrap();
        assert_eq!(outcome.num_resumed_steps, 2);
        assert_eq!(timeless(&log.records), straight.0[2..]);
        assert!(bits(&policy) == straight.1);
        // the weights first; 10 completions were there, 8 of them in whole groups
        assert_eq!(server.asked()[0].path, reloaded(kind));
        assert_eq!(server.count(sampled(kind)), 4 * (1 + 16) - 8);
    }
}

#[test]
fn ctrl_c_does_not_wait_for_answers() {
    let stop = Stop::default();
    let asked = stop.clone();
    let server = Server::start(Config {
        fault: Box::new(move |number, path, _| {
            if path == "/generate" && number == 17 + 7 {
                asked.request();
                std::thread::sleep(std::time::Duration::from_secs(8));
            }
            None
        }),
        ..Config::default()
    });
    let settings = small(RemoteKind::Sglang, &server.url);
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log {
        stop: Some((1000, stop)),
        ..Log::default()
    };
    let started = std::time::Instant::now();
    let error = train(&tiny(3), &settings, dir.path(), &mut log).unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    assert!(error.to_string().contains("after step 1 of 6"), "{error}");
    assert!(started.elapsed().as_secs_f64() < 6.0);

    let server = Server::start(Config::default());
    let settings = with(&settings, |r| r.url = server.url.clone());
    let (policy, mut log) = (tiny(3), Log::default());
    train(&policy, &settings, dir.path(), &mut log).unwrap();
    let straight = run(&settings);
    assert_eq!(timeless(&log.records), straight.0[1..]);
    assert!(bits(&policy) == straight.1);
}

/// The error of a run whose stand-in does `fault` to calls of `path`, with the address as `URL`.
fn failure(
    kind: RemoteKind,
    path: &'static str,
    fault: fn(usize) -> Option<Fault>,
) -> (String, Option<String>) {
    let server = Server::start(Config {
        fault: Box::new(move |number, p, _| if p == path { fault(number) } else { None }),
        ..Config::default()
    });
    let settings = with(&small(kind, &server.url), |r| {
        r.model = Some("m".into());
        // cargo sets it
        r.api_key_env = Some("CARGO_PKG_NAME".into());
    });
    let dir = tempfile::tempdir().unwrap();
    let error = train(&tiny(3), &settings, dir.path(), &mut Log::default()).unwrap_err();
    // the variable's value is the key
    let key = "authorization: bearer distill";
    let head = server.asked()[0].call.head.to_lowercase();
    assert!(head.contains(key), "{head}");
    let folders = std::fs::read_dir(dir.path().join("weights")).unwrap();
    assert!(folders.count() <= 1);
    (error.to_string().replace(&server.url, "URL"), error.hint())
}

fn status(status: u16, body: &str) -> Option<Fault> {
    Some(Fault::Reply(Reply::Status(status, "", body.into())))
}

#[test]
fn every_fault_is_one_error() {
    use RemoteKind::{Sglang, Vllm};
    type Case = (
        RemoteKind,
        &'static str,
        fn(usize) -> Option<Fault>,
        &'static str,
        &'static str,
    );
    let cases: [Case; 14] = [
        (
            Vllm,
            "/v1/completions",
            |_| status(503, "loading"),
            "vLLM at `URL` gave no completion, 2 times: it answered 503 Service Unavailable: loading",
            "the same command goes on",
        ),
        (
            Sglang,
            "/generate",
            |_| Some(Fault::Reply(Reply::Cut("much".into()))),
            "SGLang at `URL` gave no completion, 2 times: its answer was cut off",
            "the same command goes on",
        ),
        (
            Sglang,
            "/generate",
            |_| status(200, "<html>"),
            "SGLang at `URL` gave no completion, 2 times: its answer is no JSON",
            "the same command goes on",
        ),
        (
            Vllm,
            "/v1/completions",
            |_| status(404, "the model `m` does not exist"),
            "vLLM at `URL`: it answered 404 Not Found: the model `m` does not exist",
            "`model` is the name it serves",
        ),
        (
            Vllm,
            "/v1/completions",
            |_| status(401, "Unauthorized"),
            "vLLM at `URL`: it answered 401 Unauthorized: Unauthorized",
            "put its key into `CARGO_PKG_NAME`",
        ),
        (
            Vllm,
            "/v1/completions",
            |_| {
                Some(Fault::Edit(|answer| {
                    answer["choices"][0]["token_ids"]
                        .as_array_mut()
                        .unwrap()
                        .pop();
                }))
            },
            "vLLM at `URL`: its answer has ",
            "",
        ),
        (
            Vllm,
            "/v1/completions",
            |number| {
                (number > 0).then_some(Fault::Edit(|answer| {
                    answer["choices"][0]["token_ids"][0] = 24.into();
                }))
            },
            "vLLM at `URL`: token 24 is outside the model's vocabulary of 24",
            "it serves another model",
        ),
        (
            Sglang,
            "/generate",
            |_| {
                Some(Fault::Edit(|answer| {
                    answer["meta_info"]["output_token_logprobs"][0][0] = 3.5.into();
                }))
            },
            "SGLang at `URL`: 3.5 is no log-probability",
            "",
        ),
        (
            Sglang,
            "/generate",
            |_| {
                Some(Fault::Edit(|answer| {
                    for pair in answer["meta_info"]["output_token_logprobs"]
                        .as_array_mut()
                        .unwrap()
                    {
                        pair[0] = (-9.0).into();
                    }
                }))
            },
            "SGLang at `URL` does not have the weights that it was given: its log-probabilities are ",
            "it must serve the same model",
        ),
        (
            Vllm,
            "/collective_rpc",
            |_| status(404, "Not Found"),
            "vLLM at `URL` has no `/collective_rpc`: it answered 404 Not Found: Not Found",
            "VLLM_SERVER_DEV_MODE=1",
        ),
        (
            Vllm,
            "/collective_rpc",
            |_| status(500, "unexpected keyword argument 'weights_path'"),
            "vLLM at `URL` did not take the weights in `",
            "be new enough to read weights from a path",
        ),
        (
            Vllm,
            "/reset_prefix_cache",
            |_| status(200, r#"{"success": false}"#),
            "vLLM at `URL` did not take the weights in `",
            "the same command goes on",
        ),
        (
            Sglang,
            "/update_weights_from_disk",
            |_| status(400, r#"{"success": false, "message": "no such folder"}"#),
            "SGLang at `URL` did not take the weights in `",
            "under the same path",
        ),
        (
            Vllm,
            "/v1/completions",
            |_| {
                Some(Fault::Edit(|answer| {
                    answer["choices"][0]["finish_reason"] = "abort".into();
                }))
            },
            "vLLM at `URL` gave no completion, 2 times: it ended a completion with `abort`",
            "the same command goes on",
        ),
    ];
    for (kind, path, fault, message, hint) in cases {
        let (found, found_hint) = failure(kind, path, fault);
        let expected = format!("step 1: {message}");
        assert!(found.starts_with(&expected), "{found}\nnot {expected}");
        let found_hint = found_hint.unwrap_or_default();
        assert!(found_hint.contains(hint), "{found_hint}\nnot {hint}");
    }
}

#[test]
fn a_busy_engine_is_asked_again() {
    let server = Server::start(Config {
        fault: Box::new(|number, path, _| match (path, number % 3) {
            ("/generate", 0) => status(429, "later"),
            ("/generate", 1) => Some(Fault::Reply(Reply::Gone)),
            ("/update_weights_from_disk", 0) => status(503, "starting"),
            _ => None,
        }),
        ..Config::default()
    });
    // one at a time, so that no completion has a fault after the other two
    let settings = with(&small(RemoteKind::Sglang, &server.url), |r| {
        r.retries = 3;
        r.concurrency = 1;
    });
    let local = Grpo {
        remote: None,
        ..settings.clone()
    };
    assert!(run(&settings) == run(&local));
}

#[test]
fn nobody_listens() {
    let address = nobody();
    let settings = small(RemoteKind::Vllm, &address);
    let dir = tempfile::tempdir().unwrap();
    let error = train(&tiny(3), &settings, dir.path(), &mut Log::default()).unwrap_err();
    let place = format!("step 1: vLLM at `{}`", address.trim_end_matches("/v1"));
    let text = error.to_string();
    assert!(
        text.starts_with(&place) && text.contains("it cannot be reached"),
        "{text}"
    );
}

#[test]
fn log_probabilities_of_another_temperature_are_refused() {
    let raw = || {
        Server::start(Config {
            is_raw: true,
            ..Config::default()
        })
    };
    for (kind, hint) in [
        (
            RemoteKind::Vllm,
            "start it with `--logprobs-mode processed_logprobs`",
        ),
        (
            RemoteKind::Sglang,
            "start it without `SGLANG_RETURN_ORIGINAL_LOGPROB`",
        ),
    ] {
        let server = raw();
        let settings = Grpo {
            temperature: 0.7,
            ..small(kind, &server.url)
        };
        let dir = tempfile::tempdir().unwrap();
        let error = train(&tiny(3), &settings, dir.path(), &mut Log::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "step 1: {} at `{}` samples at a temperature of 0.7 and tells the log-probabilities of 1, which would bias what is learnt",
                kind.name(),
                server.url
            )
        );
        assert_eq!(error.hint().unwrap(), hint);
        // at 1 they are the same
        let settings = Grpo {
            temperature: 1.0,
            ..settings
        };
        let local = Grpo {
            remote: None,
            ..settings.clone()
        };
        let (records, weights) = run(&settings);
        assert!(weights == run(&local).1);
        assert!(records.iter().all(|r| r.gap < 1e-5));
    }
}

/// As [`tiny`], with weights so large that two of them differ by far.
fn bold(seed: u64) -> CausalLm {
    let mut json = tiny(0).config().to_json("float32");
    json["initializer_range"] = 2.0.into();
    let config = ModelConfig::from_json(&json, "config.json").unwrap();
    CausalLm::random(config, seed, &Device::Cpu, DType::F32).unwrap()
}

#[test]
fn weights_that_were_not_read_are_found() {
    let server = Server::start(Config {
        // the first are another run's
        fault: Box::new(|number, path, _| {
            (path == "/update_weights_from_disk" && number > 0).then_some(Fault::NotRead)
        }),
        ..Config::default()
    });
    let settings = Grpo {
        num_steps: Some(1),
        ..small(RemoteKind::Sglang, &server.url)
    };
    let dir = || tempfile::tempdir().unwrap();
    train(&bold(1), &settings, dir().path(), &mut Log::default()).unwrap();
    let error = train(&bold(2), &settings, dir().path(), &mut Log::default()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("does not have the weights that it was given"),
        "{text}"
    );
}

#[test]
fn an_engine_ends_at_a_token_of_its_own() {
    let server = Server::start(Config {
        fault: Box::new(|number, path, _| {
            let is_completion = path == "/generate" && number > 0;
            is_completion.then_some(Fault::Edit(|answer| {
                answer["meta_info"]["finish_reason"] =
                    serde_json::json!({"type": "stop", "matched": 1});
                let pairs = answer["meta_info"]["output_token_logprobs"].as_array_mut();
                pairs.unwrap().truncate(1);
            }))
        }),
        ..Config::default()
    });
    let settings = Grpo {
        num_steps: Some(1),
        max_new_tokens: 20,
        ..small(RemoteKind::Sglang, &server.url)
    };
    let (records, _) = run(&settings);
    let record = &records[0];
    assert_eq!((record.length, record.truncated), (1.0, 0.0));
}

#[test]
fn a_context_that_is_too_short_is_told() {
    let server = Server::start(Config {
        fault: Box::new(|number, path, _| {
            let is_completion = path == "/generate" && number > 0;
            is_completion.then_some(Fault::Edit(|answer| {
                answer["meta_info"]["finish_reason"]["type"] = "length".into();
                let pairs = answer["meta_info"]["output_token_logprobs"].as_array_mut();
                pairs.unwrap().truncate(1);
            }))
        }),
        ..Config::default()
    });
    let settings = Grpo {
        max_new_tokens: 20,
        ..small(RemoteKind::Sglang, &server.url)
    };
    let dir = tempfile::tempdir().unwrap();
    let error = train(&tiny(3), &settings, dir.path(), &mut Log::default()).unwrap_err();
    let expected = "cut a completion off after 1 tokens of 20: its context is too short";
    assert!(error.to_string().contains(expected), "{error}");
    assert_eq!(error.hint().unwrap(), "raise its `--context-length`");
}
