//! The traces that a stage selected, or the answers that it sampled, as a data set: parquet, and a card that says where
//! every row comes from and what became of the others.

use super::publish_card::{SOURCE_HEAD, counts, escape_all, source_row};
use super::publish_chain::{Chain, Part};
use super::publish_language::Languages;
use super::publish_license::{Wishes, limit};
use super::publish_lineage::{Lineage, in_words};
use super::publish_parquet::{self, Written};
use super::stage_generate::GENERATIONS;
use super::stage_select::TRACES;
use crate::hub::card::{Block, DataCard, DataConfig, License, Section, escape};
use crate::hub::publish_files::{Source, Upload};
use crate::hub::publish_license::Licenses;
use crate::hub::publish_secrets::find_token;
use crate::progress::Reporter;
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
    pub reporter: &'a dyn Reporter,
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
        let chain = Chain::of(self.lineage, self.hub);
        let card = self.card(&chain, &written, is_samples, languages);
        uploads.push(Upload::text("README.md", card.render()));
        if let Some(path) = self.wishes.license_file {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, e))?;
            uploads.push(Upload::text("LICENSE", text));
        }
        Ok(uploads)
    }

    fn card(
        &self,
        chain: &Chain,
        written: &Written,
        is_samples: bool,
        languages: Vec<String>,
    ) -> DataCard {
        let (repo, lineage) = (self.repo, self.lineage);
        let name = repo.rsplit('/').next().unwrap_or(repo);
        let mut sources: Vec<String> = Vec::new();
        let mut rows: Vec<Vec<String>> = Vec::new();
        for source in lineage.steps.iter().flat_map(|step| &step.sources) {
            if source.source.starts_with('@') {
                continue;
            }
            let row = source_row(source, &chain.data);
            if !rows.contains(&row) {
                rows.push(row);
            }
            let id = source.repo();
            if source.is_on_hub && !sources.iter().any(|known| known == id) {
                sources.push(id.to_string());
            }
        }
        let mut licenses: Vec<License> = Vec::new();
        for license in chain.data.iter().flat_map(|data| &data.licenses).flatten() {
            if !licenses.iter().any(|known| known == license) {
                licenses.push(license.clone());
            }
        }
        let terms = self.terms(chain);
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
                blocks: vec![table(&SOURCE_HEAD, rows)],
            },
        ];
        if !terms.is_empty() {
            sections.push(Section {
                title: "License".into(),
                blocks: terms.into_iter().map(Block::Text).collect(),
            });
        }
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

impl DataJob<'_> {
    /// What whoever uses the rows has to know of the licences of their teachers and sources.
    fn terms(&self, chain: &Chain) -> Vec<String> {
        let mut notes: Vec<String> = Vec::new();
        let teachers = chain
            .ancestors
            .iter()
            .filter(|one| one.part == Part::Outputs);
        for (teacher, terms) in teachers.filter_map(|one| Some((one, one.terms?))) {
            let mut note = format!(
                "{} wrote or judged rows. It is licensed under the {}",
                escape_all(&teacher.name),
                terms.name
            );
            match (terms.keeps_outputs, terms.prefix) {
                (true, _) => {
                    note += ", which does not allow its outputs to improve any other model.";
                    self.reporter.warn(&format!(
                        "{} is under the {}, which does not allow its outputs to improve any other model",
                        teacher.name, terms.name
                    ));
                }
                (false, Some(prefix)) => {
                    note += &format!(
                        ": a model that is trained on its outputs has a name that begins with `{prefix}`."
                    );
                }
                (false, None) => {
                    let words = terms.display.unwrap_or_default();
                    note += &format!(": what is trained on its outputs shows \"{words}\".");
                }
            }
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        for data in &chain.data {
            let limited = data.licenses.iter().flatten();
            for (license, limit) in limited.filter_map(|one| Some((one, limit(one)?))) {
                let id = super::publish_chain::shown(license);
                let text = format!(
                    "the data set {} is under `{id}`, which {limit}",
                    data.source
                );
                self.reporter.warn(&text);
                notes.push(escape_all(&format!("Of the sources, {text}.")));
            }
        }
        notes
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
