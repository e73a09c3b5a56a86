//! What a published model goes back to: the models that its base was made of, and those whose outputs it learnt from, with
//! the licence of each, as far as cards, files and names tell; and the licences of the data sets it learnt from.
//!
//! A link that cannot be followed is kept as one that is not known. What follows from the licences is in
//! [`super::publish_license`].

use super::publish_lineage::{Base, Lineage, RunPlan, SourceUse};
use crate::hub::card::License;
use crate::hub::card_facts::CardFacts;
use crate::hub::publish_files::RepoKind;
use crate::hub::publish_license::{Licenses, texts_of};
use crate::recipe::plan::StudentSource;
use crate::recipe::shipped;
use crate::recipe::terms::{Terms, made_of};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Longer chains are none.
const MAX_LINKS: usize = 32;

/// What of a model is in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Weights,
    /// It wrote, or judged, what was learnt from.
    Outputs,
}

/// A model, or a data set, that is in the published one.
#[derive(Clone, Debug)]
pub struct Ancestor {
    /// In words.
    pub name: String,
    pub place: Place,
    pub part: Part,
    /// It is the model that was trained, not one further back.
    pub is_base: bool,
    /// What its card or its files say.
    pub license: Option<License>,
    /// Those of its maker, where there are any.
    pub terms: Option<&'static Terms>,
    /// The model that was made of it.
    pub made_into: Option<String>,
    /// Nothing can be said about its licence.
    pub is_unknown: bool,
    /// It is what is pushed, a folder that no run made.
    pub is_itself: bool,
}

/// Where an ancestor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Hub {
        repo: String,
        revision: Option<String>,
    },
    Folder(PathBuf),
    /// A data set, or a model of which only the name is known.
    Nowhere,
}

/// A data set of the Hub, with what its card says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataLicense {
    pub source: String,
    pub revision: Option<String>,
    /// None where the card is not at hand; empty where it names no licence.
    pub licenses: Option<Vec<License>>,
}

impl DataLicense {
    /// The licences, in words.
    pub fn in_words(&self) -> String {
        match self.licenses.as_deref() {
            None => "not known".into(),
            Some([]) => "not stated".into(),
            Some(all) => all.iter().map(shown).collect::<Vec<_>>().join(", "),
        }
    }
}

/// A licence as people call it.
pub fn shown(license: &License) -> String {
    license.name.clone().unwrap_or_else(|| license.id.clone())
}

/// Everything that is in a model.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// Those nearest to it first.
    pub ancestors: Vec<Ancestor>,
    pub data: Vec<DataLicense>,
}

impl Chain {
    /// Follows the lineage of a stage as far as it goes.
    pub fn of(lineage: &Lineage, hub: &Licenses) -> Self {
        let mut walk = Walk {
            hub,
            chain: Self::default(),
            seen: BTreeSet::new(),
            links: Vec::new(),
        };
        walk.lineage(lineage, Part::Weights, true);
        walk.run();
        walk.chain
    }

    /// Of a model folder that is no run. `license` is what the user says of it.
    pub fn of_folder(folder: &Path, license: Option<&str>, hub: &Licenses) -> Self {
        let place = Place::Folder(folder.to_path_buf());
        let mut walk = Walk {
            hub,
            chain: Self::default(),
            seen: BTreeSet::new(),
            links: vec![Link {
                card: license.map(|id| (id.to_string(), false)),
                ..Link::new(place, Part::Weights, true)
            }],
        };
        walk.run();
        // of the folder itself the push says so
        if let Some(own) = walk.chain.ancestors.iter_mut().find(|one| one.is_base) {
            own.is_unknown = false;
            own.is_itself = true;
        }
        walk.chain
    }

    /// The nearest model whose licence is that of the weights; the model that was trained, where none is known.
    pub fn owner(&self) -> Option<&Ancestor> {
        let mut weights = self
            .ancestors
            .iter()
            .filter(|one| one.part == Part::Weights);
        let known = weights.find(|one| one.license.is_some() || one.terms.is_some());
        known.or_else(|| self.ancestors.iter().find(|one| one.is_base))
    }

    /// The nearest model on the Hub whose weights are in it.
    pub fn repo(&self) -> Option<&str> {
        let mut weights = self
            .ancestors
            .iter()
            .filter(|one| one.part == Part::Weights);
        weights.find_map(|one| match &one.place {
            Place::Hub { repo, .. } => Some(repo.as_str()),
            _ => None,
        })
    }
}

/// A model that is still to be looked at.
struct Link {
    place: Place,
    part: Part,
    is_base: bool,
    made_into: Option<String>,
    /// What the card under `models/` says: `license`, and whether that is the last word.
    card: Option<(String, bool)>,
}

impl Link {
    fn new(place: Place, part: Part, is_base: bool) -> Self {
        Self {
            place,
            part,
            is_base,
            made_into: None,
            card: None,
        }
    }
}

