//! What licences want of a published model: their texts beside it, notices, words on the card, the beginning of its name. A
//! push that breaks them is refused; what is not known, and what binds its users, is said on the card.
//!
//! What a model goes back to is found in [`super::publish_chain`]; what families of models want is in `recipe/terms.rs`.

use super::publish_chain::{Ancestor, Chain, Part, Place, called, shown};
use crate::hub::card::License;
use crate::hub::publish_files::Upload;
use crate::hub::publish_license::{Licenses, texts_of};
use crate::recipe::terms::Terms;
use crate::{Error, Result};
use std::fs;

/// The text of Apache-2.0, which most students come under.
const APACHE: &str = include_str!("../../LICENSE");

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
    /// Agreements want something of it.
    pub is_bound: bool,
    /// On the card, above everything.
    pub displays: Vec<&'static str>,
    /// On the card, a paragraph each.
    pub notes: Vec<String>,
    /// Told to whoever pushes.
    pub warnings: Vec<String>,
}

/// The duties of a model of this origin under this name.
///
/// # Errors
/// A name that a licence does not allow, outputs that may not be learnt from, another licence than the base model's, a text
/// that cannot be had.
pub fn duties(repo: &str, chain: &Chain, wishes: &Wishes, hub: &Licenses) -> Result<Duties> {
    let mut duties = Duties::default();
    let bound = bound(chain);
    let weights = bound.iter().find(|(one, _)| one.part == Part::Weights);
    for (ancestor, terms) in &bound {
        terms.check_name(repo)?;
        if ancestor.part == Part::Outputs {
            let mut own = bound.iter().filter(|(one, _)| one.part == Part::Weights);
            let has_own = own.any(|(_, own)| own.id == terms.id);
            terms.check_outputs(repo, &ancestor.name, has_own)?;
        }
    }
    let inherited = match weights {
        Some((_, terms)) => Some(license_of(terms)),
        None => chain.owner().and_then(|owner| owner.license.clone()),
    };
    if let (Some((ancestor, terms)), Some(wish)) = (weights, wishes.license)
        && wish != terms.id
        && (wish != "other" || terms.is_hub_id)
    {
        return Err(Error::input(format!(
            "`publish.license = \"{wish}\"`: what is trained from {} stays under `{}`",
            called(ancestor),
            terms.id
        ))
        .with_hint("leave the key out"));
    }
    duties.license = match wishes.license {
        Some(wish) => inherited
            .clone()
            .filter(|known| known.id == wish || known.name.as_deref() == Some(wish))
            .or_else(|| {
                Some(License {
                    id: wish.to_string(),
                    ..License::default()
                })
            }),
        None => inherited.clone(),
    };
    texts(chain, &bound, wishes, hub, &mut duties)?;
    notes(chain, &bound, &mut duties);
    Ok(duties)
}

