//! What is said to vLLM and SGLang, and what their answers mean. Tokens go both ways as ids; nothing is tokenised twice.
//!
//! | | vLLM, 0.16 or newer | SGLang, 0.5.4 or newer |
//! |---|---|---|
//! | completion | `POST /v1/completions` | `POST /generate` |
//! | tokens, log-probabilities | `token_ids`, `logprobs.token_logprobs` | pairs in `meta_info.output_token_logprobs` |
//! | temperature of these | 1, or that of sampling under `--logprobs-mode processed_logprobs` | that of sampling, or 1 under `SGLANG_RETURN_ORIGINAL_LOGPROB` |
//! | new weights | `POST /collective_rpc`, `reload_weights`, which needs `VLLM_SERVER_DEV_MODE=1`, then `POST /reset_prefix_cache` | `POST /update_weights_from_disk` |
//! | ends at | the tokens it is told, `ignore_eos` takes away its own | these and its own |
//! | seed | of each completion | of each, under `--enable-deterministic-inference` |
//!
//! Every setting of sampling is said: both engines take what is left out from the model's `generation_config.json`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{FinishReason, Sampling};
use crate::recipe::remote::RemoteKind;

/// What one completion was.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<f64>,
    pub finish_reason: FinishReason,
}

/// Why an answer is none.
#[derive(Debug, PartialEq)]
pub enum Unreadable {
    /// Another attempt may give one.
    Broken(String),
    /// Every attempt would give the same.
    Wrong(String),
}

/// Path of the endpoint that samples.
pub fn path(kind: RemoteKind) -> &'static str {
    match kind {
        RemoteKind::Vllm => "/v1/completions",
        RemoteKind::Sglang => "/generate",
    }
}

/// The body that asks for one completion of at most `limit` tokens.
pub fn question(
    kind: RemoteKind,
    model: Option<&str>,
    prompt: &[u32],
    sampling: &Sampling,
    limit: usize,
    seed: u64,
) -> Value {
    let mut common = json!({
        "temperature": sampling.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "n": 1,
        "stop": sampling.stop,
        "stop_token_ids": sampling.stop_ids,
        "skip_special_tokens": true,
    });
    match kind {
        RemoteKind::Vllm => {
            common["prompt"] = json!(prompt);
            common["max_tokens"] = json!(limit);
            common["seed"] = json!(seed);
            common["ignore_eos"] = json!(true);
            // that of the sampled token alone
            common["logprobs"] = json!(0);
            common["return_token_ids"] = json!(true);
            common["stream"] = json!(false);
            if let Some(model) = model {
                common["model"] = json!(model);
            }
            common
        }
        RemoteKind::Sglang => {
            common["max_new_tokens"] = json!(limit);
            common["sampling_seed"] = json!(seed);
            // it would ignore `stop_token_ids` too
            common["ignore_eos"] = json!(false);
            json!({
                "input_ids": prompt,
                "sampling_params": common,
                "return_logprob": true,
                // none of the prompt's
                "logprob_start_len": -1,
                "stream": false,
            })
        }
    }
}

/// The paths and bodies that make the engine read the weights of a folder, in order.
pub fn reload(kind: RemoteKind, folder: &str) -> Vec<(&'static str, Value)> {
    match kind {
        RemoteKind::Vllm => vec![
            (
                "/collective_rpc",
                json!({"method": "reload_weights", "kwargs": {"weights_path": folder}}),
            ),
            // what it has read of prompts was read with the old weights
            ("/reset_prefix_cache", json!({})),
        ],
        RemoteKind::Sglang => vec![(
            "/update_weights_from_disk",
            json!({"model_path": folder, "flush_cache": true}),
        )],
    }
}

/// What the engine says against having done a step of [`reload`]; some steps are answered with nothing.
pub fn reload_failure(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Done {
        success: Option<bool>,
        message: Option<String>,
    }
    let done: Done = serde_json::from_slice(bytes).ok()?;
    let message = || done.message.unwrap_or_else(|| "without a reason".into());
    (done.success == Some(false)).then(message)
}

/// Reads the answer to [`question`].
///
/// # Errors
/// Not JSON, or JSON of another shape.
pub fn answer(kind: RemoteKind, bytes: &[u8]) -> Result<Answer, Unreadable> {
    // a proxy's page, or half of an answer
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|e| Unreadable::Broken(format!("its answer is no JSON: {e}")))?;
    let answer = match kind {
        RemoteKind::Vllm => of_vllm(value)?,
        RemoteKind::Sglang => of_sglang(value)?,
    };
    if answer.tokens.len() != answer.logprobs.len() {
        return Err(Unreadable::Wrong(format!(
            "its answer has {} tokens and {} log-probabilities",
            answer.tokens.len(),
            answer.logprobs.len()
        )));
    }
    match answer.logprobs.iter().find(|l| **l > 1e-3) {
        Some(l) => Err(Unreadable::Wrong(format!("{l} is no log-probability"))),
        None => Ok(answer),
    }
}

fn wrong(e: serde_json::Error) -> Unreadable {
    Unreadable::Wrong(format!("its answer is no completion: {e}"))
}

fn finish_reason(text: Option<&str>) -> Result<FinishReason, Unreadable> {
    match text {
        Some("stop") => Ok(FinishReason::Stop),
        Some("length") => Ok(FinishReason::Length),
        other => Err(Unreadable::Broken(format!(
            "it ended a completion with `{}`",
            other.unwrap_or("null")
        ))),
    }
}