struct Walk<'a> {
    hub: &'a Licenses,
    chain: Chain,
    seen: BTreeSet<String>,
    links: Vec<Link>,
}

impl Walk<'_> {
    fn lineage(&mut self, lineage: &Lineage, part: Part, is_own: bool) {
        for (i, base) in lineage.bases.iter().enumerate() {
            let is_trained = i == 0 && lineage.has_weights;
            let part = if is_trained { part } else { Part::Outputs };
            self.links.extend(link(base, part, is_own && is_trained));
        }
        for judge in &lineage.judges {
            let place = match judge {
                StudentSource::Hub { repo, .. } if is_model_name(repo) => hub_place(repo),
                StudentSource::Folder(folder) => Place::Folder(folder.into()),
                // a name that only its endpoint knows
                _ => continue,
            };
            self.links.push(Link::new(place, Part::Outputs, false));
        }
        for source in lineage.steps.iter().flat_map(|step| &step.sources) {
            self.source(source);
        }
    }

    /// What a stage read: a data set of the Hub, or a file that another run left.
    fn source(&mut self, source: &SourceUse) {
        if source.is_on_hub {
            self.data(source);
            return;
        }
        if source.source.starts_with('@') || source.source.contains(':') {
            return;
        }
        let Ok(path) = fs::canonicalize(&source.source) else {
            return;
        };
        self.earlier_run(&path, Part::Outputs);
    }

    fn data(&mut self, source: &SourceUse) {
        let (repo, revision) = match source.source.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (source.source.as_str(), None),
        };
        let revision = source.revision.as_deref().or(revision);
        let is_known = |known: &DataLicense| known.source == source.source;
        if self.chain.data.iter().any(is_known) {
            return;
        }
        let card = self.hub.card(RepoKind::Dataset, repo, revision);
        let licenses = card.map(|card| card.licenses);
        for license in licenses.iter().flatten() {
            if let Some(terms) = Terms::of(&license.id, license.name.as_deref()) {
                self.chain.ancestors.push(Ancestor {
                    name: format!("the data set {}", source.source),
                    place: Place::Nowhere,
                    part: Part::Outputs,
                    is_base: false,
                    license: Some(license.clone()),
                    terms: Some(terms),
                    made_into: None,
                    is_unknown: false,
                    is_itself: false,
                });
            }
        }
        self.chain.data.push(DataLicense {
            source: source.source.clone(),
            revision: source.revision.clone(),
            licenses,
        });
    }

    /// What led to a file or folder that lies in a stage of another run; whether it does.
    fn earlier_run(&mut self, path: &Path, part: Part) -> bool {
        let mut stage = Some(path);
        for _ in 0..3 {
            let (Some(dir), Some(root)) = (stage, stage.and_then(Path::parent)) else {
                break;
            };
            let name = dir.file_name().and_then(|name| name.to_str());
            if let (true, Some(name)) = (root.join("plan.json").is_file(), name) {
                let is_new = self.seen.insert(format!("{part:?} {}", dir.display()));
                let plan = RunPlan::read(root).ok().filter(|_| is_new);
                if let Some(lineage) = plan.and_then(|plan| plan.lineage(root, name).ok()) {
                    self.lineage(&lineage, part, false);
                }
                return true;
            }
            stage = Some(root);
        }
        false
    }

    fn run(&mut self) {
        // the nearest first
        let mut at = 0;
        while at < self.links.len() && self.chain.ancestors.len() < MAX_LINKS {
            let Link {
                place,
                part,
                is_base,
                made_into,
                card,
            } = std::mem::replace(
                &mut self.links[at],
                Link::new(Place::Nowhere, Part::Outputs, false),
            );
            at += 1;
            let id = format!("{part:?} {place:?}");
            if place == Place::Nowhere || !self.seen.insert(id) {
                continue;
            }
            let found = match &place {
                Place::Hub { repo, revision } => self.of_repo(repo, revision.as_deref(), card),
                Place::Folder(folder) => self.of_folder(folder, part, card),
                Place::Nowhere => continue,
            };
            let name = match &place {
                Place::Hub { repo, .. } => repo.clone(),
                Place::Folder(folder) => format!(
                    "local model `{}`",
                    folder.file_name().unwrap_or_default().to_string_lossy()
                ),
                Place::Nowhere => continue,
            };
            for base in found.bases {
                let next = Link::new(hub_place(&base), part, false);
                self.links.push(Link {
                    made_into: Some(name.clone()),
                    ..next
                });
            }
            self.chain.ancestors.push(Ancestor {
                is_unknown: found.license.is_none() && found.terms.is_none() && !found.is_ours,
                name,
                place,
                part,
                is_base,
                license: found.license,
                terms: found.terms,
                made_into,
                is_itself: false,
            });
        }
        let num_left = self.links.len() - at.min(self.links.len());
        if num_left > 0 {
            self.chain.ancestors.push(Ancestor {
                name: format!("{num_left} more models"),
                place: Place::Nowhere,
                part: Part::Weights,
                is_base: false,
                license: None,
                terms: None,
                made_into: None,
                is_unknown: true,
                is_itself: false,
            });
        }
    }

    fn of_repo(&self, repo: &str, revision: Option<&str>, card: Option<(String, bool)>) -> Found {
        let by_name = Terms::of_model(repo);
        let known_base = made_of(repo).map(String::from);
        if let Some((license, true)) = &card {
            return Found {
                license: Some(of_id(license)),
                terms: by_name.or_else(|| Terms::of(license, None)),
                bases: known_base.into_iter().collect(),
                is_ours: false,
            };
        }
        let facts = self.hub.card(RepoKind::Model, repo, revision);
        let facts = facts.unwrap_or_default();
        let said = facts.licenses.first().cloned();
        let license = card.map(|(license, _)| of_id(&license)).or(said);
        let of_license = license
            .as_ref()
            .and_then(|license| Terms::of(&license.id, license.name.as_deref()));
        // what is Meta's stays under Meta's licence, whatever its card calls it
        let is_metas = repo.starts_with("meta-llama/");
        let terms = match is_metas {
            true => by_name.or(of_license),
            false => of_license.or(by_name),
        };
        let mut bases = facts.bases;
        if let Some(base) = known_base
            && !bases.contains(&base)
        {
            bases.push(base);
        }
        Found {
            license,
            terms,
            bases,
            is_ours: false,
        }
    }

    fn of_folder(&mut self, folder: &Path, part: Part, card: Option<(String, bool)>) -> Found {
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let json = |name: &str| -> Value { serde_json::from_str(&read(name)).unwrap_or_default() };
        let texts = texts_of(folder);
        let agreement = texts
            .iter()
            .filter(|(name, _)| name.starts_with("LICENSE"))
            .find_map(|(_, text)| Terms::of_text(text));
        let facts = CardFacts::of_text(&read("README.md"));
        let mut bases = facts.bases;
        // where the cache has it from
        let path = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf());
        let cached = path.iter().find_map(|part| {
            let (owner, name) = part.to_str()?.strip_prefix("models--")?.split_once("--")?;
            Some(format!("{owner}/{name}"))
        });
        let before = json("config.json")["_name_or_path"]
            .as_str()
            .map(String::from);
        let adapted = json("adapter_config.json")["base_model_name_or_path"]
            .as_str()
            .map(String::from);
        let named = [cached, before, adapted];
        bases.extend(
            named
                .into_iter()
                .flatten()
                .filter(|name| is_repo_name(name)),
        );
        let is_ours = self.earlier_run(&path, part);
        let license = card
            .map(|(license, _)| of_id(&license))
            .or_else(|| facts.licenses.first().cloned());
        let of_license = license
            .as_ref()
            .and_then(|license| Terms::of(&license.id, license.name.as_deref()));
        Found {
            terms: agreement.or(of_license),
            license,
            is_ours: is_ours || !bases.is_empty(),
            bases,
        }
    }
}

