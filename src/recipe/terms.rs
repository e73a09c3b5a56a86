//! What the makers of model families want of everything that is made of their models: Meta's Llama licences and Qwen's own.
//! By the licence's id, or by a model's name where its card is silent or says less than its weights owe.
//!
//! How a push meets these terms is in `pipeline/publish_license.rs`; what it follows is in `pipeline/publish_chain.rs`.

use super::publish::check_prefix;
use crate::{Error, Result};

/// The licence of a family of models, as far as it binds what is made of them.
#[derive(Debug, PartialEq, Eq)]
pub struct Terms {
    /// `license` of a card, or `license_name` where that is `other`.
    pub id: &'static str,
    /// As the agreement calls itself.
    pub name: &'static str,
    /// `id` is one that the Hub knows; else it is a `license_name`.
    pub is_hub_id: bool,
    /// What the Notice file has to say.
    pub notice: &'static str,
    /// What the card has to show.
    pub display: Option<&'static str>,
    /// What the name has to begin with, also where only outputs were learnt from.
    pub prefix: Option<&'static str>,
    /// Outputs may improve no other models than the family's own.
    pub keeps_outputs: bool,
    pub non_commercial: bool,
    /// The agreement goes along also where only outputs were learnt from.
    pub ships_with_outputs: bool,
}

macro_rules! llama {
    ($id:literal, $model:literal, $display:expr, $prefix:expr, $keeps_outputs:literal) => {
        Terms {
            id: $id,
            name: concat!($model, " Community License"),
            is_hub_id: true,
            notice: concat!(
                $model,
                " is licensed under the ",
                $model,
                " Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
            ),
            display: $display,
            prefix: $prefix,
            keeps_outputs: $keeps_outputs,
            non_commercial: false,
            ships_with_outputs: true,
        }
    };
}

macro_rules! qwen {
    ($id:literal, $name:literal, $non_commercial:literal) => {
        Terms {
            id: $id,
            name: $name,
            is_hub_id: false,
            notice: concat!(
                "Qwen is licensed under the ",
                $name,
                ", Copyright (c) Alibaba Cloud. All Rights Reserved."
            ),
            display: Some("Built with Qwen"),
            prefix: None,
            keeps_outputs: false,
            non_commercial: $non_commercial,
            ships_with_outputs: false,
        }
    };
}

const BUILT: Option<&str> = Some("Built with Llama");
const LLAMA: Option<&str> = Some("Llama");

static ALL: [Terms; 8] = [
    Terms {
        id: "llama2",
        name: "LLAMA 2 Community License",
        is_hub_id: true,
        notice: "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights Reserved.",
        display: None,
        prefix: None,
        keeps_outputs: true,
        non_commercial: false,
        ships_with_outputs: true,
    },
    llama!(
        "llama3",
        "Meta Llama 3",
        Some("Built with Meta Llama 3"),
        Some("Llama-3"),
        true
    ),
    llama!("llama3.1", "Llama 3.1", BUILT, LLAMA, false),
    llama!("llama3.2", "Llama 3.2", BUILT, LLAMA, false),
    llama!("llama3.3", "Llama 3.3", BUILT, LLAMA, false),
    llama!("llama4", "Llama 4", BUILT, LLAMA, false),
    qwen!("qwen-research", "Qwen RESEARCH LICENSE AGREEMENT", true),
    qwen!("qwen", "Qwen LICENSE AGREEMENT", false),
];

/// Models whose name and card say nothing of the licence that their weights came under, by the beginning of their name:
/// copies and conversions keep it. With the model that they were made of.
const MADE_OF: [(&str, &str); 7] = [
    ("deepseek-r1-distill-llama-8b", "meta-llama/Llama-3.1-8B"),
    (
        "deepseek-r1-distill-llama-70b",
        "meta-llama/Llama-3.3-70B-Instruct",
    ),
    ("deepseek-r1-distill-qwen-1.5b", "Qwen/Qwen2.5-Math-1.5B"),
    ("deepseek-r1-distill-qwen-7b", "Qwen/Qwen2.5-Math-7B"),
    ("deepseek-r1-distill-qwen-14b", "Qwen/Qwen2.5-14B"),
    ("deepseek-r1-distill-qwen-32b", "Qwen/Qwen2.5-32B"),
    ("codellama-", "meta-llama/Llama-2-7b-hf"),
];

