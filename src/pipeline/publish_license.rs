//! What licences want of a published model: the text of the licence beside it, notices, words on the card, the beginning of
//! its name. A push that breaks them is refused.

use super::publish_lineage::{Base, Lineage, in_words};
use crate::hub::card::License;
use crate::hub::publish_files::{RepoKind, Upload};
use crate::hub::publish_license::Licenses;
use crate::recipe::plan::StudentSource;
use crate::recipe::publish::check_prefix;
use crate::{Error, Result};
use std::fs;
use std::path::Path;

/// The text of Apache-2.0, which most students come under.
const APACHE: &str = include_str!("../../LICENSE");

/// What the Llama licences want, by their id on the Hub.
struct Llama {
    id: &'static str,
    /// As the licence calls itself.
    name: &'static str,
    /// What the card has to show.
    display: &'static str,
    /// What the name has to begin with.
    prefix: Option<&'static str>,
}

const LLAMAS: [Llama; 6] = [
    Llama {
        id: "llama2",
        name: "Llama 2",
        display: "Built with Llama 2",
        prefix: None,
    },
    Llama {
        id: "llama3",
        name: "Meta Llama 3",
        display: "Built with Meta Llama 3",
        prefix: Some("Llama 3"),
    },
    Llama {
        id: "llama3.1",
        name: "Llama 3.1",
        display: "Built with Llama",
        prefix: Some("Llama"),
    },
    Llama {
        id: "llama3.2",
        name: "Llama 3.2",
        display: "Built with Llama",
        prefix: Some("Llama"),
    },
    Llama {
        id: "llama3.3",
        name: "Llama 3.3",
        display: "Built with Llama",
        prefix: Some("Llama"),
    },
    Llama {
        id: "llama4",
        name: "Llama 4",
        display: "Built with Llama",
        prefix: Some("Llama"),
    },
];

impl Llama {
    fn of(id: &str) -> Option<&'static Self> {
        LLAMAS.iter().find(|llama| llama.id == id)
    }

    /// What the Notice file has to say.
    fn notice(&self) -> String {
        let name = self.name;
        format!(
            "{name} is licensed under the {name} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved.\n"
        )
    }

    /// Names of repositories have no spaces.
    fn check_name(&self, repo: &str) -> Result<()> {
        let Some(prefix) = self.prefix else {
            return Ok(());
        };
        check_prefix(repo, &prefix.replace(' ', "-"))
    }
}

/// What the user says of licences.
#[derive(Clone, Debug, Default)]
pub struct Wishes<'a> {
    pub license: Option<&'a str>,
    pub license_file: Option<&'a str>,
}

/// What has to be done.
#[derive(Clone, Debug, Default)]
pub struct Duties {
    pub license: Option<License>,
    /// Beside the weights.
    pub files: Vec<Upload>,
    /// On the card, above everything.
    pub display: Option<String>,
    /// On the card, a paragraph each.
    pub notes: Vec<String>,
}

