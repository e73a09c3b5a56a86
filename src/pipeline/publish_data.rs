//! The traces that a stage selected, or the answers that it sampled, as a data set: parquet, and a card that says where
//! every row comes from and what became of the others.

use super::publish_card::{counts, is_hub, source_row};
use super::publish_language::Languages;
use super::publish_license::Wishes;
use super::publish_lineage::{Lineage, in_words};
use super::publish_parquet::{self, Written};
use super::stage_generate::GENERATIONS;
use super::stage_select::TRACES;
use crate::hub::card::{Block, DataCard, DataConfig, License, Section, escape};
use crate::hub::publish_files::{RepoKind, Source, Upload, find_token};
use crate::hub::publish_license::Licenses;
use crate::report::ReportData;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::path::{Path, PathBuf};

/// Where a stage's rows are made into parquet, in its folder.
const FOLDER: &str = "parquet";

/// What a data set is made of, and where it goes.
pub struct DataJob<'a> {
    /// The run folder.
    pub root: &'a Path,
    /// `owner/name`
    pub repo: &'a str,
    pub lineage: &'a Lineage,
    pub report: &'a ReportData,
    pub wishes: Wishes<'a>,
    /// Codes; what the rows are in, where none is given.
    pub languages: &'a [String],
    pub hub: &'a Licenses,
    /// Tokens that may stand in no row.
    pub known: &'a [String],
}

