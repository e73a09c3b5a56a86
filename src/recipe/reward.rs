//! `[[reward]]`: which rewards are summed, with which weights and settings; and the presets.
//!
//! A recipe says `reward = "r1"`, or lists rewards by name:
//!
//! ```toml
//! [[reward]]
//! name = "accuracy"
//! [[reward]]
//! name = "cosine"
//! weight = 0.5
//! max_length = 8192
//! ```
//!
//! What a reward computes is in `reward/`.

use serde::de::value::{SeqAccessDeserializer, StrDeserializer};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::reward_model::RewardModelReward;
use crate::verify::Kind;
use crate::verify::format::Format;

/// A preset, or a list of rewards.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum RewardTable {
    Preset(Preset),
    List(Vec<RewardSettings>),
}

impl RewardTable {
    /// The rewards of the list, or of the preset.
    pub fn rewards(&self) -> Vec<RewardSettings> {
        match self {
            Self::Preset(preset) => preset.rewards(),
            Self::List(list) => list.clone(),
        }
    }

    /// What changes the rewards.
    pub fn learned(&self) -> Self {
        let Self::List(list) = self else {
            return self.clone();
        };
        let learned = |reward: &RewardSettings| {
            let mut reward = reward.clone();
            if let RewardKind::Judge(judge) = &mut reward.kind {
                *judge = judge.learned();
            }
            reward
        };
        Self::List(list.iter().map(learned).collect())
    }

    /// The reward models that it names: folders, or stages as `@stage`.
    pub fn models(&self) -> Vec<&str> {
        let Self::List(list) = self else {
            return Vec::new();
        };
        list.iter()
            .filter_map(|reward| match &reward.kind {
                RewardKind::RewardModel(settings) => Some(settings.model.as_str()),
                _ => None,
            })
            .collect()
    }

    /// Whether steps of completions are rewarded.
    pub fn is_of_steps(&self) -> bool {
        self.rewards().iter().any(|r| r.kind.is_of_steps())
    }

    /// Whether programs are run.
    pub fn needs_sandbox(&self) -> bool {
        self.rewards()
            .iter()
            .any(|r| matches!(r.kind, RewardKind::Code {} | RewardKind::BinaryCode {}))
    }
}

// not derived, as an untagged enum hides what is wrong with a reward
impl<'de> Deserialize<'de> for RewardTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = RewardTable;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("the name of a preset or a list of rewards")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<RewardTable, E> {
                Preset::deserialize(StrDeserializer::new(name)).map(RewardTable::Preset)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<RewardTable, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(RewardTable::List)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Rewards that go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// DeepSeek-R1 (arXiv 2501.12948): accuracy + format + language consistency, all of weight 1.
    R1,
    /// +1 for a right answer, -1 for a wrong one, 0 for none, and +0.5 for the format.
    Classic,
    /// DAPO (arXiv 2503.14476): +1 or -1, and soft overlong punishment.
    Dapo,
    /// The defaults of open-r1: accuracy + format + tag count, all of weight 1.
    OpenR1,
}

impl Preset {
    /// Every preset by name.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("r1", Self::R1),
        ("classic", Self::Classic),
        ("dapo", Self::Dapo),
        ("open-r1", Self::OpenR1),
    ];

    pub fn rewards(self) -> Vec<RewardSettings> {
        let accuracy = |wrong, no_answer| {
            RewardKind::Accuracy(AccuracyReward {
                wrong,
                no_answer,
                ..AccuracyReward::default()
            })
        };
        let format = |format| RewardKind::Format(FormatReward { format });
        let weighted = match self {
            Self::R1 => vec![
                (1.0, accuracy(0.0, 0.0)),
                (1.0, format(Format::R1)),
                (
                    1.0,
                    RewardKind::LanguageConsistency(LanguageReward::default()),
                ),
            ],
            Self::Classic => vec![(1.0, accuracy(-1.0, 0.0)), (0.5, format(Format::R1))],
            Self::Dapo => vec![
                (1.0, accuracy(-1.0, -1.0)),
                (1.0, RewardKind::SoftOverlong(OverlongReward::default())),
            ],
            Self::OpenR1 => vec![
                (1.0, accuracy(0.0, 0.0)),
                (1.0, format(Format::OpenR1)),
                (1.0, RewardKind::TagCount {}),
            ],
        };
        weighted
            .into_iter()
            .map(|(weight, kind)| RewardSettings {
                weight,
                domains: Vec::new(),
                kind,
            })
            .collect()
    }
}

/// One `[[reward]]`: `name`, `weight`, `domains` and the settings of that reward, side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct RewardSettings {
    /// Factor in the sum.
    pub weight: f64,
    /// Only prompts of these domains are rewarded: R1's last stage has rules for reasoning and a reward model for the rest
    /// (arXiv 2501.12948 v2, section 3.2.2). Empty: all, those without a domain too.
    pub domains: Vec<String>,
    pub kind: RewardKind,
}

impl RewardSettings {
    /// Whether it applies to prompts of a domain.
    pub fn is_for(&self, domain: Option<&str>) -> bool {
        self.domains.is_empty() || self.domains.iter().any(|d| Some(d.as_str()) == domain)
    }
}