/// The ancestors whose makers have terms of their own, each terms once for weights and once for outputs.
fn bound(chain: &Chain) -> Vec<(&Ancestor, &'static Terms)> {
    let mut bound: Vec<(&Ancestor, &'static Terms)> = Vec::new();
    for ancestor in &chain.ancestors {
        if let Some(terms) = ancestor.terms
            && !bound
                .iter()
                .any(|(known, own)| known.part == ancestor.part && own.id == terms.id)
        {
            bound.push((ancestor, terms));
        }
    }
    // weights first: they say under which licence the result is
    bound.sort_by_key(|(ancestor, _)| ancestor.part == Part::Outputs);
    bound
}

fn license_of(terms: &Terms) -> License {
    match terms.is_hub_id {
        true => License {
            id: terms.id.into(),
            ..License::default()
        },
        false => License {
            id: "other".into(),
            name: Some(terms.id.into()),
            link: None,
        },
    }
}

/// `LICENSE` of the result, the agreements of the others beside it, `NOTICE`.
fn texts(
    chain: &Chain,
    bound: &[(&Ancestor, &'static Terms)],
    wishes: &Wishes,
    hub: &Licenses,
    duties: &mut Duties,
) -> Result<()> {
    let given = wishes
        .license_file
        .map(|path| fs::read_to_string(path).map_err(|e| Error::io("reading", path, e)));
    let given = given.transpose()?;
    let given_terms = given.as_deref().and_then(Terms::of_text);
    let shipped: Vec<(&Ancestor, &'static Terms)> = bound
        .iter()
        .filter(|(one, terms)| one.part == Part::Weights || terms.ships_with_outputs)
        .copied()
        .collect();
    let owner = chain.owner();
    let owner_terms = owner.and_then(|owner| owner.terms);
    let owner_texts = owner.map(|owner| texts_at(owner, hub)).unwrap_or_default();
    let agreement = |ancestor: &Ancestor, terms: &'static Terms| {
        agreement(chain, terms, hub).ok_or_else(|| {
            let what = match &ancestor.place {
                Place::Folder(folder) => format!(
                    "`{}` has no `LICENSE`, which the {} wants beside the model",
                    folder.display(),
                    terms.name
                ),
                _ => format!(
                    "the {} has to be shipped with the model, and its text could not be read from {}",
                    terms.name, ancestor.name
                ),
            };
            Error::input(what)
                .with_hint("give the file with `--license-file`, or `license_file` of `[publish]`")
        })
    };
    // an agreement of a teacher is no licence of the student
    let is_beside = given_terms.is_some_and(|terms| {
        owner_terms != Some(terms) && shipped.iter().any(|(_, own)| *own == terms)
    });
    let own = match (&given, owner.zip(owner_terms)) {
        (Some(text), _) if !is_beside => Some(text.clone()),
        (_, Some((owner, terms))) => Some(agreement(owner, terms)?),
        (_, None) => {
            let of_base = license_text(&owner_texts);
            let is_theirs = wishes.license.is_none_or(|wish| says(owner, wish));
            let of_base = match owner.and_then(|owner| owner.license.as_ref()) {
                Some(license) if !is_theirs => {
                    // a licence of the user's choice does not end that of what was changed
                    let text = of_base.or_else(|| (license.id == "apache-2.0").then(apache));
                    let name = format!("LICENSE-{}", shown(license).to_uppercase());
                    duties
                        .files
                        .extend(text.map(|text| Upload::text(&name, text)));
                    None
                }
                _ => of_base,
            };
            let id = duties.license.as_ref().map(|license| license.id.as_str());
            of_base.or_else(|| (id == Some("apache-2.0")).then(apache))
        }
    };
    if let Some(license) = &mut duties.license
        && license.id == "other"
    {
        let page = owner.and_then(page);
        license.link = match (&own, &license.link) {
            (Some(_), _) => Some("LICENSE".into()),
            // a link within the base's repository is none in this one
            (None, Some(link)) if link.contains("://") => Some(link.clone()),
            (None, link) => {
                let file = link.clone().unwrap_or_else(|| "LICENSE".into());
                page.map(|page| format!("{page}/{file}"))
            }
        };
    }
    duties
        .files
        .extend(own.map(|text| Upload::text("LICENSE", text)));
    for (ancestor, terms) in &shipped {
        let path = terms.file();
        if owner_terms == Some(*terms) || duties.files.iter().any(|file| file.path == path) {
            continue;
        }
        let text = match &given {
            Some(text) if given_terms == Some(*terms) => text.clone(),
            _ => agreement(ancestor, terms)?,
        };
        duties.files.push(Upload::text(&path, text));
    }
    let policies = shipped.iter().flat_map(|(one, _)| texts_at(one, hub));
    let mut policies = policies.filter(|(name, _)| name == "USE_POLICY.md");
    if let Some((name, text)) = policies.next() {
        duties.files.push(Upload::text(&name, text));
    }
    let mut notice = owner_texts
        .into_iter()
        .find(|(name, _)| name.to_uppercase().starts_with("NOTICE"))
        .map(|(_, text)| text)
        .unwrap_or_default();
    for (_, terms) in &shipped {
        if !notice.contains(terms.notice) {
            if !notice.is_empty() && !notice.ends_with('\n') {
                notice.push('\n');
            }
            notice += terms.notice;
            notice.push('\n');
        }
    }
    if !notice.is_empty() {
        duties.files.push(Upload::text("NOTICE", notice));
    }
    duties.is_bound |= !bound.is_empty();
    for (_, terms) in bound {
        let shown = terms.display.filter(|d| !duties.displays.contains(d));
        duties.displays.extend(shown);
    }
    Ok(())
}

fn apache() -> String {
    APACHE.into()
}

/// The text of an agreement, from any ancestor under it.
fn agreement(chain: &Chain, terms: &'static Terms, hub: &Licenses) -> Option<String> {
    let under = chain
        .ancestors
        .iter()
        .filter(|one| one.terms == Some(terms));
    let texts: Vec<String> = under
        .filter_map(|one| license_text(&texts_at(one, hub)))
        .collect();
    let is_it = |text: &&String| Terms::of_text(text) == Some(terms);
    // one that does not say its name, but that its maker ships
    let first = || texts.first().filter(|text| Terms::of_text(text).is_none());
    texts.iter().find(is_it).or_else(first).cloned()
}

/// Whether the base model's own card says so too.
fn says(base: Option<&Ancestor>, wish: &str) -> bool {
    let license = base.and_then(|base| base.license.as_ref());
    license.is_some_and(|license| license.id == wish || license.name.as_deref() == Some(wish))
}

fn texts_at(ancestor: &Ancestor, hub: &Licenses) -> Vec<(String, String)> {
    match &ancestor.place {
        Place::Hub { repo, revision } => hub.texts(repo, revision.as_deref()),
        Place::Folder(folder) => texts_of(folder),
        Place::Nowhere => Vec::new(),
    }
}

fn license_text(texts: &[(String, String)]) -> Option<String> {
    let found = texts.iter().find(|(name, _)| name.starts_with("LICENSE"));
    found.map(|(_, text)| text.clone())
}

/// Where the files of an ancestor can be read by others.
fn page(ancestor: &Ancestor) -> Option<String> {
    match &ancestor.place {
        Place::Hub { repo, revision } => Some(format!(
            "https://huggingface.co/{repo}/blob/{}",
            revision.as_deref().unwrap_or("main")
        )),
        Place::Folder(_) | Place::Nowhere => None,
    }
}

/// What the card says of all this.
fn notes(chain: &Chain, bound: &[(&Ancestor, &'static Terms)], duties: &mut Duties) {
    let has = |duties: &Duties, path: &str| duties.files.iter().any(|file| file.path == path);
    for (ancestor, terms) in bound {
        let used = match ancestor.part {
            Part::Weights => "was used to make this model",
            Part::Outputs => "wrote or judged what this model learnt from",
        };
        let mut note = match ancestor.is_itself {
            true => format!("This model is licensed under the {}", terms.name),
            false => format!(
                "{} {used}. It is licensed under the {}",
                called(ancestor),
                terms.name
            ),
        };
        let file = terms.file();
        let ships = ancestor.part == Part::Weights || terms.ships_with_outputs;
        note += &match (ships, has(duties, &file)) {
            (true, true) => format!(
                ", whose text is in `{file}`; the attribution is in `NOTICE`. The acceptable use policy of the licence applies to this model too."
            ),
            (true, false) => ", whose text is in `LICENSE`; the attribution is in `NOTICE`. The acceptable use policy of the licence applies to this model too.".into(),
            (false, _) => ".".into(),
        };
        if terms.non_commercial {
            note += " It allows research and evaluation, no commercial use.";
            duties.warnings.push(format!(
                "{} is under the {}, which allows no commercial use",
                ancestor.name, terms.name
            ));
        }
        duties.notes.push(note);
    }
    let has_weights = bound.iter().any(|(one, _)| one.part == Part::Weights);
    if let (Some(base), Some(license)) = (chain.owner(), &duties.license)
        && matches!(base.place, Place::Hub { .. })
        && !has_weights
    {
        let mut note = format!(
            "The weights are a changed version of those of {}: all of the changes are described above. License: `{}`",
            base.name,
            shown(license)
        );
        note += &match (has(duties, "LICENSE"), page(base)) {
            (false, Some(page)) => {
                let page = license
                    .link
                    .clone()
                    .unwrap_or(page.replace("/blob/", "/tree/"));
                format!("; its text: `{page}`.")
            }
            (true, _) => ", whose text is in `LICENSE`.".to_string(),
            (false, None) => ".".to_string(),
        };
        duties.notes.push(note);
    }
    for ancestor in &chain.ancestors {
        if let Some(license) = &ancestor.license
            && ancestor.part == Part::Weights
            && ancestor.terms.is_none()
            && let Some(limit) = limit(license)
        {
            duties.notes.push(format!(
                "{} is under `{}`, which {limit}.",
                called(ancestor),
                shown(license)
            ));
            duties.warnings.push(format!(
                "{} is under `{}`, which {limit}",
                ancestor.name,
                shown(license)
            ));
        }
        if ancestor.is_unknown {
            let name = called(ancestor);
            let note = match ancestor.place {
                Place::Hub { .. } => format!("The licence of {name} could not be read: see there."),
                _ => format!("The licence of {name} is not known."),
            };
            duties.notes.push(note);
            duties.warnings.push(format!(
                "the licence of {name} is not known: its card is not in the cache and cannot be read"
            ));
        }
    }
    for data in &chain.data {
        let limited = data.licenses.iter().flatten();
        for (license, limit) in limited.filter_map(|one| Some((one, limit(one)?))) {
            let (source, id) = (&data.source, shown(license));
            duties.notes.push(format!(
                "The data set {source} is under `{id}`, which {limit}."
            ));
            duties.warnings.push(format!(
                "the data set {source} is under `{id}`, which {limit}"
            ));
        }
    }
}

/// What a licence does not allow, of those that a model's users have to know.
pub fn limit(license: &License) -> Option<&'static str> {
    let id = shown(license).to_ascii_lowercase();
    let words: Vec<&str> = id.split(['-', '_', ' ']).collect();
    let has = |word: &str| words.contains(&word);
    let is_research = has("research") || has("noncommercial") || id.contains("non-commercial");
    match (has("nc") || is_research, has("nd")) {
        (true, true) => Some("allows no commercial use and no changed versions"),
        (true, false) => Some("allows no commercial use"),
        (false, true) => Some("allows no changed versions"),
        (false, false) => None,
    }
}

#[cfg(test)]
#[path = "publish_license_tests.rs"]
mod tests;
