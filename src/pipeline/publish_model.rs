//! The model of a stage, or a checkpoint on the way to it, as files of a repository: weights, tokenizer, card, licence.

use super::publish::{CARD, Part, Pending, Scene};
use super::publish_card::{About, model_card};
use super::publish_chain::Chain;
use super::publish_folder::{check_adapter, check_card, with_files};
use super::publish_language::of_samples;
use super::publish_license::{Duties, Wishes, duties};
use super::publish_lineage::Lineage;
use super::publish_weights::check_weights;
use crate::hub::card::ModelCard;
use crate::hub::publish_files::{Gathered, RepoKind, Upload, gather};
use crate::recipe::publish::Publish;
use crate::report::ReportData;
use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A result of a run on its way to a repository.
pub(super) struct Model<'a> {
    pub scene: &'a Scene<'a>,
    /// The run folder.
    pub root: &'a Path,
    /// `owner/name`
    pub repo: &'a str,
    pub lineage: &'a Lineage,
    pub report: &'a ReportData,
    pub table: Option<&'a Publish>,
}

impl Model<'_> {
    /// Steps of the checkpoints that were kept.
    pub fn checkpoints(&self) -> Vec<u64> {
        let stages = self.report.stages.iter();
        let own = stages.filter(|stage| stage.name == self.lineage.stage);
        own.flat_map(|stage| &stage.checkpoints)
            .filter_map(|(path, _)| path.rsplit('-').next()?.parse().ok())
            .collect()
    }

    /// The result, its adapter, or a checkpoint on the way to it, with its card.
    ///
    /// # Errors
    /// The stage is not finished or has no such part, a licence forbids it, a link leads out of the folder.
    pub fn pending(&self, part: Part) -> Result<Pending> {
        let (stage, wish) = (&self.lineage.stage, self.scene.wish);
        let dir = self.root.join(stage);
        let result = dir.join("model");
        let (folder, checkpoint) = match part {
            Part::Model => (result.clone(), None),
            Part::Adapter => (dir.join("adapter"), None),
            Part::Checkpoint(step) => (dir.join(format!("checkpoint-{step}")), Some(step)),
        };
        let is_done = result.is_dir() && dir.join("done.json").is_file();
        if is_done && part == Part::Adapter && !folder.is_dir() {
            return Err(Error::input(format!(
                "stage `{stage}` of `{}` left no adapter",
                self.root.display()
            ))
            .with_hint(
                "`student.method = \"lora\"` trains one; without `--adapter` the model goes up",
            ));
        }
        if !is_done || !folder.is_dir() {
            return Err(Error::input(format!(
                "stage `{stage}` of `{}` is not finished",
                self.root.display()
            ))
            .with_hint("run the recipe to its end first"));
        }
        check_adapter(&folder)?;
        let mut gathered = gather(&folder, RepoKind::Model)?;
        if checkpoint.is_some() {
            // a checkpoint has weights and config: how to talk to it is said beside the result
            for upload in gather(&result, RepoKind::Model)?.uploads {
                let is_there = gathered.uploads.iter().any(|u| u.path == upload.path);
                let is_weights =
                    upload.path.contains(".safetensors") || upload.path.ends_with(".gguf");
                if !is_there && !is_weights && upload.path != CARD {
                    gathered.uploads.push(upload);
                }
            }
        }
        let Gathered {
            mut uploads,
            left_out,
        } = gathered;
        let table = self.table;
        let license = wish.license.as_deref();
        let license_file = wish.license_file.as_deref();
        let wishes = Wishes {
            license: license.or(table.and_then(|table| table.license.as_deref())),
            license_file: license_file.or(table.and_then(|table| table.license_file.as_deref())),
        };
        let chain = Chain::of(self.lineage, &self.scene.hub);
        let duties = duties(self.repo, &chain, &wishes, &self.scene.hub)?;
        check_weights(&folder, &uploads, self.scene.reporter)?;
        with_files(&mut uploads, &duties, wishes.license_file.is_some());
        for warning in &duties.warnings {
            self.scene.reporter.warn(warning);
        }
        let has = |uploads: &[Upload], path: &str| uploads.iter().any(|u| u.path == path);
        if has(&uploads, CARD) {
            let text = fs::read_to_string(folder.join(CARD)).unwrap_or_default();
            check_card(&folder, &text, &duties)?;
            self.scene
                .reporter
                .note("the card is the `README.md` that lies beside the model");
        } else {
            let is_reward = super::publish_weights::is_reward(&folder);
            let is_adapter = has(&uploads, "adapter_config.json");
            let card = self.card(&chain, &duties, checkpoint, is_adapter, is_reward)?;
            uploads.push(Upload::text(CARD, card.render()));
            for (path, text) in card.eval_results() {
                uploads.retain(|upload| upload.path != path);
                uploads.push(Upload::text(&path, text));
            }
        }
        let message = match checkpoint {
            Some(step) => format!(
                "Checkpoint {step} of stage {stage} of run {}",
                self.lineage.run
            ),
            None => format!("Result of stage {stage} of run {}", self.lineage.run),
        };
        let mut target = self
            .scene
            .target(RepoKind::Model, self.repo, table, message);
        if let Some(step) = checkpoint {
            // every checkpoint has a branch of its own; tags are the result's
            let named = wish.revision.clone().filter(|_| !wish.checkpoints);
            target.revision = named.or(Some(format!("checkpoint-{step}")));
            target.tag = wish.tag.clone().filter(|_| !wish.checkpoints);
        }
        Ok(Pending {
            target,
            uploads,
            left_out,
        })
    }

    fn card(
        &self,
        chain: &Chain,
        duties: &Duties,
        checkpoint: Option<u64>,
        is_adapter: bool,
        is_reward: bool,
    ) -> Result<ModelCard> {
        let table = self.table;
        let given = match self.scene.wish.languages.as_slice() {
            [] => table
                .map(|table| table.language.clone())
                .unwrap_or_default(),
            given => given.to_vec(),
        };
        let samples: Vec<PathBuf> = self
            .lineage
            .evals
            .iter()
            .filter(|eval| !eval.before)
            .map(|eval| self.root.join(&eval.folder).join("samples.jsonl"))
            .collect();
        let languages = match given.is_empty() {
            true => of_samples(samples.iter().map(PathBuf::as_path)),
            false => given,
        };
        // where there is a base, the warnings name it
        if duties.license.is_none() && duties.warnings.is_empty() {
            self.scene
                .reporter
                .warn("the card names no licence: give `--license`, or `license` in `[publish]`");
        }
        let none = Vec::new();
        let about = About {
            repo: self.repo,
            languages: &languages,
            tags: table.map_or(&none, |table| &table.tags),
            checkpoint,
            is_adapter,
            is_reward,
        };
        model_card(self.root, self.lineage, chain, duties, self.report, &about)
    }
}
