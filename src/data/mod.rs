//! The trace record, where traces and problems come from, and the token store that training reads.
//!
//! A file is read row by row ([`rows`], [`parquet`]), its schema is told by its columns ([`schema`]) or mapped by the
//! recipe ([`mapping`]), verdicts of a file of their own are joined ([`labels`]), and what cannot be used is dropped with
//! its reason ([`source`]). [`build`] tokenises what is left once, in parallel, into the memory-mapped [`store`] and says
//! in a [`report`] what became of every row. Problems for evaluations come from [`problems`](mod@problems), prompts to sample
//! answers for from [`prompts`](mod@prompts); what needs no file at all is made by [`builtin`]. Preferences and
//! labelled answers are in [`judged`].
//!
//! Rows are never held all in memory. What is trained of a row is found in `tokenize/`.

mod bilingual;
mod bilingual_text;
pub mod build;
pub mod builtin;
mod builtin_text;
mod builtin_tokenizer;
mod chain;
mod columns;
pub mod judged;
pub mod labels;
pub mod mapping;
pub mod parquet;
pub mod problems;
pub mod prompts;
pub mod report;
pub mod rows;
pub mod schema;
pub mod source;
pub mod store;
pub mod thinking;
pub mod trace;

pub use build::{BuildOptions, TraceSource, hash_file, key as store_key};
pub use judged::{Judged, JudgedOptions, JudgedReport, JudgedRow, judged_rows};
pub use problems::{Problem, problems};
pub use prompts::{Prompt, Rendered, prompts};
pub use report::BuildReport;
pub use source::{Item, open};
pub use store::Store;
pub use trace::{Trace, Verdict};