/// What was found out about a model.
struct Found {
    license: Option<License>,
    terms: Option<&'static Terms>,
    bases: Vec<String>,
    /// It says itself what it was made of: its licence is that.
    is_ours: bool,
}

fn of_id(id: &str) -> License {
    License {
        id: id.to_string(),
        ..License::default()
    }
}

fn link(base: &Base, part: Part, is_base: bool) -> Option<Link> {
    let place = match &base.source {
        StudentSource::Hub { repo, .. } => Place::Hub {
            repo: repo.clone(),
            revision: base.revision().map(String::from),
        },
        StudentSource::Folder(folder) => Place::Folder(folder.into()),
        StudentSource::Random(_) => return None,
    };
    let card = base.card.as_ref().map(|card| {
        let is_shipped = shipped::card(&card.name).is_some();
        (card.license.clone(), is_shipped)
    });
    Some(Link {
        card,
        ..Link::new(place, part, is_base)
    })
}

fn hub_place(repo: &str) -> Place {
    let (repo, revision) = match repo.split_once('@') {
        Some((repo, revision)) => (repo, Some(revision.to_string())),
        None => (repo, None),
    };
    Place::Hub {
        repo: repo.to_string(),
        revision,
    }
}

/// `owner/name`, and no path that is there.
pub fn is_repo_name(name: &str) -> bool {
    let (repo, _) = name.split_once('@').unwrap_or((name, ""));
    crate::recipe::publish::check_repo("", repo).is_ok() && !Path::new(name).exists()
}

fn is_model_name(name: &str) -> bool {
    is_repo_name(name) || Terms::of_model(name).is_some() || made_of(name).is_some()
}

/// What an ancestor is called where a licence speaks of it.
pub fn called(ancestor: &Ancestor) -> String {
    match &ancestor.made_into {
        Some(made) if ancestor.part == Part::Weights => {
            format!("{} (of which {made} was made)", ancestor.name)
        }
        _ => ancestor.name.clone(),
    }
}
