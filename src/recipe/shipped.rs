//! What the binary brings along: recipes, cards of students, suites, chat templates. Text only; readers are elsewhere.
//!
//! A new file is added to its list below; a test compares the lists with the folders.

macro_rules! embedded {
    ($folder:literal, $ending:literal, [$($name:literal),* $(,)?]) => {
        &[$(($name, include_str!(concat!("../../", $folder, "/", $name, $ending)))),*]
    };
}

const RECIPES: &[(&str, &str)] = embedded!(
    "recipes",
    ".toml",
    [
        "quickstart",
        "own-traces",
        "rejection",
        "r1-zero",
        "r1-zero-mini",
        "r1-mini",
        "r1",
        "dapo",
        "deepseekmath",
        "grpo-1.5b",
        "own-qwen-1.5b",
        "own-qwen-7b",
        "own-qwen-14b",
        "own-qwen-32b",
        "own-llama-8b",
        "own-llama-70b",
        "qwen-1.5b",
        "qwen-7b",
        "qwen-14b",
        "qwen-32b",
        "llama-8b",
        "llama-70b",
    ]
);

const CARDS: &[(&str, &str)] = embedded!(
    "models",
    ".toml",
    [
        "qwen2.5-math-1.5b",
        "qwen2.5-math-7b",
        "qwen2.5-14b",
        "qwen2.5-32b",
        "llama-3.1-8b",
        "llama-3.3-70b-instruct",
    ]
);

const SUITES: &[(&str, &str)] = embedded!(
    "eval",
    ".toml",
    [
        "arithmetic",
        "bilingual",
        "wishes",
        "aime-2024",
        "math-500",
        "gsm8k"
    ]
);

const TEMPLATES: &[(&str, &str)] = embedded!(
    "models/templates",
    ".jinja",
    ["r1-chatml", "r1-llama3", "r1-zero"]
);

fn find(list: &'static [(&str, &str)], name: &str) -> Option<&'static str> {
    let name = name.strip_suffix(".toml").unwrap_or(name);
    list.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

/// Text of the shipped recipe `name` (with or without `.toml`).
pub fn recipe(name: &str) -> Option<&'static str> {
    find(RECIPES, name.strip_prefix("recipes/").unwrap_or(name))
}

/// Names of the shipped recipes, without `.toml`.
pub fn recipe_names() -> Vec<String> {
    RECIPES.iter().map(|(n, _)| n.to_string()).collect()
}

/// Text of the shipped card `name`.
pub fn card(name: &str) -> Option<&'static str> {
    find(CARDS, name)
}

/// Names of the shipped cards.
pub fn card_names() -> Vec<String> {
    CARDS.iter().map(|(n, _)| n.to_string()).collect()
}

/// Text of the shipped suite `name`.
pub fn suite(name: &str) -> Option<&'static str> {
    find(SUITES, name)
}

/// Names of the shipped suites.
pub fn suite_names() -> Vec<String> {
    SUITES.iter().map(|(n, _)| n.to_string()).collect()
}

/// Source of the shipped chat template `name`.
pub fn template(name: &str) -> Option<&'static str> {
    find(TEMPLATES, name)
}

/// Names of the shipped chat templates.
pub fn template_names() -> Vec<String> {
    TEMPLATES.iter().map(|(n, _)| n.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::card::Card;
    use crate::recipe::graph::{Resolved, resolve_document};
    use crate::recipe::load;

    fn stems(folder: &str, ending: &str) -> Vec<String> {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let mut names: Vec<String> = std::fs::read_dir(root)
            .unwrap()
            .filter_map(|e| {
                e.unwrap()
                    .file_name()
                    .into_string()
                    .unwrap()
                    .strip_suffix(ending)
                    .map(String::from)
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn every_file_of_the_folders_is_embedded() {
        for (folder, ending, mut names) in [
            ("recipes", ".toml", recipe_names()),
            ("models", ".toml", card_names()),
            ("eval", ".toml", suite_names()),
            ("models/templates", ".jinja", template_names()),
        ] {
            names.sort();
            assert_eq!(stems(folder, ending), names, "{folder}");
        }
    }

    #[test]
    fn every_shipped_recipe_and_card_loads_and_resolves() {
        for name in card_names() {
            assert_eq!(Card::load(&name).unwrap().name, name);
        }
        for name in suite_names() {
            assert_eq!(crate::recipe::suite::Suite::load(&name).unwrap().name, name);
        }
        for name in recipe_names() {
            let loaded = load::load(&name, &[]).unwrap();
            match resolve_document(&loaded.recipe).unwrap() {
                Resolved::Student(plan) => {
                    assert_eq!(plan.name, name);
                    assert!(plan.sft.learning_rate > 0.0);
                }
                Resolved::Pipeline(plan) => {
                    assert_eq!(plan.name, name);
                    assert!(plan.stages.len() > 1, "{name}");
                }
            }
        }
    }

    #[test]
    fn tables_for_publishing_resolve_when_they_are_taken_in() {
        let mut num = 0;
        for name in recipe_names() {
            let text = recipe(&name).unwrap();
            let Some(at) = text.find("# [publish]") else {
                continue;
            };
            num += 1;
            let table: String = text[at..]
                .lines()
                .map(|line| line.trim_start_matches("# ").to_string() + "\n")
                .collect();
            let whole = format!("{}{table}", &text[..at]);
            let document = load::document(&whole, &name, &[]).unwrap();
            let plan = resolve_document(&document).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(plan.publish().unwrap().repo.starts_with("you/"), "{name}");
        }
        assert!(num > 3);
    }
}
