//! The card of a student, `models/*.toml`: where it is on the Hub and what the checkpoint itself does not say.

use super::{load, shipped};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// One student.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Name that recipes use.
    pub name: String,
    /// Hub repository.
    pub repo: String,
    /// Commit, tag or branch; the commit it stood for is written to `plan.json`.
    pub revision: String,
    /// Shape for planning without network, a name known to `model::family`.
    pub family: String,
    /// Chat template for training, the name of a file under `models/templates`; default: the checkpoint's own.
    #[serde(default)]
    pub chat_template: Option<String>,
    /// Peak learning rate of the paper (R1 v2, Table 6).
    pub learning_rate: f64,
    /// RoPE base that training at `max_length` needs, where the checkpoint's does not do.
    #[serde(default)]
    pub rope_theta: Option<f64>,
    /// Positions after that change.
    #[serde(default)]
    pub max_position_embeddings: Option<usize>,
    /// Why the two keys above are there; shown to the user.
    #[serde(default)]
    pub rope_note: Option<String>,
    /// Text that opens and closes the reasoning.
    pub think: [String; 2],
    /// Tokens that end a turn.
    pub stop_tokens: Vec<String>,
    /// Projections that adapters attach to.
    pub lora_targets: Vec<String>,
    /// `license` of the model card.
    pub license: String,
    /// What publishing the result owes.
    #[serde(default)]
    pub license_duties: Vec<String>,
    /// What the result's name must begin with.
    #[serde(default)]
    pub name_prefix: Option<String>,
    /// pass@1 in percent, by suite, of the paper's own student of this model.
    #[serde(default)]
    pub paper: BTreeMap<String, f64>,
}

impl Card {
    /// The shipped card `name`, or the card in the file `name`.
    ///
    /// # Errors
    /// No such card or file, or a key it may not have.
    pub fn load(name: &str) -> Result<Self> {
        if let Some(text) = shipped::card(name) {
            return load::parse(text, &format!("models/{name}.toml"), &[]);
        }
        if name.ends_with(".toml") {
            let text = load::read_text(Path::new(name))?;
            return load::parse(&text, name, &[]);
        }
        let names = shipped::card_names();
        let hint = match load::closest(name, names.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!(
                "cards: {}; or give a Hub repo `org/name` or a folder",
                names.join(", ")
            ),
        };
        Err(Error::input(format!("no student `{name}`")).with_hint(hint))
    }
}
