//! Qwen2 / Qwen2.5, Qwen3 and Llama 3.x: forward and backward written out over [`crate::ops`], weights in and out in the
//! layout of Hugging Face, and the KV cache. No tokenizer, no optimiser, no loop.
//!
//! Letters: T tokens of all sequences end to end, C model width, H query heads, K key/value heads, D head dim, V
//! vocabulary, B sequences that are decoded side by side.
//!
//! - [`config`]: `config.json`; [`family`]: shapes of known models by name; [`weights`], `weights_save`: safetensors;
//! - `block`: one transformer block, `linear`: a projection of it; [`adapter`]: LoRA, rsLoRA and DoRA beside frozen weights,
//!   [`adapter_files`]: theirs;
//! - [`frozen`]: weights beside adapters, quantised or in their files; [`cache`], `pages`: keys and values of sequences being
//!   sampled;
//! - [`policy`]: gradients of functions of the log-probabilities, for reinforcement learning and preferences;
//! - [`reward`]: the same blocks with one number as their result;
//! - [`gguf`], [`gguf_types`], `gguf_names`, [`gguf_tokenizer`]: the file that llama.cpp reads.

pub mod adapter;
pub mod adapter_files;
mod block;
pub mod cache;
pub mod config;
pub mod family;
pub mod frozen;
pub mod gguf;
mod gguf_names;
pub mod gguf_tokenizer;
pub mod gguf_types;
mod linear;
mod pages;
pub mod policy;
pub mod reward;
mod rope;
pub mod weights;
mod weights_save;
mod window;

pub use adapter::AdapterConfig;
pub use cache::KvCache;
pub use config::{Architecture, Head, Llama3Scaling, ModelConfig};
pub use frozen::FrozenAs;
pub use policy::{TokenObjective, TokenStats};
pub use reward::RewardModel;

use crate::ops::{self, Gradients, ParamId, RopeTable, SeqLens};
use crate::random::{GOLDEN, mix};
use crate::recipe;
use crate::{Error, Result};
use adapter::Adapters;
use block::{Attended, Block, Places, Saved};
use candle_core::{DType, Device, Tensor};
use frozen::FrozenWeights;
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::Path;

/// A named weight.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// As in the files of Hugging Face.
    pub name: String,
    /// Updated in place by the optimiser.
    pub value: Tensor,
}

/// Where weights go and in which dtype.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    pub device: Device,
    pub dtype: DType,
}

/// Which activations are computed again in the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recompute {
    /// None: all are kept.
    None,
    /// A block's input and what attention gave are kept, the rest computed again.
    KeepAttention,
    /// A block's input is kept, the rest computed again.
    Block,
    /// The same, and the inputs wait in the memory of the host.
    Offload,
}

impl From<recipe::Recompute> for Recompute {
    fn from(recompute: recipe::Recompute) -> Self {
        match recompute {
            recipe::Recompute::None => Self::None,
            recipe::Recompute::KeepAttention => Self::KeepAttention,
            // the memory is not known
            recipe::Recompute::Block | recipe::Recompute::Auto => Self::Block,
            recipe::Recompute::Offload => Self::Offload,
        }
    }
}

/// Sequences end to end with what each token should predict.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    pub tokens: Vec<u32>,
    /// Sums to the number of tokens.
    pub seq_lens: Vec<usize>,
    /// The next token of the same sequence; of no meaning where the weight is 0.
    pub targets: Vec<u32>,
    /// Weight of each target's log-probability in the loss; 0 is not trained.
    pub weights: Vec<f32>,
}

/// Told after the head, after each block and at the end of a backward pass that all gradients there are complete, but that of
/// the parameter it is given: it may take them.
pub type EachFn<'a> = &'a mut (dyn FnMut(&mut Gradients, Option<ParamId>) -> Result<()> + Send);

