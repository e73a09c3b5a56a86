//! Sampling from a tiny model with random weights: the same text in whatever company, greedy equal to the full forward
//! pass, log-probabilities equal to its softmax.

use std::path::Path;

use candle_core::{DType, Device};
use distill::generate::score::score;
use distill::generate::{Completion, Engine, FinishReason, LocalEngine, Request, Sampling};
use distill::model::{CausalLm, ModelConfig};
use distill::progress::Stop;
use distill::tokenize::TextTokenizer;

const VOCAB: usize = 61;

fn model(architecture: &str) -> CausalLm {
    let config = serde_json::json!({
        "architectures": [format!("{architecture}ForCausalLM")], "model_type": architecture.to_lowercase(),
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCAB, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    let config = ModelConfig::from_json(&config, "test").unwrap();
    CausalLm::random(config, 11, &Device::Cpu, DType::F32).unwrap()
}

/// One word a token, `t0` to `t60`.
fn tokenizer(folder: &Path) -> TextTokenizer {
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..VOCAB).map(|i| (format!("t{i}"), i.into())).collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"},
    });
    std::fs::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
    TextTokenizer::load(folder).unwrap()
}

/// Prompts of different lengths, three samples of each.
fn requests() -> Vec<Request> {
    (0..18u64)
        .map(|i| {
            let prompt = i / 3;
            Request {
                id: i,
                prompt: (0..2 + 3 * prompt)
                    .map(|t| ((t * 13 + prompt * 7) % 61) as u32)
                    .collect(),
            }
        })
        .collect()
}

fn complete(
    model: &CausalLm,
    max_batch: usize,
    requests: &[Request],
    sampling: &Sampling,
) -> Vec<Completion> {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(folder.path());
    let mut done = Vec::new();
    let mut on_done = |completion| {
        done.push(completion);
        Ok(())
    };
    let mut engine = LocalEngine::new(model, &tokenizer, max_batch);
    engine
        .generate(requests, sampling, &mut on_done, &Stop::default())
        .unwrap();
    done.sort_by_key(|completion: &Completion| completion.id);
    done
}

/// log softmax of the full forward pass over `tokens`, one row a token.
fn full_forward(model: &CausalLm, tokens: &[u32]) -> Vec<Vec<f64>> {
    let logits = model
        .logits(tokens, &[tokens.len()])
        .unwrap()
        .to_vec2::<f32>()
        .unwrap();
    let log_softmax = |row: &Vec<f32>| {
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        row.iter().map(|&x| f64::from(x) - sum.ln()).collect()
    };
    logits.iter().map(log_softmax).collect()
}

#[test]
fn a_seed_gives_the_same_text_whatever_the_batch_and_the_order() {
    for architecture in ["Qwen2", "Qwen3", "Llama"] {
        let model = model(architecture);
        let sampling = Sampling {
            temperature: 0.9,
            top_p: 0.95,
            repetition_penalty: 1.1,
            max_new_tokens: 20,
            stop_ids: vec![5],
            seed: 42,
            ..Sampling::default()
        };
        let alone = complete(&model, 1, &requests(), &sampling);
        assert_eq!(alone.len(), 18);
        assert!(
            alone[0].tokens != alone[1].tokens,
            "samples of one prompt differ"
        );
        let mut reversed = requests();
        reversed.reverse();
        let mut mixed = requests();
        mixed.sort_by_key(|request| (request.id * 11) % 18);
        for max_batch in [3, 16] {
            for order in [&requests(), &reversed, &mixed] {
                // to the bit, log-probabilities included
                assert_eq!(
                    complete(&model, max_batch, order, &sampling),
                    alone,
                    "{architecture}, batch {max_batch}"
                );
            }
        }
    }
}

