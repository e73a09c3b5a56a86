//! A folder that is no run, as files of a repository: what belongs to a model or a data set, with a short card where it has
//! none of its own, and what its licence wants.

use super::publish::{CARD, Pending, Scene, Wish, no_repo};
use super::publish_card::is_hub;
use super::publish_chain::Chain;
use super::publish_license::{Duties, Wishes, duties};
use super::publish_weights::{check_weights, is_reward};
use crate::hub::card::{DataCard, License, ModelCard, Relation};
use crate::hub::card_facts::{CardFacts, front_matter};
use crate::hub::publish_files::{Gathered, RepoKind, Upload, gather};
use crate::{Error, Result};
use serde_json::Value;
use std::fs;
use std::path::Path;

impl Scene<'_> {
    /// A folder that is no run: what belongs to a model or a data set, with a card where it has none.
    pub(super) fn of_folder(&self, folder: &Path) -> Result<Pending> {
        let wish = self.wish;
        check_wish(folder, wish)?;
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
                let has_gguf = uploads.iter().any(|u| u.path.ends_with(".gguf"));
                has("config.json") || has("adapter_config.json") || has_gguf
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
        let readme = fs::read_to_string(folder.join(CARD)).ok();
        let readme = readme.map(|text| with_license(text, wish)).transpose()?;
        let card = match kind {
            RepoKind::Model => {
                check_weights(folder, &uploads, self.reporter)?;
                let license = wish.license.as_deref();
                let chain = Chain::of_folder(folder, license, &self.hub);
                let wishes = Wishes {
                    license,
                    license_file: wish.license_file.as_deref(),
                };
                let duties = duties(repo, &chain, &wishes, &self.hub)?;
                // a folder under a licence that wants nothing goes up as it is
                let is_asked = wish.license.is_some() || wish.license_file.is_some();
                if is_asked || duties.is_bound {
                    with_files(&mut uploads, &duties, wish.license_file.is_some());
                }
                for warning in &duties.warnings {
                    self.reporter.warn(warning);
                }
                match readme {
                    Some((text, is_ours)) => {
                        check_card(folder, &text, &duties)?;
                        (text, is_ours)
                    }
                    None => (plain_card(folder, repo, wish, &chain, &duties), true),
                }
            }
            RepoKind::Dataset => {
                let files: Vec<String> = uploads.iter().map(|u| u.path.clone()).collect();
                if let Some(missing) = crate::hub::missing_shard(&files) {
                    return Err(Error::input(format!(
                        "`{}` lacks `{missing}`, one of the numbered files of a split",
                        folder.display()
                    ))
                    .with_hint("copy the missing file there, or write the split anew"));
                }
                if let Some(path) = &wish.license_file {
                    let text =
                        fs::read_to_string(path).map_err(|e| Error::io("reading", path, e))?;
                    put(&mut uploads, Upload::text("LICENSE", text));
                }
                readme.unwrap_or_else(|| (plain_data_card(repo, wish), true))
            }
        };
        let (text, is_ours) = card;
        let has_card = uploads.iter().any(|upload| upload.path == CARD);
        if !has_card {
            self.reporter
                .warn("the folder has no `README.md`: a short card is written for it");
        }
        if front_matter(&text, "license").is_none() {
            self.reporter
                .warn("the card names no `license`: give `--license`");
        }
        if is_ours {
            put(&mut uploads, Upload::text(CARD, text));
        }
        Ok(Pending {
            target: self.target(kind, repo, None, format!("Upload {}", kind.name())),
            uploads,
            left_out,
        })
    }
}

/// Refuses what only a run has.
fn check_wish(folder: &Path, wish: &Wish) -> Result<()> {
    let asked = [
        ("--stage", wish.stage.is_some()),
        ("--checkpoints", wish.checkpoints),
        (
            "--adapter",
            wish.adapter && !folder.join("adapter_config.json").is_file(),
        ),
    ];
    match asked.iter().find(|(_, is_asked)| *is_asked) {
        None => Ok(()),
        Some((flag, _)) => Err(Error::input(format!(
            "`{flag}` is for a run, and `{}` is no run folder: it has no `plan.json`",
            folder.display()
        ))
        .with_hint(
            "give the folder of the run; or leave the flag out, to push the folder as it is",
        )),
    }
}

