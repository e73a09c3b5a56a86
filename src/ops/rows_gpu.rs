//! The kernels of `rows.cu`: shapes to grids. Formulas stand in [`super::plain`].

use super::RopeTable;
use super::gpu::{Arg, Gpu, Kernel, Launch, Module, suffix};
use crate::Result;
use candle_core::{DType, Tensor};

/// Threads of a block where each works for itself.
const THREADS: usize = 256;
/// Values that a thread of an elementwise kernel takes, and a row's lane at a time (`WIDE` in kernel.cuh).
const WIDE: usize = 8;
/// Rows that a block of `column_sums` adds up.
const ROWS_A_PART: usize = 512;

fn named(name: &str, dtype: DType) -> String {
    format!("{name}_{}", suffix(dtype))
}

fn rows(name: &str) -> Kernel<'_> {
    Kernel(Module::Rows, name)
}

/// See [`super::plain::rms_norm`].
pub(super) fn rms_norm(gpu: &Gpu, x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    let size = w.elem_count();
    let num_rows = x.elem_count() / size;
    let (x, w) = (gpu.readable(x)?, gpu.readable(&w.to_dtype(x.dtype())?)?);
    let y = gpu.empty(x.shape(), x.dtype())?;
    gpu.launch(
        rows(&named("rms_norm", x.dtype())),
        Launch::over(num_rows * 32, THREADS),
        &[
            Arg::Tensor(&x),
            Arg::Tensor(&w),
            Arg::Tensor(&y),
            Arg::U32(num_rows as u32),
            Arg::U32(size as u32),
            Arg::F32(eps as f32),
        ],
    )?;
    Ok(y)
}

/// See [`super::plain::rms_norm_backward`].
pub(super) fn rms_norm_backward(
    gpu: &Gpu,
    x: &Tensor,
    w: &Tensor,
    eps: f64,
    dy: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let size = w.elem_count();
    let num_rows = x.elem_count() / size;
    let (x, w) = (gpu.readable(x)?, gpu.readable(&w.to_dtype(x.dtype())?)?);
    let dy = gpu.readable(&dy.to_dtype(x.dtype())?)?;
    let dx = gpu.empty(x.shape(), x.dtype())?;
    let rstds = gpu.empty(num_rows, DType::F32)?;
    gpu.launch(
        rows(&named("rms_norm_backward", x.dtype())),
        Launch::over(num_rows * 32, THREADS),
        &[
            Arg::Tensor(&x),
            Arg::Tensor(&w),
            Arg::Tensor(&dy),
            Arg::Tensor(&dx),
            Arg::Tensor(&rstds),
            Arg::U32(num_rows as u32),
            Arg::U32(size as u32),
            Arg::F32(eps as f32),
        ],
    )?;
    let dw = column_sums(gpu, &dy, Some((&x, &rstds)), num_rows, size)?;
    Ok((dx, dw))
}

/// Sum over the rows of a `[rows, size]`, or of `a * x * scale of the row`. -> `[size]` in f32
fn column_sums(
    gpu: &Gpu,
    a: &Tensor,
    scaled: Option<(&Tensor, &Tensor)>,
    num_rows: usize,
    size: usize,
) -> Result<Tensor> {
    let sum = |a: &Tensor, scaled: Option<(&Tensor, &Tensor)>, num_rows: usize| {
        let num_parts = num_rows.div_ceil(ROWS_A_PART);
        let parts = gpu.empty((num_parts, size), DType::F32)?;
        let (x, scales) = match scaled {
            Some((x, scales)) => (Arg::Tensor(x), Arg::Tensor(scales)),
            None => (Arg::Nothing, Arg::Nothing),
        };
        gpu.launch(
            rows(&named("column_sums", a.dtype())),
            Launch {
                grid: (size.div_ceil(32), num_parts, 1),
                threads: 256,
                shared_bytes: 0,
            },
            &[
                Arg::Tensor(a),
                x,
                scales,
                Arg::Tensor(&parts),
                Arg::U32(num_rows as u32),
                Arg::U32(size as u32),
                Arg::U32(ROWS_A_PART as u32),
            ],
        )?;
        Ok::<_, crate::Error>(parts)
    };
    if num_rows == 0 {
        return gpu.zeros(size, DType::F32);
    }
    let mut parts = sum(a, scaled, num_rows)?;
    while parts.dim(0)? > 1 {
        let num_parts = parts.dim(0)?;
        parts = sum(&parts, None, num_parts)?;
    }
    Ok(parts.reshape(size)?)
}

/// See [`super::sum_rows`].
pub(super) fn sum_rows(gpu: &Gpu, x: &Tensor) -> Result<Tensor> {
    let (num_rows, size) = x.dims2()?;
    column_sums(gpu, &gpu.readable(x)?, None, num_rows, size)
}