#[test]
fn greedy_is_the_argmax_of_the_full_forward_pass() {
    for architecture in ["Qwen2", "Qwen3", "Llama"] {
        let model = model(architecture);
        let sampling = Sampling {
            temperature: 0.0,
            max_new_tokens: 24,
            ..Sampling::default()
        };
        for (request, completion) in
            requests()
                .iter()
                .zip(complete(&model, 7, &requests(), &sampling))
        {
            assert_eq!(
                (completion.tokens.len(), completion.finish_reason),
                (24, FinishReason::Length)
            );
            let tokens = [request.prompt.as_slice(), &completion.tokens].concat();
            let rows = full_forward(&model, &tokens);
            for (i, (&token, &logprob)) in completion
                .tokens
                .iter()
                .zip(&completion.logprobs)
                .enumerate()
            {
                let row = &rows[request.prompt.len() + i - 1];
                let best = (0..VOCAB)
                    .max_by(|&a, &b| row[a].total_cmp(&row[b]))
                    .unwrap();
                assert_eq!(
                    token as usize, best,
                    "{architecture}, request {}, token {i}",
                    request.id
                );
                assert!((f64::from(logprob) - row[best]).abs() < 1e-5);
            }
            let words: Vec<String> = completion
                .tokens
                .iter()
                .map(|token| format!("t{token}"))
                .collect();
            assert_eq!(completion.text, words.join(" "));
        }
    }
}

#[test]
fn stop_tokens_and_stop_texts_end_a_completion() {
    let model = model("Qwen2");
    let request = &requests()[4..5];
    let greedy = Sampling {
        temperature: 0.0,
        max_new_tokens: 24,
        ..Sampling::default()
    };
    let whole = complete(&model, 1, request, &greedy).remove(0);
    let fifth = whole.tokens[4];
    let first = whole
        .tokens
        .iter()
        .position(|&token| token == fifth)
        .unwrap();
    let by_token = Sampling {
        stop_ids: vec![fifth],
        ..greedy.clone()
    };
    let by_text = Sampling {
        stop: vec![format!(" t{fifth}")],
        ..greedy
    };
    for sampling in [by_token, by_text] {
        let ended = complete(&model, 1, request, &sampling).remove(0);
        assert_eq!(
            (ended.finish_reason, ended.tokens.last()),
            (FinishReason::Stop, Some(&fifth))
        );
        if first > 0 {
            assert_eq!(ended.tokens, whole.tokens[..=first]);
            let words: Vec<String> = whole.tokens[..first]
                .iter()
                .map(|token| format!("t{token}"))
                .collect();
            assert_eq!(ended.text, words.join(" "));
        }
    }
}

#[test]
fn scores_are_those_of_the_full_forward_pass() {
    let model = model("Llama");
    let sequences: [&[u32]; 5] = [&[3, 9, 27, 20], &[], &[7], &[1, 2], &[60, 0, 60, 0, 60]];
    let scores = score(&model, &sequences).unwrap();
    for (tokens, scores) in sequences.iter().zip(&scores) {
        assert_eq!(scores.len(), tokens.len());
        assert!(scores.first().is_none_or(Option::is_none));
        if tokens.len() > 1 {
            let rows = full_forward(&model, tokens);
            for t in 1..tokens.len() {
                let expected = rows[t - 1][tokens[t] as usize];
                assert!((f64::from(scores[t].unwrap()) - expected).abs() < 1e-5);
            }
        }
    }
    assert!(score(&model, &[&[61]]).is_err());
}

/// What is sampled is scored the same: generation and scoring are one model.
#[test]
fn sampled_log_probabilities_are_the_scores() {
    let model = model("Qwen3");
    let sampling = Sampling {
        temperature: 0.7,
        top_k: 20,
        max_new_tokens: 30,
        ..Sampling::default()
    };
    for (request, completion) in requests()
        .iter()
        .zip(complete(&model, 5, &requests(), &sampling))
    {
        let tokens = [request.prompt.as_slice(), &completion.tokens].concat();
        let scores = score(&model, &[&tokens]).unwrap().remove(0);
        for (logprob, score) in completion
            .logprobs
            .iter()
            .zip(&scores[request.prompt.len()..])
        {
            assert!((logprob - score.unwrap()).abs() < 1e-4);
        }
    }
}
