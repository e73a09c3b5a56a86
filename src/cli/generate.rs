//! `distill generate`: samples answers to the prompts of a file. Rows that the output holds already are kept.

use super::Session;
use super::options::{ModelArgs, SamplingArgs};
use super::rows::{Row, Rows};
use crate::generate::row_log::{Asked, Generation, RowLog, check_length, sample_in_order};
use crate::generate::{Engine, LocalEngine, Sampling};
use crate::pipeline::folder::{read_json, write_json};
use crate::pipeline::open::{Opened, open_model};
use crate::progress::{Reporter, Stop, Task};
use crate::tokenize::Chat;
use crate::verify::format::opened_thinking;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Rows whose prompts are tokens at the same time. Between two such chunks the batch runs empty once.
const CHUNK: usize = 4096;

/// Sample answers to the prompts of a JSON lines file
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  distill generate --model runs/quickstart/sft/model --input prompts.jsonl --output answers.jsonl --n 4

Input rows are {\"prompt\": \"...\"} (continued as it stands) or {\"messages\": [{\"role\", \"content\"}]} (through the chat
template). Output rows are the input rows with
  \"generations\": [{\"text\", \"tokens\", \"logprobs\", \"finish_reason\": \"stop\" | \"length\"}], and \"opening\", such as \"<think>\\n\",
where the template began the answer
in the same order. Called again, rows that the output holds already are kept and not sampled again.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompts, JSON lines
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where the rows with their answers go, JSON lines
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Answers a prompt
    #[arg(long, short, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    n: u32,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Answers that are sampled side by side
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    // what can be wrong with the call is said before a model is loaded
    args.sampling.resolve(&[])?;
    let rows = Rows::read_all(&args.input)?;
    let n = args.n as usize;
    let mut output = RowLog::open(&args.output)?;
    let num_kept = keep(&mut output, &rows, n, &args.input)?;
    same_settings(&output, num_kept, &settings(args)?)?;
    let reporter = &session.terminal;
    if num_kept > 0 {
        let text = format!(
            "{num_kept} of {} rows are in `{}` already",
            rows.len(),
            args.output.display()
        );
        reporter.note(&text);
    }
    if num_kept < rows.len() {
        let place = &args.model;
        let opened = open_model(&place.model, &place.device, place.dtype, reporter)?;
        let job = Job {
            opened: &opened,
            sampling: args.sampling.resolve(opened.chat.stop_ids())?,
            place: &args.input,
            n,
        };
        session.stop_on_signals()?;
        let task = reporter.task("generate", Some((rows.len() * n) as u64), "answers");
        task.set_position((num_kept * n) as u64);
        let mut engine = LocalEngine::new(
            &opened.model,
            &opened.chat.tokenizer,
            args.batch_size as usize,
        );
        let mut first = num_kept;
        for chunk in rows[num_kept..].chunks(CHUNK) {
            job.sample(
                chunk,
                first,
                &mut engine,
                &mut output,
                &*task,
                &session.stop,
            )?;
            first += chunk.len();
        }
    }
    output.finish()
}

/// What the answers depend on, as given.
fn settings(args: &Args) -> Result<Value> {
    let place = &args.model;
    let model = std::fs::canonicalize(&place.model)
        .map_or_else(|_| place.model.clone(), |path| path.display().to_string());
    Ok(json!({"model": model, "dtype": place.dtype, "sampling": args.sampling.resolve(&[])?}))
}

/// What is the same for all rows.
struct Job<'a> {
    opened: &'a Opened,
    sampling: Sampling,
    place: &'a Path,
    n: usize,
}

impl Job<'_> {
    /// Samples for `rows`, the first of which is number `first` of the file, and writes them in order.
    fn sample(
        &self,
        rows: &[Row],
        first: usize,
        engine: &mut dyn Engine,
        output: &mut RowLog,
        task: &dyn Task,
        stop: &Stop,
    ) -> Result<()> {
        let limit = self.opened.model.config().max_position_embeddings;
        let mut prompts = Vec::with_capacity(rows.len());
        let mut openings = Vec::with_capacity(rows.len());
        for row in rows {
            let (prompt, opening) = prompt(&self.opened.chat, row, self.place)?;
            check_length(prompt.len(), limit).map_err(|e| row.error(self.place, &e))?;
            prompts.push(prompt);
            openings.push(opening.map(|text| Value::from(text).to_string()));
        }
        let mut num_written = 0;
        let path = output.path().to_path_buf();
        let mut on_row = |i: usize, answers: Vec<Generation>| -> Result<()> {
            let json = serde_json::to_string(&answers).map_err(|e| {
                rows[i].error(self.place, &format!("the answers cannot be written: {e}"))
            })?;
            let mut added = vec![("generations", json)];
            added.extend(openings[i].clone().map(|text| ("opening", text)));
            output.append(&rows[i].with(&added))?;
            num_written = i + 1;
            Ok(())
        };
        sample_in_order(
            engine,
            Asked {
                prompts,
                first,
                n: self.n,
                sampling: &self.sampling,
                keep_sampled: false,
            },
            &mut || task.advance(1),
            &mut on_row,
            stop,
        )
        .map_err(|e| match e {
            Error::Interrupted { .. } => Error::Interrupted {
                message: format!(
                    "{} rows are in `{}`; the same command goes on from there",
                    first + num_written,
                    path.display()
                ),
            },
            other => other,
        })
    }
}

