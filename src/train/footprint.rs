//! Memory by part of a training step, from a model's shape alone; its work is in [`super::flops`], what to change where it
//! does not fit in [`super::shrink`]. Nothing is measured while it plans; on the CPU in f32 the peak is within a tenth of what was
//! measured (the tests have the figures).
//!
//! Letters: T tokens of a micro-batch, C model width, H query heads, K key/value heads, D head dim, F feed-forward width.

use crate::model::cache::planned_bytes;
use crate::model::frozen::packed_bytes;
use crate::model::{Head, ModelConfig};
use crate::ops::adam8::BLOCK as ADAM8_BLOCK;
use crate::ops::plain::{ATTENTION_BLOCK, HEAD_CHUNK};
use crate::ops::{LOSS_ROWS as GPU_LOSS_ROWS, PackedAs};
use crate::optim::has_8bit_states;
use crate::recipe::{Dtype, Optimizer, Recompute};
use serde::Serialize;

const F32: u64 = 4;

/// Bytes of the largest file of a result.
pub const SHARD: u64 = 5_000_000_000;

/// What a process on the CPU holds besides, measured: the program with its threads' buffers, and the part of the rest
/// that the allocator keeps between sizes.
const PROCESS: u64 = 96 << 20;
const PROCESS_SHARE: u64 = 20;
/// The same of a run that only trains, its data and files included: fitted to 22 of them (`.bench/memory.py`, and ten with a
/// large vocabulary).
const TRAINING: u64 = 112 << 20;
const TRAINING_SHARE: u64 = 7;
/// The same where sampling and training ask for blocks of other sizes in turn.
const PROCESS_SHARE_OF_BOTH: u64 = 10;

/// What of a run decides its memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    pub dtype: Dtype,
    pub recompute: Recompute,
    /// Weights of adapters, which alone are trained; none where all weights are.
    pub num_adapter_weights: Option<u64>,
    /// The projections of the blocks are quantised.
    pub quant: Option<PackedAs>,
    /// The projections of the blocks are on the host, and copied to the device for each use.
    pub stream: bool,
    /// Adapters with magnitudes apart.
    pub dora: bool,
    pub optimizer: Optimizer,
    /// Each gradient is applied and let go as it comes: one micro-batch makes a step, and nothing is clipped.
    pub at_once: bool,
    /// Tokens of a micro-batch.
    pub pack_length: usize,
    /// Tokens of the longest sequence.
    pub max_length: usize,
    /// The device is the CPU: what is on the host is there already.
    pub on_host: bool,
    /// The CPU's own operations, f32 or bf16: attention without a matrix of scores, logits that their gradient is written over.
    /// The portable ones hold a block of rows of the scores, and several tensors of a chunk of logits.
    pub fast_cpu: bool,
    /// The CUDA kernels, which hold as little, in bf16 and for the head dims that their attention knows.
    pub fast_gpu: bool,
    /// Sequences sampled side by side, in an evaluation or between updates, and their length; 0 without.
    pub num_slots: usize,
    pub slot_length: usize,
    /// What sampling between updates brings with it.
    pub rollouts: Option<Rollouts>,
}

/// What a policy that learns from its own samples holds besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollouts {
    /// A copy of the weights that the policy is compared with.
    pub has_reference: bool,
    /// Tokens of a rollout.
    pub num_tokens: usize,
    /// Completions of a prompt, and its tokens: their keys and values are held once.
    pub group_size: usize,
    pub prompt_length: usize,
}

/// Bytes of a token of a rollout, on the host: its id twice, three log-probabilities as they are kept and as they are learnt
/// from, its advantage.
const ROLLOUT_TOKEN: u64 = 2 * 4 + 3 * (4 + 8) + 8;

/// Bytes by part while training, and of the evaluation's cache, which comes after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Footprint {
    pub weights: u64,
    /// What makes f32 numbers of 16-bit weights.
    pub master: u64,
    pub gradients: u64,
    /// AdamW's m and v.
    pub optimizer: u64,
    /// Kept from the forward for the backward pass.
    pub activations: u64,
    /// What one block's backward holds besides.
    pub block: u64,
    /// Scores of the portable attention.
    pub attention: u64,
    /// A chunk of logits, with their gradient where it is not written over them.
    pub loss: u64,
    /// What the portable update of the largest tensor holds, or the embedding's gradient, whichever is more.
    pub temporaries: u64,
    /// The program and its allocator, on the CPU.
    pub process: u64,
    /// What the policy is compared with; it is in memory only while it is asked, when there are no gradients.
    pub reference: u64,
    /// Tokens of a rollout with what is known of them, on the CPU.
    pub rollout: u64,
    /// Keys and values of what is sampled, in pages, and a row of logits for each sequence.
    pub kv_cache: u64,
    /// Gradients in memory at the loss, in the blocks, and after them.
    #[serde(skip)]
    gradients_at: [u64; 3],
    /// Sampling comes between updates, not after them.
    #[serde(skip)]
    samples_between: bool,
    /// Of the model that is evaluated afterwards: adapters are in its weights, none quantised; streamed where training is.
    #[serde(skip)]
    weights_after: u64,
    /// The largest weight while an adapter is merged into it.
    #[serde(skip)]
    merged: u64,
    /// Frozen weights while they are used.
    #[serde(skip)]
    dequantised: u64,
}

