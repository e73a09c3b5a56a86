//! `distill score`: the log-probability of every token of given text.

use super::Session;
use super::options::ModelArgs;
use super::rows::{Beside, Row, Rows};
use crate::generate::score::{perplexity, score};
use crate::pipeline::open::{Opened, open_model};
use crate::progress::Reporter;
use crate::tokenize::TrainOn;
use crate::{Error, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Rows are read by the model together up to this many tokens.
const MAX_TOKENS: usize = 4096;

/// Log-probability of every token of given text, and its perplexity
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  distill score --model runs/quickstart/sft/model --input rows.jsonl --output scores.jsonl

Input rows are {\"text\": \"...\"}, {\"messages\": [{\"role\", \"content\"}]} or {\"tokens\": [...]}. Output rows are the input
rows with \"tokens\", \"logprobs\" (one a token, the first null, natural logarithm), for messages \"trained\" (what
fine-tuning would train on), and \"perplexity\" (over all tokens but the first), in the same order.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What is scored, JSON lines
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where the rows with their log-probabilities go, JSON lines
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Which turns of `messages` count as trained: the last assistant turn, or all of them
    #[arg(long, default_value = "last", value_parser = ["last", "all"])]
    train_on: String,
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    let reporter = &session.terminal;
    let rows = Rows::read_all(&args.input)?;
    let place = &args.model;
    let opened = open_model(&place.model, &place.device, place.dtype, reporter)?;
    let train_on = match args.train_on.as_str() {
        "all" => TrainOn::AllAssistant,
        _ => TrainOn::LastAssistant,
    };
    session.stop_on_signals()?;
    let mut output = Beside::create(&args.output)?;
    let task = reporter.task("score", Some(rows.len() as u64), "rows");
    let mut window: Vec<Input> = Vec::new();
    let mut num_tokens = 0;
    for row in &rows {
        if session.stop.requested() {
            return Err(Error::Interrupted {
                message: format!("nothing was written to `{}`", args.output.display()),
            });
        }
        let input = Input::new(row, &opened, train_on, &args.input)?;
        if num_tokens + input.tokens.len() > MAX_TOKENS && !window.is_empty() {
            write(&window, &opened, &args.input, &mut output)?;
            task.advance(window.len() as u64);
            window.clear();
            num_tokens = 0;
        }
        num_tokens += input.tokens.len();
        window.push(input);
    }
    write(&window, &opened, &args.input, &mut output)?;
    task.advance(window.len() as u64);
    output.finish()
}

/// A row as tokens.
struct Input<'a> {
    row: &'a Row,
    tokens: Vec<u32>,
    /// For messages only.
    trained: Option<Vec<bool>>,
}

impl<'a> Input<'a> {
    fn new(row: &'a Row, opened: &Opened, train_on: TrainOn, place: &Path) -> Result<Self> {
        let at = |e: Error| e.at(format!("`{}` line {}", place.display(), row.line));
        let chat = &opened.chat;
        let (tokens, trained) = if let Some(tokens) = row.get::<Vec<u32>>("tokens", place)? {
            (tokens, None)
        } else if let Some(messages) = row.messages(place)? {
            let tokenized = chat.tokenize(&messages, train_on).map_err(at)?;
            (tokenized.tokens, Some(tokenized.trained))
        } else if let Some(text) = row.get::<String>("text", place)? {
            (chat.tokenizer.encode_with_special(&text).map_err(at)?, None)
        } else {
            return Err(row
                .no_field_of("`text`, `messages` or `tokens`", place)
                .with_hint(
                    "rows are {\"text\": \"...\"}, {\"messages\": [...]} or {\"tokens\": [...]}",
                ));
        };
        Ok(Self {
            row,
            tokens,
            trained,
        })
    }
}

/// Scores the rows of a window together and writes them.
fn write(window: &[Input], opened: &Opened, place: &Path, output: &mut Beside) -> Result<()> {
    let tokens: Vec<&[u32]> = window.iter().map(|i| i.tokens.as_slice()).collect();
    let scores = match score(&opened.model, &tokens) {
        Ok(scores) => scores,
        // which row it was is only known one by one
        Err(all) => {
            for input in window {
                score(&opened.model, &[&input.tokens])
                    .map_err(|e| e.at(format!("`{}` line {}", place.display(), input.row.line)))?;
            }
            return Err(all);
        }
    };
    for (input, logprobs) in window.iter().zip(&scores) {
        let mut added = vec![
            ("tokens", json(&input.tokens)?),
            ("logprobs", json(logprobs)?),
        ];
        if let Some(trained) = &input.trained {
            added.push(("trained", json(trained)?));
        }
        added.push(("perplexity", json(&perplexity(logprobs))?));
        output.line(&input.row.with(&added))?;
    }
    Ok(())
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::input(format!("a score cannot be written as JSON: {e}")))
}