impl Serialize for RewardSettings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = serde_json::to_value(&self.kind).map_err(serde::ser::Error::custom)?;
        let mut table = match value {
            Value::Object(table) => table,
            _ => Map::new(),
        };
        // what is not set is left out: TOML has no null
        table.retain(|_, value| !value.is_null());
        table.insert("weight".into(), self.weight.into());
        if !self.domains.is_empty() {
            table.insert("domains".into(), self.domains.clone().into());
        }
        table.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RewardSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut table = Map::<String, Value>::deserialize(deserializer)?;
        let weight = match table.remove("weight") {
            None => 1.0,
            Some(weight) => {
                f64::deserialize(weight).map_err(|e| D::Error::custom(format!("`weight`: {e}")))?
            }
        };
        let domains = match table.remove("domains") {
            None => Vec::new(),
            Some(domains) => Vec::deserialize(domains)
                .map_err(|e| D::Error::custom(format!("`domains`: {e}")))?,
        };
        let kind = RewardKind::deserialize(Value::Object(table)).map_err(D::Error::custom)?;
        Ok(Self {
            weight,
            domains,
            kind,
        })
    }
}

/// A reward and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum RewardKind {
    /// Is the answer right?
    Accuracy(AccuracyReward),
    /// Has the text the format?
    Format(FormatReward),
    /// A quarter for each right tag.
    TagCount {},
    /// Are there steps?
    ReasoningSteps(StepsReward),
    /// Kimi k1.5's length reward, within the samples of a prompt.
    Length(LengthReward),
    /// Accuracy scaled by a cosine of the length.
    Cosine(CosineReward),
    /// Repeated n-grams.
    RepetitionPenalty(RepetitionReward),
    /// DAPO's soft overlong punishment.
    SoftOverlong(OverlongReward),
    /// Share of tests passed.
    Code {},
    /// All tests passed.
    BinaryCode {},
    /// A code block in the answer.
    CodeFormat(CodeFormatReward),
    /// Share of words in the target language.
    LanguageConsistency(LanguageReward),
    /// A model's verdict against the reference.
    Judge(JudgeSettings),
    /// The score of a trained reward model.
    RewardModel(RewardModelReward),
}

/// Whether a switch is off: what was not known to older runs is not written to their plans.
pub(super) fn is_no(switch: &bool) -> bool {
    !*switch
}

impl RewardKind {
    /// The name of [`Self::Judge`].
    pub const JUDGE: &'static str = Self::NAMES[12];

    /// Whether each step of a completion is rewarded.
    pub fn is_of_steps(&self) -> bool {
        match self {
            Self::LanguageConsistency(settings) => settings.steps,
            Self::RewardModel(settings) => settings.steps,
            _ => false,
        }
    }

    /// Names in the order of the variants.
    pub const NAMES: [&'static str; 14] = [
        "accuracy",
        "format",
        "tag_count",
        "reasoning_steps",
        "length",
        "cosine",
        "repetition_penalty",
        "soft_overlong",
        "code",
        "binary_code",
        "code_format",
        "language_consistency",
        "judge",
        "reward_model",
    ];

    /// What the part is called: the name, or of a reward model its own `label`.
    pub fn label(&self) -> &str {
        match self {
            Self::RewardModel(settings) => settings.label.as_deref().unwrap_or(self.name()),
            _ => self.name(),
        }
    }

    /// As `name =` has it.
    pub fn name(&self) -> &'static str {
        let at = match self {
            Self::Accuracy(_) => 0,
            Self::Format(_) => 1,
            Self::TagCount {} => 2,
            Self::ReasoningSteps(_) => 3,
            Self::Length(_) => 4,
            Self::Cosine(_) => 5,
            Self::RepetitionPenalty(_) => 6,
            Self::SoftOverlong(_) => 7,
            Self::Code {} => 8,
            Self::BinaryCode {} => 9,
            Self::CodeFormat(_) => 10,
            Self::LanguageConsistency(_) => 11,
            Self::Judge(_) => 12,
            Self::RewardModel(_) => 13,
        };
        Self::NAMES[at]
    }
}

/// `name = "accuracy"`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccuracyReward {
    /// `math`, `choice`, `exact`, `number` or `boxed`.
    pub verifier: Kind,
    pub correct: f64,
    pub wrong: f64,
    /// For a text in which no answer is found.
    pub no_answer: f64,
}

impl Default for AccuracyReward {
    fn default() -> Self {
        Self {
            verifier: Kind::Math,
            correct: 1.0,
            wrong: 0.0,
            no_answer: 0.0,
        }
    }
}

/// `name = "format"`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FormatReward {
    /// `r1`, `open-r1` or `think-only`.
    pub format: Format,
}

/// `name = "reasoning_steps"`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StepsReward {
    /// So many steps are worth 1.
    pub num_steps: usize,
}

impl Default for StepsReward {
    fn default() -> Self {
        Self { num_steps: 3 }
    }
}

