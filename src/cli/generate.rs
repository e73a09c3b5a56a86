//! `distill generate`: samples answers to the prompts of a file. Rows that the output holds already are kept.

use super::Session;
use super::options::{ModelArgs, SamplingArgs};
use super::rows::{Row, Rows};
use crate::generate::{Completion, Engine, FinishReason, LocalEngine, Request, Sampling};
use crate::pipeline::folder::{read_json, write_json};
use crate::pipeline::open::{Opened, open_model};
use crate::progress::{Reporter, Stop, Task};
use crate::tokenize::Chat;
use crate::verify::format::opened_thinking;
use crate::{Error, Result};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
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

/// One answer, as the output holds it.
#[derive(Serialize)]
struct Generation {
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    finish_reason: FinishReason,
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    // what can be wrong with the call is said before a model is loaded
    args.sampling.resolve(&[])?;
    let rows = Rows::read_all(&args.input)?;
    let n = args.n as usize;
    let mut output = Output::open(&args.output)?;
    let num_kept = output.keep(&rows, n, &args.input)?;
    output.same_settings(num_kept, &settings(args)?)?;
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
        output: &mut Output,
        task: &dyn Task,
        stop: &Stop,
    ) -> Result<()> {
        let n = self.n;
        let limit = self.opened.model.config().max_position_embeddings;
        let mut requests = Vec::with_capacity(rows.len() * n);
        let mut openings = Vec::with_capacity(rows.len());
        for (i, row) in rows.iter().enumerate() {
            let (prompt, opening) = prompt(&self.opened.chat, row, self.place)?;
            openings.push(opening.map(|text| Value::from(text).to_string()));
            if prompt.is_empty() {
                return Err(row.error(self.place, "the prompt has no tokens"));
            }
            if prompt.len() >= limit {
                let what = format!(
                    "the prompt has {} tokens, and the model {limit} positions",
                    prompt.len()
                );
                return Err(row.error(self.place, &what));
            }
            // the number in the file, so that a resumed call draws what an uninterrupted one would have drawn
            let base = ((first + i) * n) as u64;
            requests.extend((0..n as u64).map(|k| Request {
                id: base + k,
                prompt: prompt.clone(),
            }));
        }
        let mut finished: BTreeMap<usize, Vec<Option<Generation>>> = BTreeMap::new();
        let mut next = 0;
        let mut on_done = |done: Completion| -> Result<()> {
            let number = done.id as usize - first * n;
            let answers = finished
                .entry(number / n)
                .or_insert_with(|| (0..n).map(|_| None).collect());
            answers[number % n] = Some(Generation {
                text: done.text,
                tokens: done.tokens,
                logprobs: done.logprobs,
                finish_reason: done.finish_reason,
            });
            task.advance(1);
            // rows leave in the order of the file; one that is not complete holds back those after it
            while let Some(entry) = finished.first_entry()
                && *entry.key() == next
                && entry.get().iter().all(Option::is_some)
            {
                let answers: Vec<Generation> = entry.remove().into_iter().flatten().collect();
                let json = serde_json::to_string(&answers).map_err(|e| {
                    rows[next].error(self.place, &format!("the answers cannot be written: {e}"))
                })?;
                let mut added = vec![("generations", json)];
                added.extend(openings[next].clone().map(|text| ("opening", text)));
                output.append(&rows[next].with(&added))?;
                next += 1;
            }
            Ok(())
        };
        engine
            .generate(&requests, &self.sampling, &mut on_done, stop)
            .map_err(|e| match e {
                Error::Interrupted { .. } => Error::Interrupted {
                    message: format!(
                        "{} rows are in `{}`; the same command goes on from there",
                        first + next,
                        output.path.display()
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

/// The output file, to which only whole lines are appended.
struct Output {
    path: PathBuf,
    file: File,
}

impl Output {
    /// Opens or creates the file; nobody else writes it until it is dropped.
    fn open(path: &Path) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| Error::io("opening", path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::input(format!(
                    "another `distill` is writing `{}`",
                    path.display()
                ))
                .with_hint("wait for it, or give another `--output`"));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("locking", path, e)),
        }
        Ok(Self {
            path: path.to_path_buf(),
            file,
        })
    }

    /// How many of `rows` the file holds already, checked against them. A half-written last line is cut off.
    fn keep(&mut self, rows: &[Row], n: usize, input: &Path) -> Result<usize> {
        let io = |e| Error::io("reading", &self.path, e);
        // a device or a pipe holds nothing
        if !self.file.metadata().map_err(io)?.is_file() {
            return Ok(0);
        }
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes).map_err(io)?;
        let mut good = 0;
        let mut num_kept = 0;
        for (i, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
            let is_last = good + line.len() == bytes.len();
            let parsed = Row::parse(line, i + 1, &self.path);
            let old = match parsed {
                Err(_) if is_last => break,
                Ok(_) if !line.ends_with(b"\n") => break,
                parsed => parsed?,
            };
            let error = |what: String| {
                Err(old.error(&self.path, &what).with_hint(
                    "give another `--output`, or delete that file to sample all rows again",
                ))
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
            good += line.len();
            num_kept += 1;
        }
        let io = |e| Error::io("writing", &self.path, e);
        if good < bytes.len() {
            self.file.set_len(good as u64).map_err(io)?;
        }
        self.file.seek(SeekFrom::Start(good as u64)).map_err(io)?;
        Ok(num_kept)
    }

    /// Refuses to go on with another model or other sampling than the rows kept were made with; beside `answers.jsonl`
    /// stands `.answers.jsonl.settings`.
    fn same_settings(&self, num_kept: usize, settings: &Value) -> Result<()> {
        let is_file = |m: std::fs::Metadata| m.is_file();
        let name = self.path.file_name().map(|name| name.to_string_lossy());
        let (Some(name), true) = (name, self.file.metadata().is_ok_and(is_file)) else {
            return Ok(());
        };
        let place = self.path.with_file_name(format!(".{name}.settings"));
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
                self.path.display(),
                earlier[what],
                now[what]
            ))
            .with_hint("give another `--output`, or delete that file to sample all rows again"));
        }
        write_json(&place, settings)
    }

    fn append(&mut self, line: &str) -> Result<()> {
        let line = format!("{line}\n");
        self.file
            .write_all(line.as_bytes())
            .map_err(|e| Error::io("writing", &self.path, e))
    }

    fn finish(&self) -> Result<()> {
        match self.file.metadata() {
            Ok(m) if m.is_file() => self
                .file
                .sync_all()
                .map_err(|e| Error::io("writing", &self.path, e)),
            _ => Ok(()),
        }
    }
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
        let kept = Output::open(&path).unwrap().keep(&rows, 1, &input);
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
        let _first = Output::open(&path).unwrap();
        let e = Output::open(&path).err().unwrap().to_string();
        assert!(e.starts_with("another `distill` is writing"), "{e}");
    }
}
