//! A benchmark as data, `eval/*.toml`: where its problems are, how they are asked, sampled and judged.

use super::{load, shipped};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One benchmark.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    pub name: String,
    pub version: String,
    pub paper: String,
    pub dataset: Dataset,
    pub fields: Fields,
    pub prompt: Prompt,
    pub sampling: SuiteSampling,
    /// `math`, `choice`, `number`, `boxed` or `exact`.
    pub verifier: String,
}

/// Where the problems are.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    /// Hub data set, file, or `builtin:arithmetic`.
    pub source: String,
    #[serde(default)]
    pub config: Option<String>,
    #[serde(default)]
    pub split: Option<String>,
    #[serde(default)]
    pub revision: Option<String>,
    /// Number of problems of a `builtin:` source.
    #[serde(default)]
    pub num_problems: Option<usize>,
}

/// Columns of the data set.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    pub problem: String,
    pub answer: String,
    #[serde(default)]
    pub id: Option<String>,
}

/// How a problem is asked.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    #[serde(default)]
    pub system: Option<String>,
    /// User turn; `{problem}` stands for the problem.
    pub template: String,
}

/// How answers are sampled.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SuiteSampling {
    pub temperature: f64,
    pub top_p: f64,
    pub max_new_tokens: usize,
    /// Samples a problem.
    pub k: usize,
}

impl Suite {
    /// The shipped suite `name`, or the suite in the file `name`.
    ///
    /// # Errors
    /// No such suite or file, or a key it may not have.
    pub fn load(name: &str) -> Result<Self> {
        if let Some(text) = shipped::suite(name) {
            return load::parse(text, &format!("eval/{name}.toml"), &[]);
        }
        if name.ends_with(".toml") {
            let text = load::read_text(Path::new(name))?;
            return load::parse(&text, name, &[]);
        }
        let names = shipped::suite_names();
        let hint = match load::closest(name, names.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("suites: {}; or give a path", names.join(", ")),
        };
        Err(Error::input(format!("no suite `{name}`")).with_hint(hint))
    }
}
