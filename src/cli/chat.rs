//! `distill chat`: a conversation with a model, line by line.

use super::color::Color;
use super::options::{ModelArgs, SamplingArgs};
use super::{Session, stdout};
use crate::generate::{Completion, Engine, FinishReason, LocalEngine, Request, Sampling};
use crate::pipeline::open::{Opened, open_model};
use crate::progress::Reporter;
use crate::tokenize::Message;
use crate::{Error, Result};
use std::io::{BufRead, IsTerminal, Write};

const HELP: &str = "one line is one message; /new starts over, /exit or Ctrl-D ends";

/// Talk to a model
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  distill chat --model runs/quickstart/sft/model --temperature 0

One line is one message; /new starts over, /exit or Ctrl-D ends. Without a terminal every line of stdin is a message of
one conversation, and only the answers go to stdout.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    args.sampling.resolve(&[])?;
    let place = &args.model;
    let opened = open_model(&place.model, &place.device, place.dtype, &session.terminal)?;
    let sampling = args.sampling.resolve(opened.chat.stop_ids())?;
    let is_interactive = std::io::stdin().is_terminal();
    if is_interactive {
        session.terminal.note(HELP);
    }
    let color = Color::stdout();
    let system: Vec<Message> = args
        .system
        .iter()
        .map(|text| Message::new("system", text))
        .collect();
    let mut messages = system.clone();
    let mut num_turns = 0;
    for line in (Lines { is_interactive }) {
        let line = line?;
        match line.trim() {
            "" => continue,
            "/exit" | "/quit" => break,
            "/new" => {
                messages.clone_from(&system);
                continue;
            }
            text => messages.push(Message::new("user", text)),
        }
        let answer = answer(&opened, &messages, &sampling, num_turns, session)?;
        num_turns += 1;
        stdout::text(&format!("{}\n", show(&answer.text, color)))?;
        if answer.finish_reason == FinishReason::Length {
            session
                .terminal
                .warn("cut off at `--max-new-tokens`, or at the last position of the model");
        }
        messages.push(Message::new("assistant", answer.text));
    }
    Ok(())
}

/// The model's next turn; it begins with `<think>` where the template has opened the thinking.
fn answer(
    opened: &Opened,
    messages: &[Message],
    sampling: &Sampling,
    id: u64,
    session: &Session,
) -> Result<Completion> {
    let chat = &opened.chat;
    let prompt_text = chat.prompt_text(messages)?;
    let prompt = chat.tokenizer.encode(&prompt_text)?;
    let limit = opened.model.config().max_position_embeddings;
    if prompt.len() >= limit {
        return Err(Error::input(format!(
            "the conversation has {} tokens, and the model {limit} positions",
            prompt.len()
        ))
        .with_hint("`/new` starts over"));
    }
    let request = Request { id, prompt };
    let mut answer = None;
    let mut on_done = |done| {
        answer = Some(done);
        Ok(())
    };
    LocalEngine::new(&opened.model, &chat.tokenizer, 1).generate(
        &[request],
        sampling,
        &mut on_done,
        &session.stop,
    )?;
    let mut answer = answer.ok_or_else(|| Error::input("the model gave no answer"))?;
    if prompt_text.trim_end().ends_with("<think>") {
        answer.text.insert_str(0, "<think>\n");
    }
    Ok(answer)
}

/// An answer with its thinking dimmed.
fn show(text: &str, color: Color) -> String {
    match text.split_once("</think>") {
        Some((thinking, rest)) => format!(
            "{}{}",
            color.dim(&format!("{thinking}</think>")),
            rest.trim_end()
        ),
        None => text.trim_end().to_string(),
    }
}

/// The lines of stdin, asked for with a `> ` where somebody types them.
struct Lines {
    is_interactive: bool,
}

impl Iterator for Lines {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        if self.is_interactive {
            // no result: it belongs to the dialogue
            let _ = write!(std::io::stderr(), "> ");
        }
        let mut line = String::new();
        match std::io::stdin().lock().read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(Ok(line)),
            Err(e) => Some(Err(Error::io("reading", "stdin", e))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinking_is_dimmed() {
        let text = "<think>\na</think>\n\nb\n";
        assert_eq!(show(text, Color::never()), "<think>\na</think>\n\nb");
        assert_eq!(
            show(text, Color::always()),
            "\x1b[2m<think>\na</think>\x1b[0m\n\nb"
        );
        assert_eq!(show("b\n", Color::always()), "b");
    }
}
