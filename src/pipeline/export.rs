//! A model as one GGUF file for llama.cpp and what is built on it (Ollama, LM Studio): weights, tokenizer, chat template
//! and how to sample from it. The format itself is in [`crate::model::gguf`].

use super::open::ModelFiles;
use crate::model::gguf::{self, Source, Value, Written};
use crate::model::gguf_tokenizer::Tokenizer;
use crate::model::gguf_types::Quant;
use crate::model::{Head, LoadOptions, ModelConfig};
use crate::progress::{Reporter, Stop};
use crate::tokenize::split::SplitRule;
use crate::tokenize::{Chat, TextTokenizer};
use crate::{Error, Result};
use candle_core::{DType, Device};
use serde::Deserialize;
use std::path::Path;

/// Tokens that llama.cpp takes for the end of an answer by their text, of those that our families have.
const KNOWN_ENDS: [&str; 6] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
];

/// Writes a model to `path`. `name` is `general.name`; by default that of the repository or folder.
///
/// # Errors
/// A model or tokenizer that llama.cpp has no file for, files that cannot be read or written, a stop.
pub fn export_gguf(
    files: &ModelFiles,
    path: &Path,
    quant: Quant,
    name: Option<&str>,
    reporter: &dyn Reporter,
    stop: &Stop,
) -> Result<Written> {
    let config = files.config()?;
    let mut settings = general(files, name);
    if config.head == Head::Vocabulary {
        settings.extend(tokenizer_settings(&files.chat, &config, reporter)?);
    }
    let task = reporter.task("export", None, "bytes");
    let mut progress = |done: u64, _: u64| {
        task.set_position(done);
        if stop.requested() {
            return Err(Error::Interrupted {
                message: format!("nothing was written to `{}`", path.display()),
            });
        }
        Ok(())
    };
    let merged = files.base.as_ref().map(|_| {
        files.load(&LoadOptions {
            device: Device::Cpu,
            dtype: DType::F32,
        })
    });
    let merged = merged.transpose()?;
    let source = match &merged {
        None => Source::Folder(&files.folder),
        Some(model) => Source::Model(model),
    };
    let written = gguf::write(path, &source, &config, quant, &settings, &mut progress)?;
    drop(task);
    for ((meant, taken), n) in &written.fallbacks {
        let tensors = match n {
            1 => "tensor is",
            _ => "tensors are",
        };
        reporter.warn(&format!(
            "{n} {tensors} {taken} in place of {meant}, whose blocks do not divide the rows"
        ));
    }
    Ok(written)
}

/// Where the model comes from, and how to sample from it.
fn general(files: &ModelFiles, name: Option<&str>) -> Vec<(String, Value)> {
    let text = |key: &str, text: String| (format!("general.{key}"), Value::Text(text));
    let mut all = vec![text(
        "name",
        name.map_or_else(|| default_name(files), str::to_string),
    )];
    if let Some((repo, commit)) = &files.repo {
        let commit = commit
            .as_ref()
            .map(|c| format!("/tree/{c}"))
            .unwrap_or_default();
        all.push(text(
            "source.repo_url",
            format!("https://huggingface.co/{repo}{commit}"),
        ));
    }
    let Some(generation) = &files.chat.tokenizer.files().generation_config else {
        return all;
    };
    if generation.get("do_sample").and_then(|v| v.as_bool()) == Some(false) {
        return all;
    }
    for (from, to) in [("temperature", "temp"), ("top_p", "top_p")] {
        if let Some(n) = generation.get(from).and_then(|v| v.as_f64()) {
            all.push((format!("general.sampling.{to}"), Value::F32(n as f32)));
        }
    }
    let top_k = generation.get("top_k").and_then(|v| v.as_i64());
    if let Some(n) = top_k.and_then(|n| i32::try_from(n).ok()) {
        all.push(("general.sampling.top_k".to_string(), Value::I32(n)));
    }
    all
}

/// The repository's name, else the folder's; of a stage of a run the run's and the stage's.
fn default_name(files: &ModelFiles) -> String {
    if let Some((repo, _)) = &files.repo {
        return repo.rsplit('/').next().unwrap_or(repo).to_string();
    }
    let folder = std::fs::canonicalize(&files.folder).unwrap_or_else(|_| files.folder.clone());
    let mut names = folder
        .iter()
        .rev()
        .map(|name| name.to_string_lossy().into_owned());
    let last = names.next().unwrap_or_default();
    match (last.as_str(), names.next(), names.next()) {
        ("model", Some(stage), Some(run)) => format!("{run}-{stage}"),
        _ => last,
    }
}