/// A card of the folder's own with the licence that the user says, and whether that changed it.
fn with_license(text: String, wish: &Wish) -> Result<(String, bool)> {
    let Some(license) = &wish.license else {
        return Ok((text, false));
    };
    let facts = CardFacts::of_text(&text);
    let is_said =
        |known: &License| known.id == *license || known.name.as_deref() == Some(license.as_str());
    if facts.licenses.iter().any(is_said) {
        return Ok((text, false));
    }
    if let Some(other) = facts.licenses.first() {
        return Err(Error::input(format!(
            "`--license {license}`: the folder's `README.md` says `license: {}`",
            other.id
        ))
        .with_hint("change the line in `README.md`, or leave `--license` out"));
    }
    let line = format!("license: {license}\n");
    let bare = text.trim_start_matches('\u{feff}').trim_start();
    let rest = bare.strip_prefix("---").and_then(|rest| {
        let rest = rest.strip_prefix('\r').unwrap_or(rest);
        rest.strip_prefix('\n')
    });
    Ok(match rest {
        Some(rest) => (format!("---\n{line}{rest}"), true),
        None => (format!("---\n{line}---\n\n{bare}"), true),
    })
}

fn put(uploads: &mut Vec<Upload>, file: Upload) {
    uploads.retain(|upload| upload.path != file.path);
    uploads.push(file);
}

/// Adds what licences want. A file of the folder stays as it is, but for a `LICENSE` that the user gives, and a notice that
/// lacks a sentence.
pub(super) fn with_files(uploads: &mut Vec<Upload>, duties: &Duties, is_given: bool) {
    for file in &duties.files {
        let kind = |path: &str| {
            let name = path.to_ascii_uppercase();
            let name = name.strip_suffix(".TXT").unwrap_or(&name);
            name.strip_suffix(".MD").unwrap_or(name).to_string()
        };
        let (stay, go): (Vec<Upload>, Vec<Upload>) = uploads
            .drain(..)
            .partition(|upload| kind(&upload.path) != kind(&file.path));
        *uploads = stay;
        let gives_way = is_given || file.path == "NOTICE";
        match go.into_iter().next() {
            Some(own) if !gives_way => uploads.push(own),
            _ => uploads.push(file.clone()),
        }
    }
}

