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
    /// Hub data set, file, `builtin:arithmetic` or `builtin:bilingual`.
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
    /// Refuses what can only go wrong later.
    ///
    /// # Errors
    /// Names the key.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::input(what).at(format!("suite `{}`", self.name)));
        super::plan::check_name(&self.name)?;
        let s = &self.sampling;
        if s.k == 0 || s.max_new_tokens == 0 {
            return wrong("`sampling.k` and `sampling.max_new_tokens` must be at least 1".into());
        }
        if !s.temperature.is_finite() || s.temperature < 0.0 {
            return wrong(format!(
                "`sampling.temperature = {}` is no temperature",
                s.temperature
            ));
        }
        if !(s.top_p > 0.0 && s.top_p <= 1.0) {
            return wrong(format!(
                "`sampling.top_p = {}` is not above 0 and at most 1",
                s.top_p
            ));
        }
        if !self.prompt.template.contains("{problem}") {
            return wrong("the prompt's `template` has no `{problem}`".into());
        }
        let kind = crate::verify::Kind::parse(&self.verifier);
        kind.map(|_| ())
            .map_err(|e| e.at(format!("suite `{}`", self.name)))
    }

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