/// What a length counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LengthUnit {
    /// Tokens where every sample of the prompt has their number, else characters.
    #[default]
    Auto,
    /// Samples without a number of tokens are refused.
    Tokens,
    Characters,
}

/// `name = "length"`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LengthReward {
    pub unit: LengthUnit,
    pub verifier: Kind,
}

impl Default for LengthReward {
    fn default() -> Self {
        Self {
            unit: LengthUnit::Auto,
            verifier: Kind::Math,
        }
    }
}

/// `name = "cosine"`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CosineReward {
    /// For a right answer of `max_length` and more.
    pub min_correct: f64,
    /// For the shortest right answer.
    pub max_correct: f64,
    /// For the shortest wrong answer.
    pub min_wrong: f64,
    /// For a wrong answer of `max_length` and more.
    pub max_wrong: f64,
    pub max_length: usize,
    pub unit: LengthUnit,
    pub verifier: Kind,
}

impl Default for CosineReward {
    fn default() -> Self {
        Self {
            min_correct: 0.5,
            max_correct: 1.0,
            min_wrong: -1.0,
            max_wrong: -0.5,
            max_length: 16_384,
            unit: LengthUnit::Auto,
            verifier: Kind::Math,
        }
    }
}

/// `name = "repetition_penalty"`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RepetitionReward {
    pub ngram_size: usize,
    /// For a text in which everything is repeated; at most 0.
    pub max_penalty: f64,
}

impl Default for RepetitionReward {
    fn default() -> Self {
        Self {
            ngram_size: 3,
            max_penalty: -1.0,
        }
    }
}

/// `name = "soft_overlong"`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OverlongReward {
    /// From here on the punishment is -1.
    pub max_length: usize,
    /// Over so many tokens before it grows from 0.
    pub cache_length: usize,
    pub unit: LengthUnit,
}

impl Default for OverlongReward {
    fn default() -> Self {
        Self {
            max_length: 20_480,
            cache_length: 4096,
            unit: LengthUnit::Auto,
        }
    }
}

/// `name = "code_format"`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CodeFormatReward {
    pub format: Format,
    /// What the fence must say; else the row's `language`, else `python`.
    pub language: Option<String>,
}

/// `name = "language_consistency"`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LanguageReward {
    /// `en`, `zh`, ...; else the language of the prompt.
    pub target: Option<String>,
    /// Rewards each step of a completion (`grpo.supervision = "process"`).
    #[serde(skip_serializing_if = "is_no")]
    pub steps: bool,
}

/// `name = "judge"`: an OpenAI-compatible endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeSettings {
    /// Up to and with `/v1`: `http://localhost:8000/v1`.
    pub url: String,
    pub model: String,
    /// Environment variable that holds the key. The key itself is written nowhere.
    #[serde(default = "default_key_variable")]
    pub key_variable: String,
    /// Requests at the same time.
    #[serde(default = "default_concurrency")]
    pub concurrency: usize,
    /// For one request.
    #[serde(default = "default_timeout_s")]
    pub timeout_s: f64,
    /// Attempts after the first one.
    #[serde(default = "default_max_retries")]
    pub max_retries: usize,
    /// Before the first retry; doubled for each further one.
    #[serde(default = "default_backoff_s")]
    pub backoff_s: f64,
    /// Longest answer of the judge.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: usize,
    #[serde(default)]
    pub temperature: f64,
    /// Budget of requests, retries included; none is no limit.
    #[serde(default)]
    pub max_requests: Option<u64>,
    /// Budget of tokens as the endpoint counts them, prompts included.
    #[serde(default)]
    pub max_total_tokens: Option<u64>,
    /// Folder of the answers that were paid for already.
    #[serde(default = "default_cache")]
    pub cache: String,
}

impl JudgeSettings {
    /// The defaults, for this model there.
    pub fn new(url: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            model: model.into(),
            key_variable: default_key_variable(),
            concurrency: default_concurrency(),
            timeout_s: default_timeout_s(),
            max_retries: default_max_retries(),
            backoff_s: default_backoff_s(),
            max_tokens: default_max_tokens(),
            temperature: 0.0,
            max_requests: None,
            max_total_tokens: None,
            cache: default_cache(),
        }
    }

    /// What changes the verdicts: who is asked, and how; not how patiently, nor at what cost.
    pub fn learned(&self) -> Self {
        Self {
            key_variable: String::new(),
            concurrency: 0,
            timeout_s: 0.0,
            max_retries: 0,
            backoff_s: 0.0,
            max_requests: None,
            max_total_tokens: None,
            cache: String::new(),
            ..self.clone()
        }
    }
}

fn default_key_variable() -> String {
    "OPENAI_API_KEY".into()
}
fn default_concurrency() -> usize {
    8
}
fn default_timeout_s() -> f64 {
    120.0
}
fn default_max_retries() -> usize {
    6
}
fn default_backoff_s() -> f64 {
    1.0
}
fn default_max_tokens() -> usize {
    2048
}
fn default_cache() -> String {
    "runs/judge-cache".into()
}

#[cfg(test)]
#[path = "reward_tests.rs"]
mod tests;
