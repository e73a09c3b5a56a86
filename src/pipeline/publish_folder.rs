//! A folder that is no run, as files of a repository: what belongs to a model or a data set, with a short card where it has
//! none of its own.

use super::publish::{CARD, Pending, Scene, Wish, no_repo};
use super::publish_license::{check_folder, front_matter};
use crate::hub::card::{DataCard, License, ModelCard, Relation};
use crate::hub::publish_files::{Gathered, RepoKind, Upload, gather};
use crate::{Error, Result};
use serde_json::Value;
use std::fs;
use std::path::Path;

impl Scene<'_> {
    /// A folder that is no run: what belongs to a model or a data set, with a card where it has none.
    pub(super) fn of_folder(&self, folder: &Path) -> Result<Pending> {
        let wish = self.wish;
        let repo = wish.repo.as_ref().ok_or_else(no_repo)?;
        let kind = match wish.dataset {
            true => RepoKind::Dataset,
            false => RepoKind::Model,
        };
        check_adapter(folder)?;
        let Gathered {
            mut uploads,
            left_out,
        } = gather(folder, kind)?;
        let has = |name: &str| uploads.iter().any(|upload| upload.path == name);
        let is_one = match kind {
            RepoKind::Model => {
                has("config.json") || has("adapter_config.json") || has_gguf(&uploads)
            }
            RepoKind::Dataset => uploads.iter().any(|u| crate::hub::is_data_file(&u.path)),
        };
        if !is_one {
            return Err(Error::input(format!(
                "`{}` holds no {}",
                folder.display(),
                kind.name()
            ))
            .with_hint(match kind {
                RepoKind::Model => "give a run folder, or a folder with `config.json` and `*.safetensors`; `--dataset` pushes a data set",
                RepoKind::Dataset => "give a run folder, or a folder with parquet or JSON lines",
            }));
        }
        let names: Vec<&str> = uploads.iter().map(|upload| upload.path.as_str()).collect();
        let readme = fs::read_to_string(folder.join(CARD)).ok();
        let card = match kind {
            RepoKind::Model => {
                let card = readme
                    .clone()
                    .unwrap_or_else(|| plain_card(folder, repo, wish));
                check_folder(repo, folder, Some(&card), &names)?;
                card
            }
            RepoKind::Dataset => readme
                .clone()
                .unwrap_or_else(|| plain_data_card(repo, wish)),
        };
        if readme.is_none() {
            self.reporter
                .warn("the folder has no `README.md`: a short card is written for it");
            uploads.push(Upload::text(CARD, card));
        } else if front_matter(&card, "license").is_none() {
            self.reporter.warn("the card names no `license`");
        }
        Ok(Pending {
            target: self.target(kind, repo, None, format!("Upload {}", kind.name())),
            uploads,
            left_out,
        })
    }
}

/// Refuses an adapter whose base others cannot load: a path of this machine, or none at all.
///
/// # Errors
/// Says what it names.
pub(super) fn check_adapter(folder: &Path) -> Result<()> {
    let path = folder.join("adapter_config.json");
    let Ok(bytes) = fs::read(&path) else {
        return Ok(());
    };
    let config: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let base = config["base_model_name_or_path"]
        .as_str()
        .unwrap_or_default();
    if super::publish_card::is_hub(base) && !Path::new(base).exists() {
        return Ok(());
    }
    Err(Error::input(format!(
        "the adapter in `{}` is for `{base}`, which nobody else can load",
        folder.display()
    ))
    .with_hint("push the merged model, without `--adapter`; or push the base first and put its `owner/name` into `base_model_name_or_path` of `adapter_config.json`"))
}

fn has_gguf(uploads: &[Upload]) -> bool {
    uploads.iter().any(|upload| upload.path.ends_with(".gguf"))
}

/// A card for a model of which nothing is known but its folder.
fn plain_card(folder: &Path, repo: &str, wish: &Wish) -> String {
    let json = |name: &str| -> Value {
        let bytes = fs::read(folder.join(name)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    };
    let adapter = json("adapter_config.json");
    let base = adapter["base_model_name_or_path"].as_str();
    let base = base.filter(|name| super::publish_card::is_hub(name));
    let is_adapter = adapter.is_object();
    ModelCard {
        name: repo.rsplit('/').next().unwrap_or(repo).to_string(),
        license: wish.license.as_ref().map(|id| License {
            id: id.clone(),
            ..License::default()
        }),
        base: base.map(|name| (name.to_string(), Relation::Adapter)),
        languages: wish.languages.clone(),
        tags: vec!["distill".into()],
        library: if is_adapter { "peft" } else { "transformers" }.into(),
        lead: "Pushed with `distill`.".into(),
        ..ModelCard::default()
    }
    .render()
}

fn plain_data_card(repo: &str, wish: &Wish) -> String {
    DataCard {
        name: repo.rsplit('/').next().unwrap_or(repo).to_string(),
        licenses: wish
            .license
            .iter()
            .map(|id| License {
                id: id.clone(),
                ..License::default()
            })
            .collect(),
        languages: wish.languages.clone(),
        tags: vec!["distill".into()],
        lead: "Pushed with `distill`.".into(),
        ..DataCard::default()
    }
    .render()
}