/// A causal language model.
pub struct CausalLm {
    config: ModelConfig,
    /// Those of the adapters, where there are some, come last.
    parameters: Vec<Parameter>,
    /// The first of them, which are not trained.
    num_frozen: usize,
    adapters: Option<Adapters>,
    /// Weights whose place among the parameters is empty.
    frozen: FrozenWeights,
    blocks: Vec<Block>,
    embed: ParamId,
    norm: ParamId,
    head: ParamId,
    rope: RopeTable,
    device: Device,
    dtype: DType,
}

impl CausalLm {
    /// Loads a folder in the Hugging Face layout.
    ///
    /// # Errors
    /// A missing, damaged or unfitting file or tensor, named.
    pub fn load(folder: &Path, options: &LoadOptions) -> Result<Self> {
        Self::load_as(folder, ModelConfig::from_folder(folder)?, options)
    }

    /// Loads the weights of a folder under a changed configuration (RoPE base, number of positions).
    ///
    /// # Errors
    /// As [`CausalLm::load`].
    pub fn load_as(folder: &Path, config: ModelConfig, options: &LoadOptions) -> Result<Self> {
        if config.head == Head::Score {
            return Err(Error::input(format!(
                "`{}` holds a reward model, which writes no text",
                folder.display()
            ))
            .with_hint("name it where rewards are listed: `name = \"reward_model\"`"));
        }
        let weights = weights::load(folder, &config, &options.device, options.dtype)?;
        Self::from_weights(config, weights, &options.device, options.dtype)
    }

    /// Random weights: normal with `initializer_range`, norms 1, biases 0. The same seed gives the same weights on every
    /// machine and device.
    pub fn random(config: ModelConfig, seed: u64, device: &Device, dtype: DType) -> Result<Self> {
        let std = config.initializer_range;
        let weights = config
            .weight_shapes()
            .iter()
            .enumerate()
            .map(|(i, (name, shape))| -> Result<Tensor> {
                let n = shape.iter().product();
                let values: Vec<f32> = if name.ends_with(".bias") {
                    vec![0.0; n]
                } else if shape.len() == 1 {
                    vec![1.0; n]
                } else {
                    normal(seed, i as u64, n, std)
                };
                Ok(Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?
                    .to_dtype(dtype)?
                    .to_device(device)?)
            })
            .collect::<Result<_>>()?;
        Self::from_weights(config, weights, device, dtype)
    }

    fn from_weights(
        config: ModelConfig,
        weights: Vec<Tensor>,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let parameters: Vec<Parameter> = config
            .weight_shapes()
            .into_iter()
            .zip(weights)
            .map(|((name, _), value)| Parameter { name, value })
            .collect();
        let places: HashMap<String, ParamId> = parameters
            .iter()
            .enumerate()
            .map(|(i, p)| (p.name.clone(), ParamId(i)))
            .collect();
        let id = |name: &str| places[name];
        let embed = id("model.embed_tokens.weight");
        Ok(Self {
            blocks: (0..config.num_hidden_layers)
                .map(|l| Block::new(&config, l, &id))
                .collect(),
            embed,
            norm: id("model.norm.weight"),
            head: match config.head {
                Head::Score => id("score.weight"),
                Head::Vocabulary if config.tie_word_embeddings => embed,
                Head::Vocabulary => id("lm_head.weight"),
            },
            rope: rope::table(&config, device)?,
            config,
            parameters,
            num_frozen: 0,
            adapters: None,
            frozen: FrozenWeights::default(),
            device: device.clone(),
            dtype,
        })
    }

    /// Another view of the same weights, adapters included: who changes one changes both.
    fn share(&self) -> Result<Self> {
        Ok(Self {
            config: self.config.clone(),
            parameters: self.parameters.clone(),
            num_frozen: self.num_frozen,
            adapters: self.adapters.as_ref().map(Adapters::copy).transpose()?,
            frozen: self.frozen.clone(),
            blocks: self.blocks.clone(),
            embed: self.embed,
            norm: self.norm,
            head: self.head,
            rope: self.rope.clone(),
            device: self.device.clone(),
            dtype: self.dtype,
        })
    }