impl Footprint {
    /// The footprint of training a model of this shape.
    pub fn new(config: &ModelConfig, load: &Load) -> Self {
        let base = config.num_parameters() as u64;
        let parameters = base + load.num_adapter_weights.unwrap_or(0);
        let trained = load.num_adapter_weights.unwrap_or(base);
        let element = match load.dtype {
            Dtype::F32 => F32,
            Dtype::Bf16 | Dtype::F16 => 2,
        };
        let [t, longest, layers, c, f, vocab] = [
            load.pack_length,
            load.max_length.min(load.pack_length),
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            config.vocab_size,
        ]
        .map(|n| n as u64);
        let heads = config.num_attention_heads as u64;
        let q = heads * config.head_dim as u64;
        let kv = (config.num_key_value_heads * config.head_dim) as u64;
        // x, x1; q, o; k, v; gate, up; q and k before their norm; the log sum of each head
        let qk_norm = if config.qk_norm { q + kv } else { 0 };
        let kept = (2 * c + 2 * q + 2 * kv + 2 * f + qk_norm) * element + heads * F32;
        let activations = match load.recompute {
            Recompute::None => t * layers * kept,
            Recompute::KeepAttention => t * (layers * ((c + q) * element + heads * F32) + kept),
            // on the CPU the host is where they are anyway
            Recompute::Offload if !load.on_host => t * kept,
            Recompute::Block | Recompute::Offload | Recompute::Auto => {
                t * (layers * c * element + kept)
            }
        };
        let projections = match load.quant.is_some() || load.stream {
            true => layers * (2 * c * q + 2 * c * kv + 3 * c * f),
            false => 0,
        };
        // the host is the device where that is the CPU
        let packed = match load.quant.filter(|_| load.on_host || !load.stream) {
            Some(quant) => packed_bytes(config, quant),
            None => 0,
        };
        let is_fast = load.fast_cpu || load.fast_gpu;
        // of the block at work and of the next
        let held = match load.quant.filter(|_| load.stream && !load.on_host) {
            Some(quant) => 2 * packed_bytes(config, quant) / layers.max(1),
            None => 0,
        };
        // of files: the same, or the largest in two dtypes
        let from_files = match (load.stream, load.on_host) {
            (false, _) => 0,
            (true, true) => 2 * c * f * element,
            (true, false) => 2 * projections / layers.max(1) * element,
        };
        // the largest as numbers, on the portable way through f32 codes, their places and values
        let dequantised = match (load.quant, is_fast) {
            (None, _) => from_files,
            (Some(_), true) => held + c * f * element,
            (Some(_), false) => held + c * f * (12 + element),
        };
        // the product, its gradient and their product, one of them in f32; the weight in f32, twice
        let magnitudes = match load.dora {
            true => t * f * (3 * element + F32) + 2 * c * f * F32,
            false => 0,
        };
        let largest = config
            .weight_shapes()
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>() as u64)
            .max()
            .unwrap_or(0);
        let gradients = match load.at_once {
            true => gradients_at_once(config, load),
            false => [trained * F32; 3],
        };
        let all = Self {
            weights: (parameters - projections) * element + packed,
            master: match load.dtype {
                Dtype::F32 => 0,
                Dtype::Bf16 if is_fast => trained * 2,
                Dtype::Bf16 | Dtype::F16 => trained * F32,
            },
            gradients: gradients.iter().copied().max().unwrap_or(0),
            optimizer: states(config, load),
            activations,
            // h2; gradients: of the product, gate and up; of x2, h2, x1, h1 and a part of it; of o, q and k, each also before
            // its rotation, v
            block: t * (3 * f + 6 * c + 3 * q + 3 * kv) * element + dequantised + magnitudes,
            // s, its mask, p, dp, ds and a transposed copy
            attention: if is_fast {
                0
            } else {
                6 * heads * longest.min(ATTENTION_BLOCK as u64) * longest * F32
            },
            // besides the logits: the head's input and its gradient
            loss: 2 * t * c * element
                + match (load.fast_cpu, load.fast_gpu) {
                    (true, _) => fast_loss_rows(vocab).min(t) * vocab * F32,
                    (_, true) => (GPU_LOSS_ROWS as u64).min(t) * vocab * F32,
                    // log softmax, its exponential, the one-hot targets, the gradient
                    _ => 4 * (HEAD_CHUNK as u64).min(t) * vocab * F32,
                },
            // AdamW's g, m, v and the two parts of their quotient; the rows added up, and the table before and after
            temporaries: match (is_fast, load.num_adapter_weights) {
                // the embedding has no gradient beside adapters, whose tensors are small
                (true, _) | (false, Some(_)) => 0,
                (false, None) => (5 * largest).max(3 * vocab * c) * F32,
            },
            process: 0,
            reference: match load.rollouts {
                // frozen weights are shared
                Some(rollouts) if rollouts.has_reference => trained * element,
                _ => 0,
            },
            rollout: match (load.rollouts, load.fast_cpu) {
                (Some(rollouts), true) => rollouts.num_tokens as u64 * ROLLOUT_TOKEN,
                _ => 0,
            },
            kv_cache: planned_bytes(
                layers * 2 * kv * element,
                (load.num_slots as u64, load.slot_length as u64),
                prompts_side_by_side(load),
            ) + load.num_slots as u64 * vocab * F32,
            gradients_at: gradients,
            samples_between: load.rollouts.is_some(),
            weights_after: match (load.num_slots, load.stream) {
                (0, _) => 0,
                (_, false) => base * element,
                (_, true) => (base - projections) * element + from_files,
            },
            dequantised,
            // adapters are merged a weight at a time: the weight, what is added and their sum in f32, what is stored
            merged: match load.num_adapter_weights {
                Some(_) => c * f * (4 * F32 + element),
                None => 0,
            },
        };
        match load.fast_cpu {
            true => Self {
                process: match load.rollouts {
                    Some(_) => PROCESS + all.peak() / PROCESS_SHARE_OF_BOTH,
                    None => TRAINING + all.peak() / TRAINING_SHARE,
                },
                ..all
            },
            false => all,
        }
    }

    /// The footprint of sampling alone: weights, and the cache of `num_slots` sequences.
    pub fn sampling(config: &ModelConfig, load: &Load) -> Self {
        let all = Self::new(config, load);
        let held = Self {
            master: 0,
            gradients: 0,
            gradients_at: [0; 3],
            optimizer: 0,
            activations: 0,
            block: 0,
            attention: 0,
            loss: 0,
            temporaries: 0,
            process: 0,
            samples_between: false,
            ..all
        };
        match load.fast_cpu {
            true => Self {
                process: PROCESS + held.peak() / PROCESS_SHARE,
                ..held
            },
            false => held,
        }
    }

    /// Bytes of sampling from a model as it is trained, none of it merged.
    pub fn drawing(config: &ModelConfig, load: &Load) -> u64 {
        let all = Self::new(config, load);
        let held = all.weights + all.dequantised + all.kv_cache;
        match load.fast_cpu {
            true => PROCESS + held + held / PROCESS_SHARE,
            false => held,
        }
    }

    /// The footprint of training a model that scores: no row of logits.
    pub fn scoring(config: &ModelConfig, load: &Load) -> Self {
        let mut scorer = config.clone();
        scorer.head = Head::Score;
        let narrow = Self::new(
            &ModelConfig {
                vocab_size: 1,
                ..scorer.clone()
            },
            load,
        );
        Self {
            loss: narrow.loss,
            ..Self::new(&scorer, load)
        }
    }

    /// The parts that take anything, as people call them.
    pub fn parts(&self) -> Vec<(&'static str, u64)> {
        let all = [
            ("weights", self.weights),
            ("f32 part of the weights", self.master),
            ("gradients", self.gradients),
            ("optimiser states", self.optimizer),
            ("reference", self.reference),
            ("a rollout's tokens", self.rollout),
            ("activations", self.activations),
            ("one block's backward", self.block),
            ("attention scores", self.attention),
            ("loss", self.loss),
            ("temporaries", self.temporaries),
            ("program and allocator", self.process),
            ("KV cache of sampling", self.kv_cache),
            (
                "merged weights, evaluated",
                // where they are others than those above
                match !self.samples_between && self.weights_after > self.weights {
                    true => self.weights_after,
                    false => 0,
                },
            ),
        ];
        all.into_iter().filter(|(_, size)| *size > 0).collect()
    }

    /// The same without an evaluation that comes after training, which many an answer is too short to fill.
    pub fn without_evaluation(self) -> Self {
        match self.samples_between {
            true => self,
            false => Self {
                kv_cache: 0,
                weights_after: 0,
                ..self
            },
        }
    }

    /// The most that is held at once: training, or weights and cache of an evaluation; where samples are drawn between
    /// updates, the cache besides what training holds.
    pub fn peak(&self) -> u64 {
        let moments = self.moments().into_iter();
        moments.map(|(_, bytes)| bytes).max().unwrap_or(0) + self.process
    }

    /// When that is, as people call it.
    pub fn moment(&self) -> &'static str {
        let peak = self.peak();
        let at_peak = |(_, bytes): &(&str, u64)| bytes + self.process == peak;
        let first = self.moments().into_iter().find(at_peak);
        first.map_or("training", |(name, _)| name)
    }

    /// What is held when, but for the program.
    fn moments(&self) -> [(&'static str, u64); 4] {
        let held = self.weights + self.master + self.optimizer + self.rollout;
        // the loss is over before the first block's backward begins
        let moving = (self.block + self.attention).max(self.loss);
        // of the embedding when the blocks are done, of AdamW after that: the activations are gone
        let [at_loss, in_blocks, after] = self.gradients_at;
        let training = held
            + (at_loss + self.activations + self.loss)
                .max(in_blocks + self.activations + self.block + self.attention)
                .max(after + self.temporaries);
        let beside_cache = match self.samples_between {
            true => held + self.dequantised,
            false => self.weights_after,
        };
        let asked = held + self.reference + moving;
        let saving = self.weights + self.merged;
        let sampling = beside_cache + self.kv_cache;
        let sampled = match self.samples_between {
            true => "sampling",
            false => "the evaluation",
        };
        [
            ("training", training),
            (sampled, sampling),
            ("a pass of the reference", asked),
            ("saving", saving),
        ]
    }
}

