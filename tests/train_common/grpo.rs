//! A contextual bandit for the GRPO loop: four questions, the answer to each another word, and an observer that remembers.

use super::VOCAB;
use distill::data::Prompt;
use distill::progress::Stop;
use distill::recipe::grpo::{Grpo, Kl};
use distill::recipe::reward::{AccuracyReward, RewardKind, RewardSettings, RewardTable};
use distill::reward::{Rewards, Tools};
use distill::tokenize::TextTokenizer;
use distill::tokenize::files::TokenizerFiles;
use distill::train::grpo::HeldOut;
use distill::train::grpo_record::GrpoRecord;
use distill::train::rollout::Group;
use distill::train::{GrpoObserver, GrpoPrompt};
use distill::verify::Kind;
use distill::{Error, Result};
use std::path::Path;

/// Ends a completion.
pub const END: u32 = 0;

pub fn tokenizer() -> TextTokenizer {
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..VOCAB).map(|i| (format!("t{i}"), i.into())).collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"},
    });
    TextTokenizer::new(json.to_string().into_bytes(), TokenizerFiles::default()).unwrap()
}

/// Four questions; the answer to each is another word.
pub fn prompts() -> Vec<GrpoPrompt> {
    (0..4u32)
        .map(|i| GrpoPrompt {
            prompt: Prompt {
                id: i.to_string(),
                question: "what?".into(),
                messages: Vec::new(),
                golds: vec![format!("t{}", 9 + 3 * i)],
                options: Vec::new(),
                domain: None,
                row: serde_json::Map::new(),
            },
            tokens: vec![i + 1, 7, i + 1],
            opening: String::new(),
        })
        .collect()
}

pub fn rewards() -> Rewards {
    let exact = RewardKind::Accuracy(AccuracyReward {
        verifier: Kind::Exact,
        ..AccuracyReward::default()
    });
    let table = RewardTable::List(vec![RewardSettings {
        weight: 1.0,
        domains: Vec::new(),
        kind: exact,
    }]);
    Rewards::build(&table, Tools::default()).unwrap()
}

pub fn settings() -> Grpo {
    Grpo {
        num_steps: Some(40),
        num_prompts_per_step: 4,
        group_size: 16,
        max_new_tokens: 1,
        batch_size: 64,
        learning_rate: 2e-2,
        kl: Kl::None,
        kl_coef: 0.0,
        pack_length: 64,
        checkpoint_every_steps: 1000,
        samples_every_steps: 0,
        ..Grpo::default()
    }
}

/// Remembers the records, and can ask to stop or fail.
#[derive(Default)]
pub struct Log {
    pub records: Vec<GrpoRecord>,
    pub checkpoints: Vec<usize>,
    pub resumed: Vec<usize>,
    pub warnings: Vec<String>,
    pub num_samples: usize,
    /// Accuracies to answer with.
    pub held_out: Vec<f64>,
    /// So many evaluations are answered before one is stopped.
    pub stop_evaluation_after: Option<usize>,
    /// Steps whose record comes again.
    pub reopened: Vec<usize>,
    pub fail_after: Option<usize>,
    pub stop: Option<(usize, Stop)>,
}

impl GrpoObserver for Log {
    fn step(&mut self, record: &GrpoRecord) -> Result<()> {
        self.records.push(record.clone());
        if let Some((step, stop)) = &self.stop
            && *step == record.step
        {
            stop.request();
        }
        match self.fail_after == Some(record.step) {
            true => Err(Error::input("the disk is full")),
            false => Ok(()),
        }
    }
    fn samples(&mut self, _: usize, groups: &[Group], _: &[GrpoPrompt]) -> Result<()> {
        self.num_samples += groups.len();
        Ok(())
    }
    fn reopened(&mut self, step: usize) -> Result<()> {
        self.reopened.push(step);
        Ok(())
    }
    fn evaluate(&mut self, _: usize) -> Result<Option<HeldOut>> {
        match &mut self.stop_evaluation_after {
            Some(0) => {
                return Err(Error::Interrupted {
                    message: "among the held-out problems".into(),
                });
            }
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(self.held_out.pop().map(|accuracy| HeldOut {
            accuracy,
            num_problems: 10_000,
        }))
    }
    fn checkpoint(&mut self, step: usize, _: &Path) -> Result<()> {
        self.checkpoints.push(step);
        Ok(())
    }
    fn resumed(&mut self, step: usize) -> Result<()> {
        self.resumed.push(step);
        Ok(())
    }
    fn warn(&mut self, text: &str) {
        self.warnings.push(text.into());
    }
}

/// Times aside, which no two runs share.
pub fn timeless(records: &[GrpoRecord]) -> Vec<GrpoRecord> {
    records
        .iter()
        .map(|r| GrpoRecord {
            rollout_s: 0.0,
            reward_s: 0.0,
            reference_s: 0.0,
            update_s: 0.0,
            step_time_s: 0.0,
            ..r.clone()
        })
        .collect()
}

/// Mean reward of the last steps.
pub fn late(records: &[GrpoRecord]) -> f64 {
    let last = &records[records.len() - 5..];
    last.iter().map(|r| r.reward).sum::<f64>() / 5.0
}