impl Terms {
    /// Of a card's `license`, with its `license_name`.
    pub fn of(license: &str, license_name: Option<&str>) -> Option<&'static Self> {
        if license != "other" {
            return ALL
                .iter()
                .find(|terms| terms.is_hub_id && terms.id == license);
        }
        let name = license_name?.to_ascii_lowercase();
        let by_id = ALL.iter().find(|terms| terms.id == name);
        by_id.or_else(|| ALL.iter().find(|terms| Some(terms.id) == llama_of(&name)))
    }

    /// Of the text of an agreement.
    pub fn of_text(text: &str) -> Option<&'static Self> {
        let text = text.to_uppercase();
        // the latest first: an agreement speaks of itself, never of later ones
        ALL.iter()
            .rev()
            .find(|terms| text.contains(&terms.name.to_uppercase()))
    }

    /// Of a model by its name alone. A model that Llama is part of says so in its name, whoever made it; Qwen's larger and
    /// smaller sizes have licences of their own.
    pub fn of_model(repo: &str) -> Option<&'static Self> {
        let (owner, name) = repo.split_once('/').unwrap_or(("", repo));
        let name = name.to_ascii_lowercase();
        if owner.eq_ignore_ascii_case("qwen") {
            let id = match name.strip_prefix("qwen2.5-") {
                Some(rest) if says(rest, "3b") => "qwen-research",
                Some(rest) if says(rest, "72b") => "qwen",
                _ => return None,
            };
            return ALL.iter().find(|terms| terms.id == id);
        }
        let id = llama_of(&name)?;
        ALL.iter().find(|terms| terms.id == id)
    }

    /// That the name begins as the licence wants.
    ///
    /// # Errors
    /// It does not.
    pub fn check_name(&self, repo: &str) -> Result<()> {
        match self.prefix {
            Some(prefix) => check_prefix(repo, prefix),
            None => Ok(()),
        }
    }

    /// That what was trained on outputs of `teacher` may be published. `is_own`: it was made of a model of this family.
    ///
    /// # Errors
    /// It may not.
    pub fn check_outputs(&self, repo: &str, teacher: &str, is_own: bool) -> Result<()> {
        if !self.keeps_outputs || is_own {
            return Ok(());
        }
        Err(Error::input(format!(
            "`{repo}` learns from outputs of {teacher}, and the {} does not allow them to improve any other model",
            self.name
        ))
        .with_hint("take another teacher's traces (Llama 3.1 and later allow it), or train a model of the same family"))
    }

    /// The file that the agreement is shipped as beside another licence.
    pub fn file(&self) -> String {
        let id = self.id.to_uppercase().replace("LLAMA", "LLAMA-");
        format!("LICENSE-{id}")
    }
}

/// The terms that hold for a model by its name: its own, and those of the model that it is known to be made of.
pub fn known(repo: &str) -> Vec<&'static Terms> {
    let names = [Some(repo), made_of(repo)];
    names
        .into_iter()
        .flatten()
        .filter_map(Terms::of_model)
        .collect()
}

/// The model that a known one was made of, where its own card does not say it.
pub fn made_of(repo: &str) -> Option<&'static str> {
    let name = repo.rsplit('/').next()?.to_ascii_lowercase();
    let known = MADE_OF
        .iter()
        .find(|(start, _)| match name.strip_prefix(start) {
            Some(rest) => start.ends_with('-') || !rest.starts_with(|c: char| c.is_alphanumeric()),
            None => false,
        });
    known.map(|(_, base)| *base)
}

/// Whether one of the words of a name is this one.
fn says(name: &str, word: &str) -> bool {
    name.split(['-', '_']).any(|part| part == word)
}