/// The prompts of the sequences that are sampled side by side, and their length, where several sequences have one. Groups
/// follow each other; the batch that begins latest in its first group touches the most of them.
fn prompts_side_by_side(load: &Load) -> (u64, u64) {
    let Some(rollouts) = load.rollouts else {
        return (0, 0);
    };
    let (slots, group) = (load.num_slots as u64, rollouts.group_size.max(1) as u64);
    let step = gcd(slots, group);
    (
        (slots + group - step).div_ceil(group),
        rollouts.prompt_length as u64,
    )
}

fn gcd(a: u64, b: u64) -> u64 {
    match b {
        0 => a,
        _ => gcd(b, a % b),
    }
}

/// The gradients that are in memory where each is let go as it is complete: that of the head, those of a block beside that of
/// a tied embedding, and that of the embedding.
fn gradients_at_once(config: &ModelConfig, load: &Load) -> [u64; 3] {
    let layers = config.num_hidden_layers.max(1) as u64;
    if let Some(adapters) = load.num_adapter_weights {
        return [0, adapters.div_ceil(layers) * F32, 0];
    }
    let table = (config.vocab_size * config.hidden_size) as u64;
    let (kept, tables) = match (config.head, config.tie_word_embeddings) {
        (Head::Vocabulary, true) => (table, table),
        (Head::Vocabulary, false) => (0, 2 * table),
        (Head::Score, _) => (0, table),
    };
    let block = (config.num_parameters() as u64).saturating_sub(tables) / layers;
    let at_loss = match config.head {
        Head::Vocabulary => table,
        Head::Score => 0,
    };
    [at_loss, kept + block, table].map(|n| n * F32)
}