fn of_vllm(value: Value) -> Result<Answer, Unreadable> {
    #[derive(Deserialize)]
    struct Body {
        choices: Vec<Choice>,
    }
    #[derive(Deserialize)]
    struct Choice {
        token_ids: Option<Vec<u32>>,
        logprobs: Option<Logprobs>,
        finish_reason: Option<String>,
    }
    #[derive(Deserialize)]
    struct Logprobs {
        token_logprobs: Vec<f64>,
    }
    let body: Body = serde_json::from_value(value).map_err(wrong)?;
    let missing = |what: &str| Unreadable::Wrong(format!("its answer holds no {what}"));
    let mut choices = body.choices.into_iter();
    let choice = choices.next().ok_or_else(|| missing("completion"))?;
    let finish_reason = finish_reason(choice.finish_reason.as_deref())?;
    let logprobs = choice.logprobs.ok_or_else(|| missing("`logprobs`"))?;
    Ok(Answer {
        tokens: choice.token_ids.ok_or_else(|| missing("`token_ids`"))?,
        logprobs: logprobs.token_logprobs,
        finish_reason,
    })
}

fn of_sglang(value: Value) -> Result<Answer, Unreadable> {
    #[derive(Deserialize)]
    struct Body {
        meta_info: Meta,
    }
    #[derive(Deserialize)]
    struct Meta {
        finish_reason: Option<Reason>,
        /// Log-probability, token, and its text where that is asked for.
        output_token_logprobs: Vec<(f64, u32, Value)>,
    }
    #[derive(Deserialize)]
    struct Reason {
        r#type: String,
    }
    let body: Body = serde_json::from_value(value).map_err(wrong)?;
    let reason = body.meta_info.finish_reason.map(|reason| reason.r#type);
    let pairs = body.meta_info.output_token_logprobs;
    Ok(Answer {
        finish_reason: finish_reason(reason.as_deref())?,
        tokens: pairs.iter().map(|(_, token, _)| *token).collect(),
        logprobs: pairs.iter().map(|(logprob, ..)| *logprob).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: RemoteKind, value: Value) -> Result<Answer, Unreadable> {
        answer(kind, value.to_string().as_bytes())
    }

    #[test]
    fn both_say_the_same() {
        let vllm = json!({"id": "cmpl-1", "choices": [{
            "index": 0, "text": "ab", "token_ids": [5, 2], "finish_reason": "stop", "stop_reason": 2,
            "logprobs": {"token_logprobs": [-0.5, -1.25], "tokens": ["a", "b"], "top_logprobs": [{}, {}]},
        }]});
        let sglang = json!({"text": "a", "output_ids": [5, 2], "meta_info": {
            "finish_reason": {"type": "stop", "matched": 2},
            "output_token_logprobs": [[-0.5, 5, null], [-1.25, 2, "b"]],
        }});
        let expected = Answer {
            tokens: vec![5, 2],
            logprobs: vec![-0.5, -1.25],
            finish_reason: FinishReason::Stop,
        };
        assert_eq!(read(RemoteKind::Vllm, vllm).unwrap(), expected);
        assert_eq!(read(RemoteKind::Sglang, sglang).unwrap(), expected);
    }

    #[test]
    fn what_is_no_completion() {
        use RemoteKind::{Sglang, Vllm};
        use Unreadable::{Broken, Wrong};
        let choice = |choice: Value| json!({"choices": [choice]});
        let table = [
            (
                Vllm,
                json!({"choices": []}),
                Wrong("its answer holds no completion".into()),
            ),
            (
                Vllm,
                choice(json!({"finish_reason": "abort"})),
                Broken("it ended a completion with `abort`".into()),
            ),
            (
                Vllm,
                choice(json!({"finish_reason": "stop"})),
                Wrong("its answer holds no `logprobs`".into()),
            ),
            (
                Vllm,
                choice(json!({"finish_reason": "stop", "logprobs": {"token_logprobs": []}})),
                Wrong("its answer holds no `token_ids`".into()),
            ),
            (
                Vllm,
                choice(
                    json!({"finish_reason": "length", "token_ids": [1, 2], "logprobs": {"token_logprobs": [-1.0]}}),
                ),
                Wrong("its answer has 2 tokens and 1 log-probabilities".into()),
            ),
            (
                Vllm,
                choice(
                    json!({"finish_reason": "length", "token_ids": [1], "logprobs": {"token_logprobs": [7.5]}}),
                ),
                Wrong("7.5 is no log-probability".into()),
            ),
            (
                Sglang,
                json!({"meta_info": {"finish_reason": {"type": "abort"}, "output_token_logprobs": []}}),
                Broken("it ended a completion with `abort`".into()),
            ),
            (
                Sglang,
                json!({"meta_info": {}}),
                Wrong("its answer is no completion: missing field `output_token_logprobs`".into()),
            ),
        ];
        for (kind, value, expected) in table {
            assert_eq!(read(kind, value).unwrap_err(), expected);
        }
        let cut = answer(Vllm, b"{\"choices\": [").unwrap_err();
        assert!(matches!(cut, Broken(_)), "{cut:?}");
        let null = json!({"meta_info": {"finish_reason": {"type": "stop"}, "output_token_logprobs": [[null, 1, null]]}});
        assert!(matches!(read(Sglang, null), Err(Wrong(_))));
    }

    #[test]
    fn weights_that_were_not_read() {
        let told = |text: &str| reload_failure(text.as_bytes());
        assert_eq!(told(""), None);
        assert_eq!(told(r#"{"results": [null]}"#), None);
        assert_eq!(told(r#"{"success": true, "message": "done"}"#), None);
        assert_eq!(
            told(r#"{"success": false, "message": "no such file"}"#),
            Some("no such file".into())
        );
        assert_eq!(
            told(r#"{"success": false}"#),
            Some("without a reason".into())
        );
    }
}