/// See [`super::plain::rope`]; `sign` is -1 for the backward.
pub(super) fn rotate(
    gpu: &Gpu,
    x: &Tensor,
    table: &RopeTable,
    positions: &[u32],
    sign: f32,
) -> Result<Tensor> {
    let (num_tokens, num_heads, head_dim) = x.dims3()?;
    let x = gpu.readable(x)?;
    let table = [&table.cos, &table.sin].map(|t| gpu.readable(&t.to_dtype(DType::F32)?));
    let [cos, sin] = table;
    let (cos, sin) = (cos?, sin?);
    let positions = gpu.upload_indices(positions)?;
    let y = gpu.empty(x.shape(), x.dtype())?;
    gpu.launch(
        rows(&named("rope", x.dtype())),
        Launch::over(num_tokens * num_heads * head_dim / 2, THREADS),
        &[
            Arg::Tensor(&x),
            Arg::Tensor(&cos),
            Arg::Tensor(&sin),
            Arg::Tensor(&positions),
            Arg::Tensor(&y),
            Arg::U32(num_tokens as u32),
            Arg::U32(num_heads as u32),
            Arg::U32(head_dim as u32 / 2),
            Arg::F32(sign),
        ],
    )?;
    Ok(y)
}

fn over_elements(num: usize) -> Launch {
    Launch::over(num.div_ceil(WIDE), THREADS)
}

/// See [`super::plain::swiglu`].
pub(super) fn swiglu(gpu: &Gpu, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (gate, up) = (gpu.readable(gate)?, gpu.readable(up)?);
    let y = gpu.empty(gate.shape(), gate.dtype())?;
    let num = gate.elem_count();
    gpu.launch(
        rows(&named("swiglu", gate.dtype())),
        over_elements(num),
        &[
            Arg::Tensor(&gate),
            Arg::Tensor(&up),
            Arg::Tensor(&y),
            Arg::Size(num),
        ],
    )?;
    Ok(y)
}

/// See [`super::plain::swiglu_backward`].
pub(super) fn swiglu_backward(
    gpu: &Gpu,
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (gate, up, dy) = (gpu.readable(gate)?, gpu.readable(up)?, gpu.readable(dy)?);
    let d_gate = gpu.empty(gate.shape(), gate.dtype())?;
    let d_up = gpu.empty(gate.shape(), gate.dtype())?;
    let num = gate.elem_count();
    gpu.launch(
        rows(&named("swiglu_backward", gate.dtype())),
        over_elements(num),
        &[
            Arg::Tensor(&gate),
            Arg::Tensor(&up),
            Arg::Tensor(&dy),
            Arg::Tensor(&d_gate),
            Arg::Tensor(&d_up),
            Arg::Size(num),
        ],
    )?;
    Ok((d_gate, d_up))
}

/// `dst += x` in place, f32 sums taking bf16 too; `false` where the two do not fit or dst does not lie as kernels need it.
pub(super) fn add(gpu: &Gpu, dst: &Tensor, x: &Tensor) -> Result<bool> {
    let name = match (dst.dtype(), x.dtype()) {
        (DType::F32, DType::F32) => "add_f32",
        (DType::BF16, DType::BF16) => "add_bf16",
        (DType::F32, DType::BF16) => "add_to_f32_bf16",
        _ => return Ok(false),
    };
    if dst.dims() != x.dims() || !gpu.is_readable(dst) {
        return Ok(false);
    }
    let (x, num) = (gpu.readable(x)?, dst.elem_count());
    gpu.launch(
        rows(name),
        over_elements(num),
        &[Arg::Tensor(dst), Arg::Tensor(&x), Arg::Size(num)],
    )?;
    Ok(true)
}

/// `y += b` for each row of y `[T, O]`, in place; y was just made by a product.
pub(super) fn add_bias(gpu: &Gpu, y: &Tensor, b: &Tensor) -> Result<()> {
    let (num, size) = (y.elem_count(), b.elem_count());
    let b = gpu.readable(&b.to_dtype(y.dtype())?)?;
    gpu.launch(
        rows(&named("add_bias", y.dtype())),
        Launch::over(num, THREADS),
        &[
            Arg::Tensor(y),
            Arg::Tensor(&b),
            Arg::Size(num),
            Arg::U32(size as u32),
        ],
    )
}

/// `sums[ids[t]] += dy[t]`; sums `[V, C]` in f32, dy `[T, C]`. Rows of one id are added in their order.
pub(super) fn add_rows(gpu: &Gpu, sums: &Tensor, ids: &[u32], dy: &Tensor) -> Result<()> {
    let size = dy.dim(1)?;
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|&i| ids[i as usize]);
    let (mut row_ids, mut starts) = (Vec::new(), Vec::new());
    for (place, &i) in order.iter().enumerate() {
        let id = ids[i as usize];
        if row_ids.last() != Some(&id) {
            row_ids.push(id);
            starts.push(place as u32);
        }
    }
    starts.push(order.len() as u32);
    let num_ids = row_ids.len();
    if num_ids == 0 {
        return Ok(());
    }
    let dy = gpu.readable(dy)?;
    let (row_ids, starts, order) = (
        gpu.upload(&row_ids)?,
        gpu.upload(&starts)?,
        gpu.upload(&order)?,
    );
    gpu.launch(
        rows(&named("add_rows", dy.dtype())),
        Launch {
            grid: (num_ids, size.div_ceil(THREADS), 1),
            threads: THREADS,
            shared_bytes: 0,
        },
        &[
            Arg::Tensor(sums),
            Arg::Tensor(&dy),
            Arg::Tensor(&row_ids),
            Arg::Tensor(&starts),
            Arg::Tensor(&order),
            Arg::U32(size as u32),
        ],
    )
}