/// AdamW's m and v.
pub(super) fn states(config: &ModelConfig, load: &Load) -> u64 {
    let shapes = config.weight_shapes();
    let size = |shape: &[usize]| shape.iter().product::<usize>() as u64;
    let base: u64 = shapes.iter().map(|(_, shape)| size(shape)).sum();
    let small = shapes.iter().filter(|(name, s)| !has_8bit_states(name, s));
    let in_f32 = match (load.optimizer, load.num_adapter_weights) {
        (Optimizer::AdamW, adapters) => adapters.unwrap_or(base),
        // small ones of adapters hardly count
        (Optimizer::AdamW8bit, Some(_)) => 0,
        (Optimizer::AdamW8bit, None) => small.map(|(_, shape)| size(shape)).sum(),
    };
    let in_8_bits = load.num_adapter_weights.unwrap_or(base) - in_f32;
    // a code, and a share of the f32 scale of a block
    2 * (in_f32 * F32 + in_8_bits + in_8_bits.div_ceil(ADAM8_BLOCK as u64) * F32)
}

/// Rows of logits that the CPU's fast loss holds at a time, as `ops::head_cpu` cuts them.
fn fast_loss_rows(vocab: u64) -> u64 {
    ((1 << 25) / vocab.max(1)).clamp(64, 512)
}

#[cfg(test)]
#[path = "footprint_tests.rs"]
pub(super) mod tests;
