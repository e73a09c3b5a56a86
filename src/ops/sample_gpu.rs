//! Drawing tokens where the logits are, by the kernel of `sample.cu`: what comes back is a few bytes a row, not a row.

use super::gpu::{Arg, Gpu, Kernel, Launch, Module};
use crate::{Error, Result};
use candle_core::{DType, Tensor};

/// Which tokens stay in play.
#[derive(Clone, Copy, Debug)]
pub struct Filters {
    /// 0 draws the most probable token.
    pub temperature: f64,
    /// 0 keeps all.
    pub top_k: usize,
    /// 1 keeps all.
    pub top_p: f64,
    /// Relative to the most probable token; 0 keeps all.
    pub min_p: f64,
}

/// A token with its natural log-probability at temperature 1, and at that of the draw (0 for a greedy one).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    pub token: u32,
    pub logprob: f32,
    pub sampled_logprob: f32,
}

/// One token a row of logits `[B, V]` with the uniform numbers `us`; none for a row that is no distribution. None at all
/// where the logits are not on a GPU that can do it: the caller then draws by itself.
pub fn sample(
    logits: &Tensor,
    filters: &Filters,
    us: &[f64],
) -> Result<Option<Vec<Option<Drawn>>>> {
    let Some(gpu) = Gpu::of(logits) else {
        return Ok(None);
    };
    let (rows, vocab) = logits.dims2()?;
    if us.len() != rows || vocab == 0 {
        return Err(Error::input(format!(
            "{} numbers for {rows} draws of {vocab} tokens",
            us.len()
        )));
    }
    let logits = gpu.readable(&logits.to_dtype(DType::F32)?)?;
    let us = gpu.upload(us)?;
    let out = gpu.upload(&vec![0u32; 4 * rows])?;
    let scale = match filters.temperature > 0.0 {
        true => (1.0 / filters.temperature) as f32,
        false => 0.0,
    };
    gpu.launch(
        Kernel(Module::Sample, "sample_f32"),
        Launch {
            grid: (rows, 1, 1),
            threads: 1024,
            shared_bytes: 0,
        },
        &[
            Arg::Tensor(&logits),
            Arg::U32(vocab as u32),
            Arg::F32(scale),
            Arg::U32(filters.top_k.min(vocab) as u32),
            Arg::F64(filters.top_p),
            Arg::F32(filters.min_p as f32),
            Arg::Tensor(&us),
            Arg::Tensor(&out),
        ],
    )?;
    let out = out.to_vec1::<u32>()?;
    let drawn = out.chunks_exact(4).map(|row| {
        (row[3] == 1).then(|| Drawn {
            token: row[0],
            logprob: f32::from_bits(row[1]),
            sampled_logprob: f32::from_bits(row[2]),
        })
    });
    Ok(Some(drawn.collect()))
}
