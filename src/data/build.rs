//! Traces to the token store: read by one thread, tokenised by all, written in order. Rows are dropped here for what only
//! their tokens or the rows before them show (too long, untrainable, enough of this problem); every one is counted.

use super::report::{BuildReport, DropLog, SourceReport};
use super::source::{self, Item};
use super::store::{Store, Writer};
use super::{Trace, builtin};
use crate::progress::{Reporter, Stop};
use crate::recipe::{OnBad, OverLength, Traces, TrainOn};
use crate::tokenize::{self, Chat, Message};
use crate::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Changes whenever the same rows would give another store.
const VERSION: u32 = 3;
/// A batch is full at so many traces or so many bytes of text, whichever comes first.
const BATCH_TRACES: usize = 512;
const BATCH_BYTES: usize = 4 << 20;
/// Batches that are read ahead.
const NUM_AHEAD: usize = 2;

/// One `[[traces]]` with the local files it stands for; a built-in source has none.
#[derive(Clone, Debug)]
pub struct TraceSource {
    pub spec: Traces,
    pub files: Vec<PathBuf>,
    /// Commit of a Hub data set.
    pub revision: Option<String>,
}

/// How traces become rows.
#[derive(Clone, Debug, Serialize)]
pub struct BuildOptions {
    /// Longest row in tokens.
    pub max_length: usize,
    pub over_length: OverLength,
    /// What a row without a trained token or without an end does.
    pub on_untrainable: OnBad,
    pub train_on: TrainOn,
    /// For built-in sources.
    pub seed: u64,
}

/// A trace after its tokens are known.
enum Prepared {
    Row {
        name: String,
        tokens: Vec<u32>,
        trained: Vec<bool>,
        problem: u64,
        correct: Option<bool>,
        truncated: bool,
        joint_differs: bool,
    },
    Dropped {
        name: String,
        reason: String,
        correct: Option<bool>,
    },
}

impl Store {
    /// The store in `dir` where it was made of just this, else a new one.
    ///
    /// # Errors
    /// A file or row that cannot be read where the recipe does not drop it, a row over length where that is an error, no
    /// row left, a full disk, or the user's wish to stop.
    pub fn build(
        options: &BuildOptions,
        sources: &[TraceSource],
        chat: &Chat,
        dir: &Path,
        reporter: &dyn Reporter,
        stop: &Stop,
    ) -> Result<(Store, BuildReport)> {
        let key = key(options, sources, chat, stop)?;
        if let Ok(store) = Store::open(dir)
            && store.key() == key
        {
            let report = store.report().clone();
            return Ok((store, report));
        }
        let mut build = Build {
            options,
            writer: Writer::create(dir)?,
            dropped: DropLog::create(dir)?,
            report: BuildReport::default(),
            lengths: Vec::new(),
        };
        let task = reporter.task("tokenising", None, "rows");
        let done = sources.iter().try_for_each(|source| {
            build.source(source, chat, stop, &|num_rows| task.advance(num_rows))
        });
        match done.and_then(|()| build.check_some_left()) {
            Ok(()) => {
                build.report.finish(&build.lengths);
                // first, so that a store never stands without it
                build.dropped.finish()?;
                let store = build.writer.finish(&key, &build.report)?;
                Ok((store, build.report))
            }
            Err(error) => {
                build.dropped.discard();
                build.writer.discard();
                Err(error)
            }
        }
    }
}

struct Build<'a> {
    options: &'a BuildOptions,
    writer: Writer,
    dropped: DropLog,
    report: BuildReport,
    /// Number of kept rows by their length.
    lengths: Vec<u64>,
}

