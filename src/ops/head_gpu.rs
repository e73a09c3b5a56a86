//! The head on a GPU: a chunk of logits by cuBLAS in f32, what is asked of each row by a kernel of `head.cu`, the gradient of
//! the logits in their own memory.

use super::gpu::{Arg, Gpu, Kernel, Launch, Module, Operand, suffix};
use super::{CoefsFn, Gradients, ParamId, TokenStats, plain};
use crate::Result;
use candle_core::{DType, Tensor};

/// Rows of logits that exist at a time: enough that the gradient of the head, which every chunk adds to, is not what takes
/// the time.
pub const LOSS_ROWS: usize = 1024;
const THREADS: usize = 512;

/// Logits in f32, as training computes them; none where h is not on a GPU. h `[T, C]`, w `[V, C]` -> `[T, V]`
pub fn logits_on_gpu(h: &Tensor, w: &Tensor) -> Result<Option<Tensor>> {
    let Some(gpu) = Gpu::of(h) else {
        return Ok(None);
    };
    let ((rows, c), (vocab, w_c)) = (h.dims2()?, w.dims2()?);
    if c != w_c {
        return Ok(None);
    }
    let (h, w) = (gpu.readable(h)?, gpu.readable(&w.to_dtype(h.dtype())?)?);
    product(&gpu, (&h, &w), (rows, vocab, c)).map(Some)
}

fn product(gpu: &Gpu, (h, w): (&Tensor, &Tensor), sizes: (usize, usize, usize)) -> Result<Tensor> {
    let (rows, vocab, c) = sizes;
    let logits = gpu.empty((rows, vocab), DType::F32)?;
    let (h, w) = (Operand::rows(h, c), Operand::rows(w, c).t());
    gpu.gemm(sizes, h, w, (&logits, vocab), false)?;
    Ok(logits)
}

/// Logits of some rows, with what is known of them.
struct Chunk<'a> {
    gpu: &'a Gpu,
    h: Tensor,
    w: &'a Tensor,
    targets: Tensor,
    /// `[rows, V]` in f32, later their gradient
    logits: Tensor,
    /// `[rows, 3]`: log-probability, entropy, log-sum-exp
    stats: Tensor,
}

impl<'a> Chunk<'a> {
    /// h `[rows, C]`, w `[V, C]`.
    fn new(gpu: &'a Gpu, h: &Tensor, w: &'a Tensor, targets: &[u32]) -> Result<Self> {
        let h = gpu.readable(h)?;
        let ((rows, c), vocab) = (h.dims2()?, w.dim(0)?);
        let logits = product(gpu, (&h, w), (rows, vocab, c))?;
        let stats = gpu.empty((rows, 3), DType::F32)?;
        let targets = gpu.upload(targets)?;
        gpu.launch(
            Kernel(Module::Head, "head_stats_f32"),
            a_block_a_row(rows),
            &[
                Arg::Tensor(&logits),
                Arg::Size(vocab),
                Arg::Tensor(&targets),
                Arg::Tensor(&stats),
                Arg::U32(vocab as u32),
            ],
        )?;
        Ok(Self {
            gpu,
            h,
            w,
            targets,
            logits,
            stats,
        })
    }

    /// Waits for the device.
    fn stats(&self) -> Result<TokenStats> {
        let rows = self.stats.to_vec2::<f32>()?;
        Ok(TokenStats {
            logprobs: rows.iter().map(|row| row[0]).collect(),
            entropies: rows.iter().map(|row| row[1]).collect(),
        })
    }

    /// The gradient of h `[rows, C]` where the loss has this derivative by each log-probability; that of w goes to `grads`.
    fn backward(self, coefs: &[f32], grads: &mut Gradients, w_id: ParamId) -> Result<Tensor> {
        let ((rows, c), vocab, dtype) = (self.h.dims2()?, self.w.dim(0)?, self.h.dtype());
        let coefs = self.gpu.upload(coefs)?;
        self.gpu.launch(
            Kernel(Module::Head, &format!("head_gradient_{}", suffix(dtype))),
            a_block_a_row(rows),
            &[
                Arg::Tensor(&self.logits),
                Arg::Size(vocab),
                Arg::Tensor(&self.targets),
                Arg::Tensor(&self.stats),
                Arg::Tensor(&coefs),
                Arg::U32(vocab as u32),
            ],
        )?;
        // rows of 16-bit gradients begin where the rows of f32 logits did
        let stride = vocab * 4 / dtype.size_in_bytes();
        let d_logits = Operand {
            dtype: Some(dtype),
            ..Operand::rows(&self.logits, stride)
        };
        grads.add_gemm(
            self.gpu,
            w_id,
            rows,
            d_logits.t(),
            Operand::rows(&self.h, c),
        )?;
        let dh = self.gpu.empty((rows, c), DType::F32)?;
        self.gpu.gemm(
            (rows, c, vocab),
            d_logits,
            Operand::rows(self.w, c),
            (&dh, c),
            false,
        )?;
        Ok(dh.to_dtype(dtype)?)
    }
}

fn a_block_a_row(rows: usize) -> Launch {
    Launch {
        grid: (rows, 1, 1),
        threads: THREADS,
        shared_bytes: 0,
    }
}

fn chunks(num: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..num)
        .step_by(LOSS_ROWS)
        .map(move |first| first..num.min(first + LOSS_ROWS))
}

/// See [`plain::linear_token_stats`].
pub(super) fn token_stats(
    gpu: &Gpu,
    h: &Tensor,
    w: &Tensor,
    targets: &[u32],
) -> Result<TokenStats> {
    let w = gpu.readable(&w.to_dtype(h.dtype())?)?;
    let mut all = TokenStats::default();
    for rows in chunks(targets.len()) {
        let h = h.narrow(0, rows.start, rows.len())?;
        let stats = Chunk::new(gpu, &h, &w, &targets[rows])?.stats()?;
        all.logprobs.extend(stats.logprobs);
        all.entropies.extend(stats.entropies);
    }
    Ok(all)
}

/// See [`plain::linear_policy_backward`].
pub(super) fn policy_backward(
    gpu: &Gpu,
    h: &Tensor,
    w: &Tensor,
    targets: &[u32],
    coefs: CoefsFn,
    grads: &mut Gradients,
    w_id: ParamId,
) -> Result<(TokenStats, Tensor)> {
    if targets.is_empty() {
        return plain::linear_policy_backward(h, w, targets, coefs, grads, w_id);
    }
    let w = gpu.readable(&w.to_dtype(h.dtype())?)?;
    let (mut all, mut dhs) = (TokenStats::default(), Vec::new());
    for rows in chunks(targets.len()) {
        let chunk = Chunk::new(
            gpu,
            &h.narrow(0, rows.start, rows.len())?,
            &w,
            &targets[rows.clone()],
        )?;
        let stats = chunk.stats()?;
        let coefs = coefs(rows, &stats.logprobs)?;
        dhs.push(chunk.backward(&coefs, grads, w_id)?);
        all.logprobs.extend(stats.logprobs);
        all.entropies.extend(stats.entropies);
    }
    Ok((all, Tensor::cat(&dhs, 0)?))
}