/// The duties of a model of this lineage under this name.
///
/// # Errors
/// A name that the licence does not allow, another licence than the base model's, a text that cannot be had.
pub fn duties(repo: &str, lineage: &Lineage, wishes: &Wishes, hub: &Licenses) -> Result<Duties> {
    let mut duties = Duties::default();
    let ids: Vec<Option<String>> = lineage.bases.iter().map(|base| id_of(base, hub)).collect();
    let own = ids.first().cloned().flatten();
    let llamas: Vec<(&Base, &'static Llama)> = lineage
        .bases
        .iter()
        .zip(&ids)
        .filter_map(|(base, id)| Some((base, Llama::of(id.as_deref()?)?)))
        .collect();
    for (base, llama) in &llamas {
        llama.check_name(repo)?;
        if let Some(wish) = wishes.license
            && own.as_deref() == Some(llama.id)
            && wish != llama.id
        {
            return Err(Error::input(format!(
                "`publish.license = \"{wish}\"`: what is trained from {} stays under `{}`",
                in_words(base),
                llama.id
            ))
            .with_hint("leave the key out"));
        }
    }
    let id = wishes.license.map(String::from).or(own);
    duties.license = id.as_deref().map(license);
    if let Some(path) = wishes.license_file {
        let text = fs::read_to_string(path).map_err(|e| Error::io("reading", path, e))?;
        duties.files.push(Upload::text("LICENSE", text));
    } else if let Some((base, llama)) = llamas.first() {
        duties.files = agreement(base, llama, hub)?;
    } else if id.as_deref() == Some("apache-2.0") {
        duties.files.push(Upload::text("LICENSE", APACHE.into()));
    }
    if let Some((base, llama)) = llamas.first() {
        duties.files.retain(|file| file.path != "NOTICE");
        duties.files.push(Upload::text("NOTICE", llama.notice()));
        duties.display = Some(llama.display.into());
        duties.notes.push(format!(
            "{} was used to make this model. It is licensed under the {} Community License, whose text is in `LICENSE`; the attribution is in `NOTICE`. The acceptable use policy of the licence applies to this model too.",
            in_words(base),
            llama.name
        ));
    }
    if let (Some(base), Some(id)) = (lineage.bases.first(), &id)
        && llamas.is_empty()
        && base.repo().is_some()
    {
        duties.notes.push(format!(
            "The weights are a changed version of those of {}: all of the changes are described above. License: `{id}`.",
            in_words(base)
        ));
    }
    Ok(duties)
}

fn license(id: &str) -> License {
    License {
        id: id.to_string(),
        ..License::default()
    }
}

/// The licence of a model that something began with.
fn id_of(base: &Base, hub: &Licenses) -> Option<String> {
    if let Some(card) = &base.card {
        return Some(card.license.clone());
    }
    match &base.source {
        StudentSource::Hub { repo, .. } => {
            // what is Meta's stays under Meta's licence, whatever its card calls it
            by_name(repo).or_else(|| hub.id(RepoKind::Model, repo, base.revision()))
        }
        StudentSource::Folder(folder) => of_folder(folder),
        StudentSource::Random(_) => None,
    }
}

/// The licence of a local model: what its agreement or its place in the cache says, else its card.
fn of_folder(folder: &str) -> Option<String> {
    let read = |name: &str| fs::read_to_string(Path::new(folder).join(name)).ok();
    let texts = ["LICENSE", "LICENSE.txt", "LICENSE.md"];
    let agreement = texts.iter().find_map(|name| read(name)).map(|text| {
        let text = text.to_uppercase();
        let is_of = |llama: &&Llama| {
            text.contains(&format!("{} COMMUNITY LICENSE", llama.name.to_uppercase()))
        };
        LLAMAS.iter().rev().find(is_of).map(|l| l.id.to_string())
    });
    let cached = folder
        .split('/')
        .find_map(|part| part.strip_prefix("models--meta-llama--"))
        .and_then(|name| by_name(&format!("meta-llama/{name}")));
    let card = || front_matter(&read("README.md")?, "license");
    agreement.flatten().or(cached).or_else(card)
}

/// Of Meta's own repositories, whose names tell.
fn by_name(repo: &str) -> Option<String> {
    let name = repo.strip_prefix("meta-llama/")?.to_ascii_lowercase();
    let name = name.trim_start_matches("meta-");
    let version = name.strip_prefix("llama-")?;
    let ids = LLAMAS.iter().rev();
    let found = ids.map(|llama| llama.id).find(|id| {
        id.strip_prefix("llama")
            .is_some_and(|number| version.starts_with(&format!("{number}-")))
    });
    found.map(String::from)
}

/// The agreement, from where the base model is.
fn agreement(base: &Base, llama: &Llama, hub: &Licenses) -> Result<Vec<Upload>> {
    let texts: Vec<(String, String)> = match &base.source {
        StudentSource::Hub { repo, .. } => hub.texts(repo, base.revision()),
        StudentSource::Folder(folder) => ["LICENSE", "LICENSE.txt", "LICENSE.md", "USE_POLICY.md"]
            .iter()
            .filter_map(|name| {
                let text = fs::read_to_string(Path::new(folder).join(name)).ok()?;
                Some((name.to_string(), text))
            })
            .collect(),
        StudentSource::Random(_) => Vec::new(),
    };
    let (policies, agreements): (Vec<_>, Vec<_>) = texts
        .into_iter()
        .filter(|(name, _)| name != "NOTICE")
        .partition(|(name, _)| name == "USE_POLICY.md");
    let Some((_, text)) = agreements.into_iter().next() else {
        return Err(Error::input(format!(
            "the {} Community License has to be shipped with the model, and its text could not be read from {}",
            llama.name,
            in_words(base)
        ))
        .with_hint("give the file with `--license-file`, or `license_file` of `[publish]`"));
    };
    let mut files = vec![Upload::text("LICENSE", text)];
    files.extend(
        policies
            .into_iter()
            .map(|(name, text)| Upload::text(&name, text)),
    );
    Ok(files)
}

/// What the card of a folder that is pushed as it is says, and what follows from it.
///
/// # Errors
/// As [`duties`].
pub fn check_folder(repo: &str, folder: &Path, readme: Option<&str>, names: &[&str]) -> Result<()> {
    let id = readme.and_then(|text| front_matter(text, "license"));
    let base = readme.and_then(|text| front_matter(text, "base_model"));
    let named = base.as_deref().and_then(by_name);
    let Some(llama) = id
        .as_deref()
        .and_then(Llama::of)
        .or(named.as_deref().and_then(Llama::of))
    else {
        return Ok(());
    };
    llama.check_name(repo)?;
    for wanted in ["LICENSE", "NOTICE"] {
        let is_there = names
            .iter()
            .any(|name| name.to_ascii_uppercase().starts_with(wanted));
        if !is_there {
            return Err(Error::input(format!(
                "`{}` has no `{wanted}`, which the {} Community License wants beside the model",
                folder.display(),
                llama.name
            ))
            .with_hint(match wanted {
                "NOTICE" => format!("write a file `NOTICE`: {}", llama.notice().trim_end()),
                _ => "copy the text of the licence from the base model".to_string(),
            }));
        }
    }
    match readme.is_some_and(|text| text.contains(llama.display)) {
        true => Ok(()),
        false => Err(Error::input(format!(
            "the card in `{}` does not show \"{}\", which the {} Community License wants",
            folder.display(),
            llama.display,
            llama.name
        ))
        .with_hint("add the words to `README.md`")),
    }
}

/// A text of the YAML at the beginning of a card.
pub fn front_matter(card: &str, key: &str) -> Option<String> {
    let rest = card.trim_start_matches('\u{feff}').strip_prefix("---")?;
    let yaml = rest.split("\n---").next()?;
    let lines: Vec<&str> = yaml.lines().collect();
    let at = lines.iter().position(|line| {
        line.strip_prefix(key)
            .is_some_and(|rest| rest.trim_start().starts_with(':'))
    })?;
    let inline = lines[at].split_once(':')?.1;
    // a list of one stands on the next line
    let value = match inline.trim() {
        "" => lines.get(at + 1)?.trim().strip_prefix('-')?,
        value => value,
    };
    let value = value.split(" #").next().unwrap_or(value);
    let value = value.trim().trim_matches(['"', '\'', '[', ']']);
    (!value.is_empty()).then(|| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Stop;
    use crate::recipe::Method;
    use crate::recipe::card::Card;
    use crate::recipe::plan::model_source;

    fn lineage(models: &[&str]) -> Lineage {
        let base = |name: &&str| {
            let (source, card): (_, Option<Card>) = model_source(name).unwrap();
            Base {
                source,
                commit: None,
                card,
            }
        };
        Lineage {
            run: "r".into(),
            stage: "sft".into(),
            bases: models.iter().map(base).collect(),
            method: Method::Full,
            steps: Vec::new(),
            evals: Vec::new(),
        }
    }

    fn of(repo: &str, models: &[&str], wishes: &Wishes) -> Result<Duties> {
        let hub = Licenses::new(None, &Stop::default());
        duties(repo, &lineage(models), wishes, &hub)
    }

    #[test]
    fn apache_goes_with_its_text() {
        let done = of("you/x", &["qwen2.5-math-7b"], &Wishes::default()).unwrap();
        assert_eq!(done.license.unwrap().id, "apache-2.0");
        assert_eq!(done.files.len(), 1);
        assert!(done.notes[0].contains("changed version of those of Qwen/Qwen2.5-Math-7B"));
    }

    #[test]
    fn a_llama_is_named_noticed_and_shipped_with_its_agreement() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("L");
        fs::write(&text, "AGREEMENT").unwrap();
        let wishes = Wishes {
            license_file: text.to_str(),
            ..Wishes::default()
        };
        for (model, version) in [("llama-3.1-8b", "3.1"), ("llama-3.3-70b-instruct", "3.3")] {
            let done = of("you/Llama-x", &[model], &wishes).unwrap();
            assert_eq!(done.license.unwrap().id, format!("llama{version}"));
            assert_eq!(done.display.as_deref(), Some("Built with Llama"));
            let notice = format!(
                "Llama {version} is licensed under the Llama {version} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved.\n"
            );
            assert_eq!(
                done.files,
                [
                    Upload::text("LICENSE", "AGREEMENT".into()),
                    Upload::text("NOTICE", notice)
                ]
            );
        }
        let error = of("you/x", &["llama-3.1-8b"], &wishes).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("wants a name that begins with `Llama`"),
            "{error}"
        );
        // the weights of another, the outputs of a Llama
        let error = of("you/x", &["qwen2.5-math-7b", "llama-3.1-8b"], &wishes).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("wants a name that begins with `Llama`"),
            "{error}"
        );
        let error = of("you/Llama-x", &["llama-3.1-8b"], &Wishes::default()).unwrap_err();
        assert!(error.hint().unwrap().contains("--license-file"), "{error}");
        let wishes = Wishes {
            license: Some("mit"),
            ..wishes
        };
        let error = of("you/Llama-x", &["llama-3.1-8b"], &wishes).unwrap_err();
        assert!(
            error.to_string().contains("stays under `llama3.1`"),
            "{error}"
        );
    }

    #[test]
    fn metas_repositories_are_known_by_name() {
        for (repo, id) in [
            ("meta-llama/Llama-3.2-1B", Some("llama3.2")),
            ("meta-llama/Llama-3.3-70B-Instruct", Some("llama3.3")),
            ("meta-llama/Meta-Llama-3-8B", Some("llama3")),
            ("meta-llama/Llama-2-7b-hf", Some("llama2")),
            ("meta-llama/Llama-4-Scout-17B", Some("llama4")),
            ("you/Llama-3.2-1B", None),
        ] {
            assert_eq!(by_name(repo).as_deref(), id, "{repo}");
        }
    }

    #[test]
    fn a_folder_with_a_card_of_its_own_is_held_to_it() {
        let card = "---\nlicense: llama3.1\nbase_model:\n- meta-llama/Llama-3.1-8B\n---\n\nBuilt with Llama";
        let check = |repo: &str, names: &[&str], card: &str| {
            check_folder(repo, Path::new("m"), Some(card), names).map_err(|e| e.to_string())
        };
        let both = ["LICENSE", "NOTICE"];
        check("you/Llama-x", &both, card).unwrap();
        check("you/x", &[], "---\nlicense: mit\n---\n").unwrap();
        check("you/x", &[], "no card at all").unwrap();
        assert!(
            check("you/x", &both, card)
                .unwrap_err()
                .contains("begins with `Llama`")
        );
        assert!(
            check("you/Llama-x", &both[..1], card)
                .unwrap_err()
                .contains("has no `NOTICE`")
        );
        let silent = card.replace("Built with Llama", "");
        assert!(
            check("you/Llama-x", &both, &silent)
                .unwrap_err()
                .contains("does not show")
        );
        let by_base = "---\nlicense: other\nbase_model: \"meta-llama/Llama-3.1-8B\"\n---\n";
        assert!(check("you/x", &both, by_base).is_err());
        assert_eq!(
            front_matter(card, "base_model").as_deref(),
            Some("meta-llama/Llama-3.1-8B")
        );
        assert_eq!(
            front_matter("---\nlicense: [mit] # yes\n---", "license").as_deref(),
            Some("mit")
        );
    }
}