impl Build<'_> {
    fn source(
        &mut self,
        source: &TraceSource,
        chat: &Chat,
        stop: &Stop,
        advance: &dyn Fn(u64),
    ) -> Result<()> {
        self.report.sources.push(SourceReport {
            name: source.spec.source.clone(),
            revision: source.revision.clone(),
            ..SourceReport::default()
        });
        let items = source::open(&source.spec, &source.files, self.options.seed)?;
        let options = self.options;
        std::thread::scope(|scope| {
            let (sender, batches) = sync_channel(NUM_AHEAD);
            scope.spawn(move || read_ahead(items, &sender));
            // dropped on every way out, which ends the reader
            self.batches(batches, &source.spec, stop, advance, &|item| {
                prepare(item, chat, options)
            })
        })
    }

    fn batches(
        &mut self,
        batches: Receiver<Result<Vec<Item>>>,
        spec: &Traces,
        stop: &Stop,
        advance: &dyn Fn(u64),
        prepare: &(dyn Fn(Item) -> Result<Prepared> + Sync),
    ) -> Result<()> {
        let mut of_problem: HashMap<u64, usize> = HashMap::new();
        let mut kept = 0;
        let reached = |kept: usize| spec.limit.is_some_and(|limit| kept >= limit);
        for batch in batches {
            if stop.requested() {
                return Err(Error::Interrupted {
                    message: "while traces were tokenised; the next run begins with them again"
                        .into(),
                });
            }
            let batch = batch?;
            let num_rows = batch.len() as u64;
            let prepared: Vec<Result<Prepared>> = batch.into_par_iter().map(prepare).collect();
            for row in prepared {
                if !reached(kept) {
                    kept += usize::from(self.add(row?, spec, &mut of_problem)?);
                }
            }
            // before the next batch: what stands behind the limit cannot fail
            if reached(kept) {
                if let Some(source) = self.report.sources.last_mut() {
                    source.limit_reached = true;
                }
                return Ok(());
            }
            advance(num_rows);
        }
        Ok(())
    }

    /// Writes or counts a row; whether it was written.
    fn add(
        &mut self,
        row: Prepared,
        spec: &Traces,
        of_problem: &mut HashMap<u64, usize>,
    ) -> Result<bool> {
        let (name, tokens, trained, problem, truncated, joint_differs) = match row {
            Prepared::Dropped {
                name,
                reason,
                correct,
            } => {
                self.report.count_verdict(correct);
                self.dropped.write(&spec.source, &name, &reason)?;
                self.report.drop_row(&reason, name);
                return Ok(false);
            }
            Prepared::Row {
                name,
                tokens,
                trained,
                problem,
                correct,
                truncated,
                joint_differs,
            } => {
                self.report.count_verdict(correct);
                (name, tokens, trained, problem, truncated, joint_differs)
            }
        };
        if let Some(most) = spec.max_per_problem {
            let used = of_problem.entry(problem).or_default();
            if *used >= most {
                let reason = format!("more than {most} traces of its problem");
                self.dropped.write(&spec.source, &name, &reason)?;
                self.report.drop_row(&reason, name);
                return Ok(false);
            }
            *used += 1;
        }
        self.writer.push(&tokens, &trained, &name)?;
        self.report.truncated += u64::from(truncated);
        self.report.joint_differs += u64::from(joint_differs);
        let num_trained = trained.iter().filter(|&&t| t).count();
        self.report
            .keep_row(tokens.len() as u64, num_trained as u64);
        if self.lengths.len() <= tokens.len() {
            self.lengths.resize(tokens.len() + 1, 0);
        }
        self.lengths[tokens.len()] += 1;
        Ok(true)
    }

    fn check_some_left(&self) -> Result<()> {
        if self.report.kept > 0 {
            // a label file of other rows, say
            let empty = self.report.sources.iter().find(|source| source.kept == 0);
            return match empty {
                None => Ok(()),
                Some(source) if source.dropped == 0 => {
                    Err(Error::input(format!("`{}` holds no row", source.name)))
                }
                Some(source) => Err(Error::input(format!(
                    "no row of `{}` is left to train on; of all sources: {}",
                    source.name,
                    self.report.reasons()
                ))
                .with_hint("mend it, or take it out of `[[traces]]`")),
            };
        }
        if self.report.num_dropped() == 0 {
            return Err(Error::input("the traces hold no row"));
        }
        let error = Error::input(format!(
            "no row is left to train on: {}",
            self.report.reasons()
        ));
        let too_long = over_length(self.options.max_length);
        Err(
            if self.report.dropped.iter().all(|d| d.reason == too_long) {
                error.with_hint(
                    "raise `max_length`, or cut the rows with `over_length = \"truncate\"`",
                )
            } else {
                error.with_hint("see why with `distill preview`")
            },
        )
    }
}

/// Reads batches until the source or the receiver ends.
fn read_ahead(items: impl Iterator<Item = Result<Item>>, sender: &SyncSender<Result<Vec<Item>>>) {
    let mut batch = Vec::new();
    let mut num_bytes = 0;
    for item in items {
        match item {
            Ok(item) => {
                if let Item::Trace(trace) = &item {
                    num_bytes += text_bytes(trace);
                }
                batch.push(item);
            }
            Err(error) => {
                // rows before it come first, so that what is reported does not depend on batches
                let _ = sender.send(Ok(std::mem::take(&mut batch)));
                let _ = sender.send(Err(error));
                return;
            }
        }
        if batch.len() >= BATCH_TRACES || num_bytes >= BATCH_BYTES {
            num_bytes = 0;
            if sender.send(Ok(std::mem::take(&mut batch))).is_err() {
                return;
            }
        }
    }
    if !batch.is_empty() {
        // nobody listens after the last row that is used
        let _ = sender.send(Ok(batch));
    }
}

fn text_bytes(trace: &Trace) -> usize {
    let one_turn = [&trace.reasoning, &trace.answer];
    let turns = trace.messages.iter().flatten();
    trace.problem.len()
        + one_turn
            .into_iter()
            .flatten()
            .map(String::len)
            .sum::<usize>()
        + turns.map(|m| m.content.len()).sum::<usize>()
}