impl DataJob<'_> {
    /// Writes the parquet files into the stage's folder; returns what goes up, the card among it.
    ///
    /// # Errors
    /// The stage is not finished or holds a row that cannot be published; the disk refuses.
    pub fn uploads(&self) -> Result<Vec<Upload>> {
        let (root, stage) = (self.root, &self.lineage.stage);
        let dir = root.join(stage);
        let (input, is_samples) = match dir.join(TRACES) {
            path if path.exists() => (path, false),
            _ => (dir.join(GENERATIONS), true),
        };
        if !input.exists() || !dir.join("done.json").exists() {
            return Err(Error::input(format!(
                "stage `{stage}` of `{}` is not finished",
                root.display()
            ))
            .with_hint("run the recipe to its end first"));
        }
        let found = RefCell::new(Languages::default());
        let row = |row: Map<String, Value>| {
            let row = publishable(row, self.known)?;
            found.borrow_mut().add_row(&row);
            match row {
                Value::Object(row) => Ok(Some(row)),
                _ => Ok(None),
            }
        };
        let written = publish_parquet::write(&[input], &dir.join(FOLDER), &row)?;
        let mut uploads: Vec<Upload> = written.files.iter().cloned().map(upload).collect();
        let languages = match self.languages {
            [] => found.borrow().codes(),
            given => given.to_vec(),
        };
        let card = self.card(&written, is_samples, languages);
        uploads.push(Upload::text("README.md", card.render()));
        Ok(uploads)
    }

    fn card(&self, written: &Written, is_samples: bool, languages: Vec<String>) -> DataCard {
        let (repo, lineage) = (self.repo, self.lineage);
        let name = repo.rsplit('/').next().unwrap_or(repo);
        let mut sources: Vec<String> = Vec::new();
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut licenses: Vec<License> = Vec::new();
        for source in lineage.steps.iter().flat_map(|step| &step.sources) {
            if source.source.starts_with('@') {
                continue;
            }
            let mut row = source_row(source);
            let on_hub = is_hub(&source.source);
            let id = match on_hub {
                true => self.hub.id(
                    RepoKind::Dataset,
                    &source.source,
                    source.revision.as_deref(),
                ),
                false => None,
            };
            row.push(id.clone().unwrap_or_else(|| match on_hub {
                true => "not stated".into(),
                false => String::new(),
            }));
            if rows.contains(&row) {
                continue;
            }
            rows.push(row);
            if on_hub && !sources.contains(&source.source) {
                sources.push(source.source.clone());
            }
            if let Some(id) = id
                && !licenses.iter().any(|license| license.id == id)
            {
                licenses.push(License {
                    id,
                    ..License::default()
                });
            }
        }
        if let Some(id) = self.wishes.license {
            licenses = vec![License {
                id: id.to_string(),
                ..License::default()
            }];
        }
        let teachers: Vec<String> = lineage.bases.iter().map(in_words).collect();
        let what = match is_samples {
            true => "Answers sampled",
            false => "Traces selected",
        };
        let mut lead = format!(
            "{what} by stage `{}` of the run `{}`, made with `distill` the way of DeepSeek-R1 ([arXiv 2501.12948](https://arxiv.org/abs/2501.12948)). {} rows.",
            lineage.stage, lineage.run, written.num_rows
        );
        if !teachers.is_empty() {
            lead += &format!(
                " Written by models that began as: {}.",
                escape(&teachers.join(", ").replace('`', ""))
            );
        }
        let columns = written
            .columns
            .iter()
            .map(|(name, kind)| vec![name.clone(), kind.name()]);
        let table = |head: &[&str], rows| Block::Table {
            head: head.iter().map(|text| text.to_string()).collect(),
            rows,
        };
        let mut sections = vec![
            Section {
                title: "Use".into(),
                blocks: vec![Block::Code {
                    language: "python",
                    text: format!(
                        "from datasets import load_dataset\n\nrows = load_dataset(\"{repo}\", split=\"train\")"
                    ),
                }],
            },
            Section {
                title: "Columns".into(),
                blocks: vec![table(&["column", "type"], columns.collect())],
            },
            Section {
                title: "Sources".into(),
                blocks: vec![table(
                    &["source", "config", "split", "revision", "license"],
                    rows,
                )],
            },
        ];
        let mut blocks = Vec::new();
        for step in &lineage.steps {
            let stages = self.report.stages.iter();
            let found = stages.filter(|stage| step.folders.contains(&stage.name));
            blocks.extend(found.flat_map(counts));
        }
        if !blocks.is_empty() {
            sections.push(Section {
                title: "Counts".into(),
                blocks,
            });
        }
        let mut settings = Vec::new();
        for step in &lineage.steps {
            settings.push(Block::Text(format!("Stage `{}`:", step.name)));
            let rows = step
                .settings
                .iter()
                .map(|(key, value)| vec![key.clone(), value.clone()]);
            settings.push(table(&["setting", "value"], rows.collect()));
        }
        sections.push(Section {
            title: "Settings".into(),
            blocks: settings,
        });
        DataCard {
            name: name.to_string(),
            licenses,
            languages,
            tags: ["reasoning", "chain-of-thought", "synthetic", "distill"]
                .map(String::from)
                .into(),
            configs: vec![DataConfig {
                name: "default".into(),
                split: "train".into(),
                path: "data/train-*".into(),
            }],
            num_rows: Some(written.num_rows),
            sources,
            lead,
            sections,
        }
    }
}

fn upload(path: PathBuf) -> Upload {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Upload {
        path: format!("data/{name}"),
        source: Source::File(path),
    }
}

/// A row without what only its own model can read; token ids become their number.
fn publishable(mut row: Map<String, Value>, known: &[String]) -> Result<Value> {
    if let Some(Value::Array(generations)) = row.get_mut("generations") {
        for generation in generations.iter_mut().filter_map(Value::as_object_mut) {
            generation.remove("logprobs");
            if let Some(Value::Array(tokens)) = generation.remove("tokens") {
                generation.insert("num_tokens".into(), json!(tokens.len()));
            }
        }
    }
    let row = Value::Object(row);
    match find_token(row.to_string().as_bytes(), known) {
        Some(_) => Err(Error::input("the row holds an access token")
            .with_hint("take it out, and revoke the token if others have seen it")),
        None => Ok(row),
    }
}