    /// Writes weights and `config.json`; shards of at most `max_shard_bytes`. Adapters are merged into the weights.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, folder: &Path, max_shard_bytes: u64) -> Result<()> {
        let base = &self.parameters[..self.num_base()];
        let names: Vec<String> = base.iter().map(|p| p.name.clone()).collect();
        let get = |i: usize| self.merged_weight(ParamId(i));
        let (config, dtype) = (&self.config, self.dtype);
        weights_save::save(folder, config, dtype, &names, &get, max_shard_bytes)
    }

    /// The shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// All weights; a [`ParamId`] is a place in this list.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Dtype of weights and activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The weights that training changes, and the place of the first of them: all, or those of the adapters.
    pub fn trained(&self) -> (ParamId, &[Parameter]) {
        (
            ParamId(self.num_frozen),
            &self.parameters[self.num_frozen..],
        )
    }

    /// Zero gradients for all weights that are trained.
    pub fn new_gradients(&self) -> Gradients {
        let shapes = self
            .parameters
            .iter()
            .map(|p| p.value.dims().to_vec())
            .collect();
        Gradients::after(self.num_frozen, shapes, &self.device)
    }

    fn w(&self, id: ParamId) -> &Tensor {
        &self.parameters[id.0].value
    }

    fn scale(&self) -> f64 {
        1.0 / (self.config.head_dim as f64).sqrt()
    }

    /// Adds the gradient of `-sum_t weights[t] * logp[t]` to `grads` and returns `logp`, 0 where the weight is 0.
    ///
    /// # Errors
    /// A batch whose parts do not fit each other or the model.
    pub fn forward_backward(
        &self,
        batch: &Batch,
        recompute: Recompute,
        grads: &mut Gradients,
    ) -> Result<Vec<f32>> {
        self.forward_backward_each(batch, recompute, grads, &mut |_, _| Ok(()))
    }

    /// The same, with gradients taken as they come: those of a weight are not needed any more once they are complete, nor is
    /// the weight.
    ///
    /// # Errors
    /// As [`CausalLm::forward_backward`], and those of `each`.
    pub fn forward_backward_each(
        &self,
        batch: &Batch,
        recompute: Recompute,
        grads: &mut Gradients,
        each: EachFn,
    ) -> Result<Vec<f32>> {
        let rows = self.check(batch)?;
        if rows.is_empty() {
            return Ok(vec![0.0; batch.tokens.len()]);
        }
        let targets: Vec<u32> = rows.iter().map(|&r| batch.targets[r as usize]).collect();
        let weights: Vec<f32> = rows.iter().map(|&r| batch.weights[r as usize]).collect();
        let head = |h: &Tensor, grads: &mut Gradients| {
            ops::linear_cross_entropy(h, self.w(self.head), &targets, &weights, grads, self.head)
        };
        let some = ops::in_pool(|| self.pass_and_back(batch, &rows, recompute, grads, head, each))?;
        Ok(in_place(&rows, some, batch.tokens.len()))
    }

    /// Forward and backward around `head`, which takes the normed residual stream of `rows` `[R, C]` and gives its
    /// gradient.
    fn pass_and_back<T>(
        &self,
        batch: &Batch,
        rows: &[u32],
        recompute: Recompute,
        grads: &mut Gradients,
        head: impl FnOnce(&Tensor, &mut Gradients) -> Result<(T, Tensor)>,
        each: EachFn,
    ) -> Result<T> {
        let seqs = SeqLens::new(&batch.seq_lens);
        let positions = seqs.positions();
        let places = Places {
            rope: &self.rope,
            positions: &positions,
        };
        let mut x = ops::embedding(self.w(self.embed), &batch.tokens)?; // [T, C]
        let mut kept: Vec<Kept> = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (y, saved) = block.forward(self, &x, &seqs, &places)?;
            kept.push(match recompute {
                Recompute::None => Kept::All(Box::new(saved)),
                Recompute::KeepAttention => Kept::Input(x, Some(saved.attended)),
                Recompute::Block => Kept::Input(x, None),
                Recompute::Offload => Kept::Input(x.to_device(&Device::Cpu)?, None),
            });
            x = y;
        }
        let (found, mut dx) = self.head_backward(rows, &x, grads, head)?;
        drop(x);
        each(grads, Some(self.embed))?;
        for block in self.blocks.iter().rev() {
            let Some(kept) = kept.pop() else { break };
            let saved = match kept {
                Kept::All(saved) => *saved,
                Kept::Input(x, attended) => {
                    let x = x.to_device(&self.device)?;
                    block.saved(self, &x, attended, &seqs, &places)?
                }
            };
            dx = block.backward(self, saved, dx, &seqs, &places, grads)?;
            each(grads, Some(self.embed))?;
        }
        grads.add_rows(self.embed, &batch.tokens, &dx)?;
        each(grads, None)?;
        Ok(found)
    }

    /// Loss and its gradient with respect to the last residual stream; only trained rows go through the head.
    fn head_backward<T>(
        &self,
        rows: &[u32],
        x: &Tensor,
        grads: &mut Gradients,
        head: impl FnOnce(&Tensor, &mut Gradients) -> Result<(T, Tensor)>,
    ) -> Result<(T, Tensor)> {
        let eps = self.config.rms_norm_eps;
        let all = rows.len() == x.dim(0)?;
        let index = Tensor::new(rows, &self.device)?;
        let picked = if all {
            x.clone()
        } else {
            x.index_select(&index, 0)?
        }; // [R, C]
        let h = ops::rms_norm(&picked, self.w(self.norm), eps)?;
        let (found, dh) = head(&h, grads)?;
        let (d_picked, d_w) = ops::rms_norm_backward(&picked, self.w(self.norm), eps, &dh)?;
        grads.add(self.norm, &d_w)?;
        let dx = if all {
            d_picked
        } else {
            // each row from where its gradient is, the others from a row of zeros: one read of everything on any device
            let mut from = vec![rows.len() as u32; x.dim(0)?];
            for (place, &row) in rows.iter().enumerate() {
                from[row as usize] = place as u32;
            }
            let from = Tensor::new(from, &self.device)?;
            d_picked.pad_with_zeros(0, 0, 1)?.index_select(&from, 0)?
        };
        Ok((found, dx))
    }

    /// Log-probability of each target whose weight is not 0; 0 elsewhere.
    pub fn logprobs(&self, batch: &Batch) -> Result<Vec<f32>> {
        let rows = self.check(batch)?;
        let num_tokens = batch.tokens.len();
        if rows.is_empty() {
            return Ok(vec![0.0; num_tokens]);
        }
        let (h, targets) = self.normed(batch, &rows)?;
        let some = ops::linear_logprobs(&h, self.w(self.head), &targets)?;
        Ok(in_place(&rows, some, num_tokens))
    }

    /// The normed residual stream of `rows`, without what a backward needs, and their targets. -> `[R, C]`
    fn normed(&self, batch: &Batch, rows: &[u32]) -> Result<(Tensor, Vec<u32>)> {
        let x = ops::in_pool(|| self.residual(&batch.tokens, &batch.seq_lens))?;
        let picked = x.index_select(&Tensor::new(rows, &self.device)?, 0)?;
        let h = ops::rms_norm(&picked, self.w(self.norm), self.config.rms_norm_eps)?;
        let targets = rows.iter().map(|&r| batch.targets[r as usize]).collect();
        Ok((h, targets))
    }

    /// Logits of every token, `[T, V]` in f32: for tests and small inputs.
    pub fn logits(&self, tokens: &[u32], seq_lens: &[usize]) -> Result<Tensor> {
        let x = ops::in_pool(|| self.residual(tokens, seq_lens))?;
        let h = ops::rms_norm(&x, self.w(self.norm), self.config.rms_norm_eps)?;
        match ops::logits_on_gpu(&h, self.w(self.head))? {
            Some(logits) => Ok(logits),
            None => Ok(ops::linear(&h, self.w(self.head), None)?.to_dtype(DType::F32)?),
        }
    }

    /// The residual stream after the last block. -> `[T, C]`
    fn residual(&self, tokens: &[u32], seq_lens: &[usize]) -> Result<Tensor> {
        self.check_tokens(tokens, seq_lens)?;
        let seqs = SeqLens::new(seq_lens);
        let positions = seqs.positions();
        let places = Places {
            rope: &self.rope,
            positions: &positions,
        };
        let mut x = ops::embedding(self.w(self.embed), tokens)?;
        for block in &self.blocks {
            let h = block.norm1(self, &x)?;
            let qkv = block.qkv(self, &h, &places, ops::linears)?;
            let (o, _) = ops::attention(&qkv.q, &qkv.k, &qkv.v, &seqs, self.scale())?;
            x = block.finish(self, &x, &o, ops::linears)?;
        }
        Ok(x)
    }

    /// Rows with a weight, after checking that the batch fits.
    fn check(&self, batch: &Batch) -> Result<Vec<u32>> {
        let t = batch.tokens.len();
        if batch.targets.len() != t || batch.weights.len() != t {
            return Err(Error::input(format!(
                "a batch of {t} tokens has {} targets and {} weights",
                batch.targets.len(),
                batch.weights.len()
            )));
        }
        self.check_tokens(&batch.tokens, &batch.seq_lens)?;
        let rows: Vec<u32> = (0..t as u32)
            .filter(|&r| batch.weights[r as usize] != 0.0)
            .collect();
        for &row in &rows {
            self.check_token(batch.targets[row as usize])?;
        }
        Ok(rows)
    }

    fn check_tokens(&self, tokens: &[u32], seq_lens: &[usize]) -> Result<()> {
        if seq_lens.iter().sum::<usize>() != tokens.len() || tokens.is_empty() {
            return Err(Error::input(format!(
                "{} tokens are no sequences of lengths {seq_lens:?}",
                tokens.len()
            )));
        }
        if let Some(longest) = seq_lens.iter().max()
            && *longest > self.config.max_position_embeddings
        {
            return Err(Error::input(format!(
                "a sequence of {longest} tokens is longer than the model's {} positions",
                self.config.max_position_embeddings
            )));
        }
        tokens.iter().try_for_each(|&token| self.check_token(token))
    }

    fn check_token(&self, token: u32) -> Result<()> {
        if (token as usize) < self.config.vocab_size {
            return Ok(());
        }
        Err(Error::input(format!(
            "token {token} is outside the model's vocabulary of {}",
            self.config.vocab_size
        ))
        .with_hint("the tokenizer belongs to another model"))
    }
}