fn prepare(item: Item, chat: &Chat, options: &BuildOptions) -> Result<Prepared> {
    let trace = match item {
        Item::Trace(trace) => trace,
        Item::Dropped {
            name,
            reason,
            correct,
        } => {
            return Ok(Prepared::Dropped {
                name,
                reason,
                correct,
            });
        }
    };
    let correct = trace.correct();
    let dropped = |reason: String| Prepared::Dropped {
        name: trace.name.clone(),
        reason,
        correct,
    };
    let whose = match options.train_on {
        TrainOn::Last => tokenize::TrainOn::LastAssistant,
        TrainOn::All => tokenize::TrainOn::AllAssistant,
    };
    let row = match chat.tokenize(&trace.messages(), whose) {
        Ok(row) => row,
        Err(error) if options.on_untrainable == OnBad::Error => {
            let hint = error.hint().unwrap_or_else(|| {
                "`on_untrainable = \"drop\"` in `[sft]` leaves such rows out".into()
            });
            return Err(error.at(format!("`{}`", trace.name)).with_hint(hint));
        }
        Err(error) => return Ok(dropped(error.to_string())),
    };
    let (mut tokens, mut trained) = (row.tokens, row.trained);
    let truncated = tokens.len() > options.max_length;
    if truncated {
        match options.over_length {
            OverLength::Drop => return Ok(dropped(over_length(options.max_length))),
            OverLength::Error => {
                return Err(Error::input(format!(
                    "`{}`: {} tokens, over `max_length = {}`",
                    trace.name,
                    tokens.len(),
                    options.max_length
                ))
                .with_hint(
                    "raise `max_length`, or leave such rows out with `over_length = \"drop\"`",
                ));
            }
            OverLength::Truncate => {
                tokens.truncate(options.max_length);
                trained.truncate(options.max_length);
            }
        }
    }
    // the first token of a row is never predicted
    if !trained.iter().skip(1).any(|&t| t) {
        let reason = "no trained token within `max_length`";
        if options.on_untrainable == OnBad::Error {
            return Err(Error::input(format!("`{}`: {reason}", trace.name)));
        }
        return Ok(dropped(reason.into()));
    }
    Ok(Prepared::Row {
        problem: hash_problem(&trace),
        name: trace.name,
        tokens,
        trained,
        correct,
        truncated,
        joint_differs: row.joint_differs,
    })
}

fn over_length(max_length: usize) -> String {
    format!("longer than `max_length = {max_length}`")
}

/// What `max_per_problem` counts by: the problem, of a conversation every turn before the answer. System prompts ask nothing.
fn hash_problem(trace: &Trace) -> u64 {
    let mut hasher = Sha256::new();
    let turns = trace.messages.as_deref().unwrap_or_default();
    let asked = turns.iter().rposition(|m| m.role == "assistant");
    let turns = &turns[..asked.unwrap_or(0)];
    let said = |m: &&Message| m.role != "system";
    if turns.iter().filter(said).count() > 1 {
        for turn in turns.iter().filter(said) {
            // as JSON, so that the turns cannot run into each other
            hasher.update(json!([turn.role, turn.content.trim(), turn.extra]).to_string());
        }
    } else {
        hasher.update(trace.problem.trim());
    }
    let digest = hasher.finalize();
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}

/// The key of a store: the hash of all bytes it is made of and of every setting that changes it.
///
/// # Errors
/// A file that cannot be read, or a stop.
pub fn key(
    options: &BuildOptions,
    sources: &[TraceSource],
    chat: &Chat,
    stop: &Stop,
) -> Result<String> {
    let mut described = Vec::with_capacity(sources.len());
    for source in sources {
        let files: Vec<String> = source
            .files
            .par_iter()
            .map(|path| hash_file(path, stop))
            .collect::<Result<_>>()?;
        let names = super::rows::names(&source.files);
        let labels = source.spec.labels.as_ref();
        let labels = labels
            .map(|labels| hash_file(Path::new(&labels.file), stop))
            .transpose()?;
        // content counts, not where it came from
        let mut spec = source.spec.clone();
        if !source.files.is_empty() {
            spec.source = String::new();
            spec.revision = None;
        }
        described.push(json!({"spec": spec, "files": files, "names": names, "labels": labels}));
    }
    let text = json!({
        "version": VERSION,
        "builtin": builtin::VERSION,
        "options": options,
        "sources": described,
        "tokenizer": hex::encode(Sha256::digest(chat.tokenizer.json())),
        "template": chat.template()?.source(),
        "special": chat.tokenizer.special_tokens(),
        "variables": chat.variables,
        "eos_ids": chat.eos_ids,
        "missing_end": format!("{:?}", chat.missing_end),
    });
    Ok(hex::encode(Sha256::digest(text.to_string().as_bytes())))
}

/// SHA-256 of a file's bytes, hexadecimal.
///
/// # Errors
/// It cannot be read, or a stop.
pub fn hash_file(path: &Path, stop: &Stop) -> Result<String> {
    let mut file = File::open(path).map_err(|e| Error::io("opening", path, e))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        if stop.requested() {
            return Err(Error::Interrupted {
                message: "while files of rows were hashed; nothing is lost".into(),
            });
        }
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(hasher.finalize())),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) => return Err(Error::io("reading", path, e)),
        }
    }
}