/// The licence's id of a name with `llama` and a version in it: `Meta-Llama-3-8B`, `Hermes-3-Llama-3.1-8B`, `Llama-3_3-x`.
fn llama_of(name: &str) -> Option<&'static str> {
    let at = name
        .match_indices("llama")
        .map(|(at, _)| at)
        .find(|at| !name[..*at].ends_with(|c: char| c.is_alphanumeric()))?;
    let rest = name[at + "llama".len()..].trim_start_matches(['-', '_', ' ']);
    let known = [
        ("llama3.1", ["3.1", "3_1"]),
        ("llama3.2", ["3.2", "3_2"]),
        ("llama3.3", ["3.3", "3_3"]),
        ("llama2", ["2", "2"]),
        ("llama3", ["3", "3"]),
        ("llama4", ["4", "4"]),
    ];
    let is_version = |number: &str| {
        rest.strip_prefix(number)
            .is_some_and(|after| !after.starts_with(|c: char| c.is_alphanumeric() || c == '.'))
    };
    known
        .into_iter()
        .find(|(_, numbers)| numbers.iter().any(|number| is_version(number)))
        .map(|(id, _)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_known_by_the_names_of_their_models() {
        for (repo, id) in [
            ("meta-llama/Llama-3.2-1B", Some("llama3.2")),
            ("meta-llama/Llama-3.3-70B-Instruct", Some("llama3.3")),
            ("meta-llama/Meta-Llama-3-8B", Some("llama3")),
            ("meta-llama/Meta-Llama-3.1-8B", Some("llama3.1")),
            ("meta-llama/Llama-2-7b-hf", Some("llama2")),
            ("meta-llama/Llama-4-Scout-17B", Some("llama4")),
            ("unsloth/llama-3-8b-bnb-4bit", Some("llama3")),
            ("nvidia/Llama-3_3-Nemotron-Super-49B", Some("llama3.3")),
            ("NousResearch/Hermes-3-Llama-3.1-8B", Some("llama3.1")),
            ("you/Llama3-x", Some("llama3")),
            ("TinyLlama/TinyLlama-1.1B", None),
            ("openlm-research/open_llama_3b", None),
            ("huggyllama/llama-7b", None),
            ("you/Llama-R1-8B", None),
            ("Qwen/Qwen2.5-3B-Instruct", Some("qwen-research")),
            ("Qwen/Qwen2.5-Coder-3B", Some("qwen-research")),
            ("Qwen/Qwen2.5-72B", Some("qwen")),
            ("Qwen/Qwen2.5-32B", None),
            ("Qwen/Qwen3-4B", None),
        ] {
            assert_eq!(Terms::of_model(repo).map(|t| t.id), id, "{repo}");
        }
    }

    #[test]
    fn what_a_card_does_not_say_is_known_of_some() {
        for (repo, base) in [
            (
                "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
                Some("meta-llama/Llama-3.1-8B"),
            ),
            (
                "unsloth/DeepSeek-R1-Distill-Llama-70B-bnb-4bit",
                Some("meta-llama/Llama-3.3-70B-Instruct"),
            ),
            (
                "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
                Some("Qwen/Qwen2.5-Math-1.5B"),
            ),
            (
                "codellama/CodeLlama-13b-hf",
                Some("meta-llama/Llama-2-7b-hf"),
            ),
            ("deepseek-ai/DeepSeek-R1", None),
            ("you/deepseek-r1-distill-llama-8bx", None),
        ] {
            assert_eq!(made_of(repo), base, "{repo}");
        }
    }

    #[test]
    fn licences_are_known_by_id_by_name_and_by_text() {
        let of = |id: &str, name: Option<&str>| Terms::of(id, name).map(|terms| terms.id);
        assert_eq!(of("llama3.1", None), Some("llama3.1"));
        assert_eq!(of("other", Some("qwen-research")), Some("qwen-research"));
        assert_eq!(of("other", Some("Llama-3.1-community")), Some("llama3.1"));
        assert_eq!(of("other", Some("mine")), None);
        assert_eq!(of("other", None), None);
        // a name that is no id
        assert_eq!(of("qwen", None), None);
        let text = |text: &str| Terms::of_text(text).map(|terms| terms.id);
        assert_eq!(
            text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT"),
            Some("llama3.1")
        );
        assert_eq!(
            text("META LLAMA 3 COMMUNITY LICENSE AGREEMENT"),
            Some("llama3")
        );
        assert_eq!(
            text("Qwen RESEARCH LICENSE AGREEMENT"),
            Some("qwen-research")
        );
        assert_eq!(text("Apache License"), None);
        let file = |id: &str| Terms::of(id, None).unwrap().file();
        assert_eq!(file("llama3.1"), "LICENSE-LLAMA-3.1");
    }
}