/// Values of `rows` at their places among `num_tokens`, 0 elsewhere.
fn in_place(rows: &[u32], values: Vec<f32>, num_tokens: usize) -> Vec<f32> {
    let mut all = vec![0.0; num_tokens];
    for (&row, value) in rows.iter().zip(values) {
        all[row as usize] = value;
    }
    all
}

/// What a block's backward starts from.
enum Kept {
    All(Box<Saved>),
    Input(Tensor, Option<Attended>),
}

/// The `i`th number in `[0, 1)` of a stream: SplitMix64 by counter.
fn unit(seed: u64, stream: u64, i: u64) -> f64 {
    let base =
        (seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95)).wrapping_mul(0x2545_f491_4f6c_dd1d);
    (mix(base.wrapping_add(i + 1).wrapping_mul(GOLDEN)) >> 11) as f64 / (1u64 << 53) as f64
}

/// n numbers of a stream between `-most` and `most`.
fn uniform(seed: u64, stream: u64, n: usize, most: f64) -> Vec<f32> {
    (0..n as u64)
        .into_par_iter()
        .map(|i| (most * (2.0 * unit(seed, stream, i) - 1.0)) as f32)
        .collect()
}

/// n normal numbers of a stream, by Box-Muller.
fn normal(seed: u64, stream: u64, n: usize, std: f64) -> Vec<f32> {
    (0..n as u64)
        .into_par_iter()
        .map(|i| {
            let (a, b) = (unit(seed, stream, 2 * i), unit(seed, stream, 2 * i + 1));
            let radius = (-2.0 * (1.0 - a).ln()).sqrt();
            (std * radius * (2.0 * std::f64::consts::PI * b).cos()) as f32
        })
        .collect()
}
