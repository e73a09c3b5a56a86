//! Operations with a hand-written backward, each in a plain and a fast form. No autograd tape: every forward has a
//! matching `*_backward` that takes what the forward took and the incoming gradient, and returns the outgoing ones.
//!
//! Letters: T tokens of all sequences end to end, C model width, H query heads, K key/value heads, D head dim,
//! F feed-forward width, V vocabulary.
//!
//! [`plain`] composes candle's operations and runs on every device and dtype; it is the reference. The functions here, which
//! [`dispatch`] holds, take a fast kernel where the tensors are f32 or bf16, contiguous and on the CPU or a CUDA device.

pub mod adam8;
mod attention_cpu;
mod attention_gpu;
mod cpu;
pub mod decode;
mod decode_attention_cpu;
mod decode_cpu;
mod decode_gpu;
pub mod device;
pub mod dispatch;
#[cfg(target_arch = "x86_64")]
mod dpbf16;
mod dynamic_map;
mod element;
pub mod ggml;
mod ggml_encode;
mod gpu;
pub mod gradients;
mod head_cpu;
mod head_gpu;
pub mod master;
pub mod nf4;
mod optim_gpu;
pub mod packed;
pub mod paged;
pub mod plain;
mod product;
mod quant_gpu;
mod rows_cpu;
mod rows_gpu;
mod sample_gpu;
pub mod seq_lens;
pub mod staging;
pub mod tensor_file;
pub mod update;
pub(crate) mod vector;

pub use adam8::{Adam8State, adamw8_inplace};
pub use dispatch::{
    attention, attention_backward, linear, linear_backward_input, linear_logprobs,
    linear_logprobs_backward, linear_policy_backward, linear_token_stats, rms_norm,
    rms_norm_backward, rope, rope_backward, swiglu, swiglu_backward,
};
pub use ggml::{GgmlBlocks, GgmlType};
pub use ggml_encode::encode as encode_ggml;
#[cfg(feature = "cuda-emulator")]
pub use gpu::{pause_emulator, use_emulator};
pub use gradients::{Gradients, ParamId};
pub use head_gpu::{LOSS_ROWS, logits_on_gpu};
pub use master::Master;
pub use nf4::Nf4;
pub use packed::{Packed, PackedAs};
pub use plain::embedding;
pub use sample_gpu::{Drawn, Filters, sample};
pub use seq_lens::SeqLens;
pub use update::{AdamWStep, adamw_inplace, add_inplace, sum_rows};

use crate::Result;
use candle_core::Tensor;
use std::ops::Range;

/// Runs `work` on one of rayon's threads: the many short parallel regions of a pass then begin without waking a thread
/// that waits for each of them.
pub fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

/// A weight `[O, I]` and its bias `[O]`.
pub type Projection<'a> = (&'a Tensor, Option<&'a Tensor>);

/// [`linear`] for each of several weights.
pub fn linears(x: &Tensor, weights: &[Projection]) -> Result<Vec<Tensor>> {
    weights.iter().map(|&(w, b)| linear(x, w, b)).collect()
}

/// What a pass tells of each target: its log-probability, and the entropy `-sum_j p_j ln p_j` of the distribution that it
/// is drawn from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenStats {
    pub logprobs: Vec<f32>,
    pub entropies: Vec<f32>,
}

/// Coefficients of a run of rows from their log-probabilities.
pub type CoefsFn<'a> = &'a mut dyn FnMut(Range<usize>, &[f32]) -> Result<Vec<f32>>;

/// Cosines and sines of every position: `[P, D/2]` each, f32.
#[derive(Clone, Debug)]
pub struct RopeTable {
    pub cos: Tensor,
    pub sin: Tensor,
}

/// Loss `-sum_t weights[t] * logp[t]` of trained rows in one pass: log-probabilities of the targets, and the gradient of
/// the loss with respect to h `[T, C]`; the gradient of w is added to `grads`. The logits never exist whole.
pub fn linear_cross_entropy(
    h: &Tensor,
    w: &Tensor,
    targets: &[u32],
    weights: &[f32],
    grads: &mut Gradients,
    w_id: ParamId,
) -> Result<(Vec<f32>, Tensor)> {
    let coef: Vec<f32> = weights.iter().map(|w| -w).collect();
    linear_logprobs_backward(h, w, targets, &coef, grads, w_id)
}
