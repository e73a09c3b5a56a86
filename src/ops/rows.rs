//! Norms, rotations, gates and sums: the fast kernel where every tensor is f32, contiguous and on the CPU, else the portable
//! form of the same name.

use super::cpu::cpu_f32;
use super::{RopeTable, plain, rows_cpu};
use crate::Result;
use candle_core::Tensor;

/// `y = x / sqrt(mean(x^2) + eps) * w`, over the last dim: see [`plain::rms_norm`]. x: `[.., C]`, w: `[C]`.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    let fits = x.rank() > 0 && w.dims() == [x.dims()[x.rank() - 1]];
    match (fits, cpu_f32(x), cpu_f32(w)) {
        (true, Some(x_data), Some(w_data)) => {
            let y = rows_cpu::rms_norm(&x_data, &w_data, eps as f32);
            Ok(Tensor::from_vec(y, x.shape(), x.device())?)
        }
        _ => plain::rms_norm(x, w, eps),
    }
}

/// Rotates each head by its token's position: see [`plain::rope`]. x: `[T, H, D]`.
pub fn rope(x: &Tensor, table: &RopeTable, positions: &[u32]) -> Result<Tensor> {
    match rotate(x, table, positions, 1.0)? {
        Some(y) => Ok(y),
        None => plain::rope(x, table, positions),
    }
}

/// The rotation is orthogonal: the gradient is rotated back.
pub fn rope_backward(dy: &Tensor, table: &RopeTable, positions: &[u32]) -> Result<Tensor> {
    match rotate(dy, table, positions, -1.0)? {
        Some(dx) => Ok(dx),
        None => plain::rope_backward(dy, table, positions),
    }
}

fn rotate(x: &Tensor, table: &RopeTable, positions: &[u32], sign: f32) -> Result<Option<Tensor>> {
    let (t, _, d) = x.dims3()?;
    let (num_positions, half) = table.cos.dims2()?;
    let fits = t == positions.len()
        && d == 2 * half
        && table.sin.dims() == table.cos.dims()
        && positions
            .iter()
            .all(|&position| (position as usize) < num_positions);
    let (true, Some(data), Some(cos), Some(sin)) = (
        fits && t > 0,
        cpu_f32(x),
        cpu_f32(&table.cos),
        cpu_f32(&table.sin),
    ) else {
        return Ok(None);
    };
    let y = rows_cpu::rotate(&data, (&cos, &sin), positions, d, sign);
    Ok(Some(Tensor::from_vec(y, x.shape(), x.device())?))
}

/// `y = silu(gate) * up`: see [`plain::swiglu`].
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match (gate.dims() == up.dims(), cpu_f32(gate), cpu_f32(up)) {
        (true, Some(g), Some(u)) => Ok(Tensor::from_vec(
            rows_cpu::swiglu(&g, &u),
            gate.shape(),
            gate.device(),
        )?),
        _ => plain::swiglu(gate, up),
    }
}

/// `a + b` of the same shape.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match (a.dims() == b.dims(), cpu_f32(a), cpu_f32(b)) {
        (true, Some(a_data), Some(b_data)) => Ok(Tensor::from_vec(
            rows_cpu::add(&a_data, &b_data),
            a.shape(),
            a.device(),
        )?),
        _ => Ok((a + b)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn random(shape: &[usize]) -> Tensor {
        Tensor::randn(0f32, 2.0, shape, &Device::Cpu).unwrap()
    }

    fn close(a: &Tensor, b: &Tensor) {
        assert_eq!(a.dims(), b.dims());
        let gap = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
        let gap: f32 = gap.max(0).unwrap().to_scalar().unwrap();
        assert!(gap < 1e-5, "{gap}");
    }

    /// Odd sizes, one row, and enough rows for several threads.
    const SHAPES: [[usize; 3]; 4] = [[1, 1, 8], [5, 3, 6], [3, 2, 64], [700, 4, 34]];

    #[test]
    fn kernels_are_the_portable_forms() {
        for [t, h, d] in SHAPES {
            let (x, other, w) = (random(&[t, h, d]), random(&[t, h, d]), random(&[d]));
            close(
                &rms_norm(&x, &w, 1e-6).unwrap(),
                &plain::rms_norm(&x, &w, 1e-6).unwrap(),
            );
            close(
                &swiglu(&x, &other).unwrap(),
                &plain::swiglu(&x, &other).unwrap(),
            );
            close(&add(&x, &other).unwrap(), &(&x + &other).unwrap());
            let table = RopeTable {
                cos: random(&[9, d / 2]),
                sin: random(&[9, d / 2]),
            };
            let positions: Vec<u32> = (0..t as u32).map(|i| i * 5 % 9).collect();
            close(
                &rope(&x, &table, &positions).unwrap(),
                &plain::rope(&x, &table, &positions).unwrap(),
            );
            let back = plain::rope_backward(&x, &table, &positions).unwrap();
            close(&rope_backward(&x, &table, &positions).unwrap(), &back);
        }
    }

    #[test]
    fn gates_far_from_zero() {
        let gate = Tensor::new(&[-200f32, -90.0, 0.0, 90.0, 200.0], &Device::Cpu).unwrap();
        let up = Tensor::new(&[1f32; 5], &Device::Cpu).unwrap();
        let y = swiglu(&gate, &up).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(y, [0.0, 0.0, 0.0, 90.0, 200.0]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let table = RopeTable {
            cos: random(&[4, 3]),
            sin: random(&[4, 3]),
        };
        assert!(rope(&random(&[1, 2, 6]), &table, &[4]).is_err());
        assert!(rms_norm(&random(&[2, 6]), &random(&[5]), 1e-6).is_err());
        assert!(swiglu(&random(&[2, 6]), &random(&[2, 5])).is_err());
    }
}