fn tokenizer_settings(
    chat: &Chat,
    config: &ModelConfig,
    reporter: &dyn Reporter,
) -> Result<Vec<(String, Value)>> {
    let tokenizer = &chat.tokenizer;
    let eos = tokenizer
        .special_id("eos_token")
        .or_else(|| chat.stop_ids().first().copied());
    let pad = tokenizer.special_id("pad_token");
    let of_config = config.raw.get("bos_token_id").and_then(|v| v.as_u64());
    let frame = Frame::of(tokenizer)?;
    // a file without one would be given token 11
    let bos = frame
        .bos
        .or_else(|| tokenizer.special_id("bos_token"))
        .or_else(|| of_config.and_then(|id| u32::try_from(id).ok()))
        .filter(|id| (*id as usize) < config.vocab_size)
        .or(pad)
        .or(eos);
    if frame.bos.is_some_and(|id| Some(id) != bos) || frame.eos.is_some_and(|id| Some(id) != eos) {
        reporter.warn("the tokenizer puts tokens around text that llama.cpp will not put there");
    }
    let eot = chat.end_of_turn().filter(|id| Some(*id) != eos);
    for &id in chat.stop_ids() {
        let text = tokenizer.id_to_token(id).unwrap_or_default();
        let is_known = Some(id) == eos || Some(id) == eot || KNOWN_ENDS.contains(&text.as_str());
        if !is_known {
            reporter.warn(&format!(
                "token `{text}` ends answers here, and GGUF has no place to say so"
            ));
        }
    }
    let template = chat.template().ok();
    Tokenizer {
        json: tokenizer.json(),
        pre: pre_tokenizer(tokenizer)?,
        vocab_size: config.vocab_size,
        bos,
        eos,
        eot,
        pad,
        add_bos: frame.bos.is_some() && frame.bos == bos,
        add_eos: frame.eos.is_some() && frame.eos == eos,
        chat_template: template.map(|t| t.source()),
    }
    .settings()
}

/// The special tokens that a tokenizer puts around text that stands alone.
struct Frame {
    bos: Option<u32>,
    eos: Option<u32>,
}

impl Frame {
    fn of(tokenizer: &TextTokenizer) -> Result<Self> {
        const TEXT: &str = "a";
        let (plain, whole) = (
            tokenizer.encode(TEXT)?,
            tokenizer.encode_with_special(TEXT)?,
        );
        let start = whole.windows(plain.len().max(1)).position(|w| w == plain);
        let (before, after) = match start {
            Some(start) => (&whole[..start], &whole[start + plain.len()..]),
            None => (&[][..], &[][..]),
        };
        Ok(Self {
            bos: before.first().copied(),
            eos: after.first().copied(),
        })
    }
}

/// llama.cpp's name of the rule that cuts text into words.
fn pre_tokenizer(tokenizer: &TextTokenizer) -> Result<&'static str> {
    #[derive(Deserialize)]
    struct File {
        model: Model,
    }
    #[derive(Deserialize)]
    struct Model {
        #[serde(default)]
        ignore_merges: bool,
    }
    let ignores_merges =
        serde_json::from_slice(tokenizer.json()).is_ok_and(|file: File| file.model.ignore_merges);
    match (tokenizer.split_rule(), ignores_merges) {
        (Some(SplitRule::Gpt2), false) => Ok("gpt-2"),
        (Some(SplitRule::Modern { max_digits: 1 }), false) => Ok("qwen2"),
        (Some(SplitRule::Modern { max_digits: 3 }), true) => Ok("llama-bpe"),
        // the same rule, but words are merged even where they are a token
        (Some(SplitRule::Modern { max_digits: 3 }), false) => Ok("smaug-bpe"),
        _ => Err(
            Error::input("the tokenizer cuts text in a way that GGUF has no name for")
                .with_hint("tokenizers of GPT-2, Qwen2, Qwen3 and Llama 3 can be written"),
        ),
    }
}