/// The tokens that an answer to `row` starts from, and what of the answer the template wrote already.
fn prompt(chat: &Chat, row: &Row, place: &Path) -> Result<(Vec<u32>, Option<String>)> {
    if let Some(messages) = row.messages(place)? {
        let rendered = || -> Result<_> {
            let text = chat.prompt_text(&messages)?;
            let opening = opened_thinking(&text).map(String::from);
            Ok((chat.prompt(&messages)?, opening))
        };
        return rendered().map_err(|e| e.at(format!("`{}` line {}", place.display(), row.line)));
    }
    match row.get::<String>("prompt", place)? {
        Some(text) => Ok((chat.tokenizer.encode_with_special(&text)?, None)),
        None => Err(row.no_field_of("`prompt` or `messages`", place).with_hint(
            "rows are {\"prompt\": \"...\"} or {\"messages\": [{\"role\": ..., \"content\": ...}]}",
        )),
    }
}

/// How many of `rows` the output holds already, checked against them.
fn keep(output: &mut RowLog, rows: &[Row], n: usize, input: &Path) -> Result<usize> {
    let place = output.path().to_path_buf();
    let accept = |num_kept: usize, old: Row| -> Result<()> {
        let error = |what: String| {
            Err(old
                .error(&place, &what)
                .with_hint("give another `--output`, or delete that file to sample all rows again"))
        };
        let Some(new) = rows.get(num_kept) else {
            return error(format!(
                "`{}` has only {} rows",
                input.display(),
                rows.len()
            ));
        };
        let is_same = new
            .fields
            .iter()
            .all(|(name, value)| name == "generations" || old.fields.get(name) == Some(value));
        if !is_same {
            return error(format!(
                "not the row of `{}` line {}",
                input.display(),
                new.line
            ));
        }
        let found = old
            .fields
            .get("generations")
            .and_then(|g| g.as_array())
            .map_or(0, Vec::len);
        if found != n {
            return error(format!("{found} generations where `--n` says {n}"));
        }
        Ok(())
    };
    output.keep(|line, number| Row::parse(line, number, &place), accept)
}

/// Refuses to go on with another model or other sampling than the rows kept were made with; beside `answers.jsonl` stands
/// `.answers.jsonl.settings`.
fn same_settings(output: &RowLog, num_kept: usize, settings: &Value) -> Result<()> {
    let path = output.path();
    let name = path.file_name().map(|name| name.to_string_lossy());
    let (Some(name), true) = (name, output.is_file()) else {
        return Ok(());
    };
    let place = path.with_file_name(format!(".{name}.settings"));
    if num_kept > 0 && place.exists() {
        let earlier: Value = read_json(&place)?;
        // numbers as they read back from a file
        let now = serde_json::from_str(&settings.to_string()).unwrap_or(Value::Null);
        if earlier == now {
            return Ok(());
        }
        let what = ["model", "dtype", "sampling"]
            .into_iter()
            .find(|key| earlier[*key] != now[*key])
            .unwrap_or("settings");
        return Err(Error::input(format!(
            "`{}` holds answers of another `{what}`: {}, now {}",
            path.display(),
            earlier[what],
            now[what]
        ))
        .with_hint("give another `--output`, or delete that file to sample all rows again"));
    }
    write_json(&place, settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(output: &str) -> (Result<usize>, String) {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("p.jsonl");
        std::fs::write(&input, "{\"prompt\":\"a\"}\n{\"prompt\":\"b\"}\n").unwrap();
        let rows = Rows::read_all(&input).unwrap();
        let path = dir.path().join("o.jsonl");
        std::fs::write(&path, output).unwrap();
        let kept = super::keep(&mut RowLog::open(&path).unwrap(), &rows, 1, &input);
        let kept =
            kept.map_err(|e| Error::input(e.to_string().replace(dir.path().to_str().unwrap(), "")));
        (kept, std::fs::read_to_string(&path).unwrap())
    }

    #[test]
    fn whole_lines_are_kept_and_half_ones_cut_off() {
        let whole = "{\"prompt\":\"a\",\"generations\":[{}]}\n";
        for (output, num_kept, rest) in [
            ("", 0, ""),
            (whole, 1, whole),
            ("{\"prompt\":\"a\",\"gener", 0, ""),
            ("{\"prompt\":\"a\",\"generations\":[{}]}", 0, ""),
            (
                "{\"prompt\":\"a\",\"generations\":[{}]}\n{\"prompt\":\"b",
                1,
                whole,
            ),
            (
                "{\"prompt\":\"a\",\"generations\":[{}]}\n\0\0\0\n",
                1,
                whole,
            ),
        ] {
            let (kept, left) = keep(output);
            assert_eq!((kept.unwrap(), left.as_str()), (num_kept, rest), "{output}");
        }
    }

    #[test]
    fn an_output_of_something_else_is_refused() {
        let first = "{\"prompt\":\"a\",\"generations\":[{}]}\n";
        let second = "{\"prompt\":\"b\",\"generations\":[{}]}\n";
        for (output, want) in [
            (
                second.to_string(),
                "`/o.jsonl` line 1: not the row of `/p.jsonl` line 1",
            ),
            (
                "{\"prompt\":\"a\",\"generations\":[{},{}]}\n".to_string(),
                "`/o.jsonl` line 1: 2 generations where `--n` says 1",
            ),
            (
                format!("{first}{second}{first}"),
                "`/o.jsonl` line 3: `/p.jsonl` has only 2 rows",
            ),
            (
                format!("{first}nonsense\n{second}"),
                "`/o.jsonl` line 2 column 2: expected ident",
            ),
        ] {
            let (kept, left) = keep(&output);
            assert_eq!(kept.unwrap_err().to_string(), want);
            assert_eq!(left, output);
        }
    }

    #[test]
    fn one_writer_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o.jsonl");
        let _first = RowLog::open(&path).unwrap();
        let e = RowLog::open(&path).err().unwrap().to_string();
        assert!(e.starts_with("another `distill` is writing"), "{e}");
    }
}