/// That a card which is not ours shows what licences want to be seen.
///
/// # Errors
/// Names the words.
pub(super) fn check_card(folder: &Path, text: &str, duties: &Duties) -> Result<()> {
    match duties.displays.iter().find(|words| !text.contains(**words)) {
        None => Ok(()),
        Some(words) => Err(Error::input(format!(
            "the card in `{}` does not show \"{words}\", which the licence of its base wants",
            folder.display()
        ))
        .with_hint("add the words to `README.md`")),
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
    if is_hub(base) {
        return Ok(());
    }
    let what = match base {
        "" => "names no base model".to_string(),
        base => format!("is for `{base}`"),
    };
    Err(Error::input(format!(
        "the adapter in `{}` {what}, which nobody else can load",
        folder.display()
    ))
    .with_hint("push the merged model, without `--adapter`; or push the base first and put its `owner/name` into `base_model_name_or_path` of `adapter_config.json`"))
}

/// A card for a model of which nothing is known but its folder.
fn plain_card(folder: &Path, repo: &str, wish: &Wish, chain: &Chain, duties: &Duties) -> String {
    let has = |name: &str| folder.join(name).is_file();
    let (library, relation) = match (has("adapter_config.json"), has("config.json")) {
        (true, _) => ("peft", Relation::Adapter),
        (false, true) => ("transformers", Relation::Finetune),
        // nothing but GGUF
        (false, false) => ("gguf", Relation::Quantized),
    };
    let shown = duties
        .displays
        .iter()
        .map(|words| format!("**{words}**\n\n"));
    let notes: Vec<String> = match duties.is_bound {
        false => Vec::new(),
        true => duties
            .notes
            .iter()
            .map(|note| format!("\n\n{note}"))
            .collect(),
    };
    ModelCard {
        name: repo.rsplit('/').next().unwrap_or(repo).to_string(),
        license: duties.license.clone(),
        base: chain.repo().map(|name| (name.to_string(), relation)),
        languages: wish.languages.clone(),
        tags: vec!["distill".into()],
        library: library.into(),
        task: is_reward(folder).then(|| "text-classification".into()),
        lead: format!(
            "{}Pushed with `distill`.{}",
            shown.collect::<String>(),
            notes.concat()
        ),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::publish_files::Source;
    use crate::hub::publish_license::Licenses;
    use crate::progress::{Silent, Stop};

    /// The text of a file that goes up.
    fn text_of<'a>(uploads: &'a [Upload], path: &str) -> Option<&'a str> {
        let found = uploads.iter().find(|upload| upload.path == path)?;
        match &found.source {
            Source::Text(text) => Some(text),
            Source::File(_) => None,
        }
    }

    /// A folder with a model of one tensor and these files, pushed to `repo` with `--license`.
    fn pushed(
        repo: &str,
        license: Option<&str>,
        files: &[(&str, &str)],
    ) -> std::result::Result<Vec<Upload>, (String, String)> {
        let dir = tempfile::tempdir().unwrap();
        let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        let mut weights = (header.len() as u64).to_le_bytes().to_vec();
        weights.extend(header.as_bytes());
        weights.push(0);
        fs::write(dir.path().join("model.safetensors"), weights).unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let wish = Wish {
            repo: Some(repo.into()),
            license: license.map(String::from),
            license_file: files
                .iter()
                .find(|(name, _)| *name == "given")
                .map(|(name, _)| dir.path().join(name).display().to_string()),
            ..Wish::default()
        };
        let scene = Scene {
            wish: &wish,
            hub: Licenses::with_cache(None, &Stop::default(), dir.path().join("cache")),
            known: Vec::new(),
            reporter: &Silent,
        };
        let pending = scene.of_folder(dir.path());
        let said = |e: Error| (e.to_string(), e.hint().unwrap_or_default());
        pending.map(|pending| pending.uploads).map_err(said)
    }

    #[test]
    fn a_licence_without_a_card_makes_what_it_wants() {
        let agreement = ("LICENSE", "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n...");
        let uploads = pushed("you/Llama-x", Some("llama3.1"), &[agreement]).unwrap();
        let card = text_of(&uploads, CARD).unwrap();
        assert!(card.contains("license: llama3.1\n"), "{card}");
        assert!(card.contains("**Built with Llama**"), "{card}");
        let notice = text_of(&uploads, "NOTICE").unwrap();
        assert!(notice.contains("Copyright © Meta Platforms, Inc. All Rights Reserved."));
        assert!(uploads.iter().any(|upload| upload.path == "LICENSE"));
        let (error, hint) = pushed("you/Llama-x", Some("llama3.1"), &[]).unwrap_err();
        assert!(
            error.contains("has no `LICENSE`, which the Llama 3.1 Community License wants"),
            "{error}"
        );
        assert!(hint.contains("--license-file"), "{hint}");
        let given = ("given", "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT");
        let uploads = pushed("you/Llama-x", Some("llama3.1"), &[given]).unwrap();
        assert_eq!(text_of(&uploads, "LICENSE"), Some(given.1));
        let (error, hint) = pushed("you/x", Some("llama3.1"), &[agreement]).unwrap_err();
        assert!(
            error.ends_with("wants a name that begins with `Llama`"),
            "{error}"
        );
        assert_eq!(hint, "for example `you/Llama-x`");
    }

    #[test]
    fn a_card_of_the_folders_own_is_held_to_it() {
        let card = "---\nlicense: llama3.1\nbase_model:\n- meta-llama/Llama-3.1-8B\n---\n\nBuilt with Llama";
        let agreement = ("LICENSE", "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT");
        let with = |repo: &str, card: &str| pushed(repo, None, &[(CARD, card), agreement]);
        let uploads = with("you/Llama-x", card).unwrap();
        assert!(text_of(&uploads, "NOTICE").is_some());
        assert_eq!(text_of(&uploads, CARD), None);
        assert!(with("you/x", card).is_err());
        let silent = card.replace("Built with Llama", "");
        let (error, _) = with("you/Llama-x", &silent).unwrap_err();
        assert!(
            error.contains("does not show \"Built with Llama\""),
            "{error}"
        );
        // by its base alone, whatever the card says of the licence
        let by_base =
            "---\nlicense: mit\nbase_model: deepseek-ai/DeepSeek-R1-Distill-Llama-8B\n---\n";
        let (error, _) = with("you/x", by_base).unwrap_err();
        assert!(
            error.ends_with("wants a name that begins with `Llama`"),
            "{error}"
        );
        assert!(pushed("you/x", None, &[(CARD, "---\nlicense: mit\n---\n")]).is_ok());
        assert!(pushed("you/x", None, &[(CARD, "no card at all")]).is_ok());
    }

    #[test]
    fn the_licence_of_the_command_line_is_not_ignored() {
        let uploads = pushed(
            "you/x",
            Some("mit"),
            &[(CARD, "---\ntags: [x]\n---\nText.\n")],
        )
        .unwrap();
        assert_eq!(
            text_of(&uploads, CARD),
            Some("---\nlicense: mit\ntags: [x]\n---\nText.\n")
        );
        let uploads = pushed("you/x", Some("mit"), &[(CARD, "Text.\n")]).unwrap();
        assert_eq!(
            text_of(&uploads, CARD),
            Some("---\nlicense: mit\n---\n\nText.\n")
        );
        let said = (CARD, "---\nlicense: apache-2.0\n---\n");
        let (error, _) = pushed("you/x", Some("mit"), &[said]).unwrap_err();
        assert_eq!(
            error,
            "`--license mit`: the folder's `README.md` says `license: apache-2.0`"
        );
        let given = ("given", "terms");
        let uploads = pushed("you/x", None, &[said, given, ("LICENSE", "old")]).unwrap();
        assert_eq!(text_of(&uploads, "LICENSE"), Some("terms"));
    }
}
