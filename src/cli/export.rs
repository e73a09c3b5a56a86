//! `distill export`: a model as one GGUF file, for llama.cpp and Ollama.

use super::options::show_size;
use super::{Session, stdout};
use crate::model::gguf_types::Quant;
use crate::pipeline::export::export_gguf;
use crate::pipeline::open::open_files;
use crate::progress::Reporter;
use crate::{Error, Result};
use serde_json::json;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Write a model as one GGUF file, for llama.cpp and Ollama
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  distill export --model runs/quickstart/sft/model --gguf quickstart.gguf
  distill export --model Qwen/Qwen2.5-Math-1.5B --gguf math-q4_k_m.gguf --quant q4_k_m
  llama-cli --model math-q4_k_m.gguf

Types: f32, f16, bf16, q8_0, q6_k, q5_k_m, q5_k_s, q5_1, q5_0, q4_k_m, q4_k_s, q4_1, q4_0, q3_k_l, q3_k_m, q3_k_s and
q2_k, each the mix of types that llama.cpp's own llama-quantize gives under that name. The file holds the tokenizer and
the chat template too. llama.cpp does not normalise text: what is not in NFC becomes other tokens there than here.")]
pub struct Args {
    /// Model: a card's name, a Hub repo `org/name[@revision]`, or a folder in the Hugging Face layout; an adapter is merged
    #[arg(long)]
    model: String,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    gguf: PathBuf,
    /// Type of the weights
    #[arg(long, default_value = "f16", value_name = "TYPE", value_parser = quant)]
    quant: Quant,
    /// Name of the model inside the file; by default that of the repository or folder
    #[arg(long)]
    name: Option<String>,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

fn quant(text: &str) -> std::result::Result<Quant, String> {
    let text = text.to_ascii_lowercase();
    Quant::ALL
        .into_iter()
        .find(|quant| quant.name() == text)
        .ok_or_else(|| format!("types: {}", Quant::ALL.map(Quant::name).join(", ")))
}

/// Refuses to put a file where something else is: a device, a pipe, a link, weights of another format.
fn check_target(path: &Path) -> Result<()> {
    let Ok(there) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    let is_gguf = || {
        let mut first = [0; 4];
        let file = std::fs::File::open(path);
        file.and_then(|mut file| file.read_exact(&mut first))
            .is_ok()
            && &first == b"GGUF"
    };
    if there.is_file() && (there.len() == 0 || is_gguf()) {
        return Ok(());
    }
    Err(Error::input(format!(
        "`{}` is there already and is no GGUF file",
        path.display()
    ))
    .with_hint("name a new file, or remove that one first"))
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    if args.gguf.is_dir() {
        let message = format!("`{}` is a folder", args.gguf.display());
        return Err(Error::input(message).with_hint(format!(
            "name the file that is to be written, such as `model-{}.gguf`",
            args.quant.name()
        )));
    }
    check_target(&args.gguf)?;
    let files = open_files(&args.model, &session.terminal)?;
    session.stop_on_signals()?;
    let written = export_gguf(
        &files,
        &args.gguf,
        args.quant,
        args.name.as_deref(),
        &session.terminal,
        &session.stop,
    )?;
    let types: Vec<String> = written
        .types
        .iter()
        .map(|(name, n)| format!("{n} {name}"))
        .collect();
    session.terminal.note(&format!(
        "{} tensors ({}), {}",
        written.num_tensors,
        types.join(", "),
        show_size(written.num_bytes)
    ));
    if args.json {
        let fallbacks: Vec<_> = written
            .fallbacks
            .iter()
            .map(|((meant, taken), n)| json!({"meant": meant, "taken": taken, "num_tensors": n}))
            .collect();
        return stdout::json(&json!({
            "file": args.gguf,
            "quant": args.quant.name(),
            "num_bytes": written.num_bytes,
            "num_tensors": written.num_tensors,
            "types": written.types,
            "fallbacks": fallbacks,
        }));
    }
    stdout::text(&format!("{}\n", args.gguf.display()))
}
