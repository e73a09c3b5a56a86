//! A reward model: the blocks of a causal language model, and one number for a sequence in place of logits. Files have the
//! layout of transformers' `...ForSequenceClassification` with one label.
//!
//! With h the normed residual stream `[C]` of the last token that is no padding and w = `score.weight` `[1, C]`:
//! `r = h w^T`. Its gradient for `dL/dr = g` is `dh = g w`, `dw = g h`. Which losses are functions of r is in `train/`.

use super::weights;
use super::{Batch, CausalLm, Head, LoadOptions, ModelConfig, Recompute, normal};
use crate::ops::{self, Gradients};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use serde_json::json;
use std::path::Path;

/// Of the random numbers that a new head is made of; weights of a model take the streams from 0.
const SCORE_STREAM: u64 = 1 << 32;

/// A model that scores.
pub struct RewardModel {
    lm: CausalLm,
    /// Not counted at the end of a sequence: transformers looks for the last other token.
    pad_token_id: Option<u32>,
}

impl RewardModel {
    /// Loads a folder in the Hugging Face layout.
    ///
    /// # Errors
    /// As [`CausalLm::load`]; a folder that holds no reward model.
    pub fn load(folder: &Path, options: &LoadOptions) -> Result<Self> {
        let config = ModelConfig::from_folder(folder)?;
        if config.head != Head::Score {
            return Err(Error::input(format!(
                "`{}` holds no reward model but a language model",
                folder.display()
            ))
            .with_hint("a stage of kind `reward-model` makes one of it"));
        }
        let pad = config.raw.get("pad_token_id");
        let pad_token_id = pad.and_then(|id| u32::try_from(id.as_u64()?).ok());
        let weights = weights::load(folder, &config, &options.device, options.dtype)?;
        Ok(Self {
            lm: CausalLm::from_weights(config, weights, &options.device, options.dtype)?,
            pad_token_id,
        })
    }

    /// A language model with a new head in place of its own: normal with `initializer_range`, by `seed`. `pad_token_id`
    /// goes into its `config.json`: without one, transformers scores one sequence at a time only.
    pub fn from_lm(lm: CausalLm, pad_token_id: Option<u32>, seed: u64) -> Result<Self> {
        let CausalLm {
            mut config,
            parameters,
            device,
            dtype,
            ..
        } = lm;
        config.head = Head::Score;
        if let Some(id) = pad_token_id {
            config.raw.insert("pad_token_id".into(), json!(id));
        }
        let c = config.hidden_size;
        let score = normal(seed, SCORE_STREAM, c, config.initializer_range);
        let score = Tensor::from_vec(score, (1, c), &candle_core::Device::Cpu)?
            .to_dtype(dtype)?
            .to_device(&device)?;
        let weights = parameters
            .into_iter()
            .filter(|p| p.name != "lm_head.weight")
            .map(|p| p.value)
            .chain([score])
            .collect();
        Ok(Self {
            lm: CausalLm::from_weights(config, weights, &device, dtype)?,
            pad_token_id,
        })
    }

    /// Its weights and shape, for optimiser and checkpoints; it has no logits.
    pub fn weights(&self) -> &CausalLm {
        &self.lm
    }

    /// Writes weights and `config.json`; shards of at most `max_shard_bytes`.
    pub fn save(&self, folder: &Path, max_shard_bytes: u64) -> Result<()> {
        self.lm.save(folder, max_shard_bytes)
    }

    /// The score of each sequence.
    ///
    /// # Errors
    /// Sequences that do not fit the model.
    pub fn scores(&self, tokens: &[u32], seq_lens: &[usize]) -> Result<Vec<f32>> {
        let rows = self.last_tokens(tokens, seq_lens)?;
        self.scores_at(tokens, seq_lens, rows)
    }

    /// The scores that the head gives at `places` among all tokens: of each, what its sequence is worth up to there.
    ///
    /// # Errors
    /// Sequences that do not fit the model.
    pub fn scores_at(
        &self,
        tokens: &[u32],
        seq_lens: &[usize],
        places: Vec<u32>,
    ) -> Result<Vec<f32>> {
        self.lm.check_tokens(tokens, seq_lens)?;
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let x = ops::in_pool(|| self.lm.residual(tokens, seq_lens))?;
        let picked = x.index_select(&Tensor::new(places, &self.lm.device)?, 0)?; // [B, C]
        let h = ops::rms_norm(
            &picked,
            self.lm.w(self.lm.norm),
            self.lm.config.rms_norm_eps,
        )?;
        self.head(&h)
    }

    /// Adds the gradient of a loss to `grads` and returns the scores; `slopes` gives dL/dr of each sequence.
    ///
    /// # Errors
    /// As [`RewardModel::scores`], and those of `slopes`.
    pub fn forward_backward(
        &self,
        tokens: &[u32],
        seq_lens: &[usize],
        recompute: Recompute,
        slopes: &mut (dyn FnMut(&[f32]) -> Result<Vec<f32>> + Send),
        grads: &mut Gradients,
    ) -> Result<Vec<f32>> {
        let rows = self.last_tokens(tokens, seq_lens)?;
        let batch = Batch {
            tokens: tokens.to_vec(),
            seq_lens: seq_lens.to_vec(),
            ..Batch::default()
        };
        let lm = &self.lm;
        let head = |h: &Tensor, grads: &mut Gradients| {
            let scores = self.head(h)?;
            let slopes = slopes(&scores)?;
            let g = Tensor::from_vec(slopes, (scores.len(), 1), &lm.device)?.to_dtype(lm.dtype)?; // [B, 1]
            grads.add_matmul(lm.head, &g, h)?;
            let dh = ops::linear_backward_input(&g, lm.w(lm.head))?; // [B, C]
            Ok((scores, dh))
        };
        let each: super::EachFn = &mut |_, _| Ok(());
        ops::in_pool(|| lm.pass_and_back(&batch, &rows, recompute, grads, head, each))
    }

    /// h: `[B, C]`
    fn head(&self, h: &Tensor) -> Result<Vec<f32>> {
        let wide = |t: &Tensor| t.to_dtype(DType::F32);
        let r = ops::linear(&wide(h)?, &wide(self.lm.w(self.lm.head))?, None)?; // [B, 1]
        Ok(r.flatten_all()?.to_vec1()?)
    }

    /// Where each sequence is read: its last token that is no padding; the first where there is none, as transformers has it.
    fn last_tokens(&self, tokens: &[u32], seq_lens: &[usize]) -> Result<Vec<u32>> {
        self.lm.check_tokens(tokens, seq_lens)?;
        let mut start = 0;
        seq_lens
            .iter()
            .map(|&length| {
                let sequence = &tokens[start..start + length];
                let last = match self.pad_token_id {
                    Some(pad) => sequence.iter().rposition(|&t| t != pad).unwrap_or(0),
                    None => length.saturating_sub(1),
                };
                if length == 0 {
                    return Err(Error::input("a sequence without tokens has no score"));
                }
                let row = start + last;
                start += length;
                Ok(row as u32)
            })
            .collect()
    }
}

/// Whether a folder's `config.json` is that of a reward model.
///
/// # Errors
/// As [`ModelConfig::from_folder`].
pub fn is_reward_model(folder: &Path) -> Result<bool> {
    Ok(ModelConfig::from_folder(folder)?.head == Head::Score)
}
