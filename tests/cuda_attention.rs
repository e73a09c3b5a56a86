//! The attention kernels against the plain forms in f64: packed sequences forward and backward, and decoding over a cache.
//! Where it runs: see `tests/cuda/mod.rs`.
#![cfg(any(feature = "cuda", feature = "cuda-emulator"))]

mod cuda;

use candle_core::{DType, Device, IndexOp, Tensor};
use cuda::{both, device, noise, off, reference, tolerance};
use distill::ops::{self, SeqLens, decode, plain};

const SCALE: f64 = 0.2;

fn check(lens: &[usize], num_heads: usize, num_kv: usize, d: usize) {
    let what = format!("{lens:?}, {num_heads} heads of {num_kv}, {d} dims");
    let seqs = SeqLens::new(lens);
    let t = seqs.total();
    // spread enough that attention is far from even
    let tensor = |heads, seed| both(&(noise(&[t, heads, d], seed) * 2.0).unwrap(), DType::BF16);
    let (q, q64) = tensor(num_heads, 1);
    let (k, k64) = tensor(num_kv, 2);
    let (v, v64) = tensor(num_kv, 3);
    let (d_o, d_o64) = tensor(num_heads, 4);
    let (o, lse) = ops::attention(&q, &k, &v, &seqs, SCALE).unwrap();
    let (o64, lse64) = plain::attention(&q64, &k64, &v64, &seqs, SCALE).unwrap();
    let near = |name: &str, got: &Tensor, want: &Tensor, limit: f64| {
        let off = off(got, want);
        assert!(off < limit, "{what}: {name} is off by {off:e}");
    };
    let limit = tolerance(DType::BF16);
    assert_eq!((o.dtype(), lse.dtype()), (DType::BF16, DType::F32));
    near("o", &o, &o64, limit);
    near("lse", &lse, &lse64, 1e-5);
    let back = || ops::attention_backward(&q, &k, &v, &o, &lse, &d_o, &seqs, SCALE).unwrap();
    let (dq, dk, dv) = back();
    let (dq64, dk64, dv64) =
        plain::attention_backward(&q64, &k64, &v64, &o64, &lse64, &d_o64, &seqs, SCALE).unwrap();
    near("dq", &dq, &dq64, limit);
    near("dk", &dk, &dk64, limit);
    near("dv", &dv, &dv64, limit);
    let again = back();
    for (a, b) in [(&dq, &again.0), (&dk, &again.1), (&dv, &again.2)] {
        assert_eq!(off(a, &b.to_dtype(DType::F64).unwrap()), 0.0, "{what}");
    }
}

#[test]
fn attention_and_its_gradients() {
    for d in [64, 128] {
        check(&[1], 1, 1, d);
        check(&[7], 2, 2, d);
        check(&[63, 1, 65, 64], 4, 1, d);
        check(&[127, 129, 128], 2, 1, d);
        check(&[3, 150], 6, 1, d);
        check(&[70, 1], 14, 2, d);
        check(&[300], 2, 1, d);
    }
}

#[test]
fn attention_over_a_part_of_a_tensor() {
    // queries, keys and values of one product side by side
    let (heads, d) = (2, 64);
    let seqs = SeqLens::new(&[20, 13]);
    let (qkv, qkv64) = both(&noise(&[33, 3 * heads, d], 5), DType::BF16);
    let part = |t: &Tensor, i: usize| t.narrow(1, i * heads, heads).unwrap();
    let [q, k, v] = [0, 1, 2].map(|i| part(&qkv, i));
    let [q64, k64, v64] = [0, 1, 2].map(|i| part(&qkv64, i));
    let (o, _) = ops::attention(&q, &k, &v, &seqs, SCALE).unwrap();
    let (o64, _) = plain::attention(&q64, &k64, &v64, &seqs, SCALE).unwrap();
    assert!(off(&o, &o64) < tolerance(DType::BF16));
}

/// 32,768 tokens take minutes in the emulator.
#[cfg(feature = "cuda")]
#[test]
fn attention_over_long_sequences() {
    check(&[5000, 1, 3191], 2, 1, 128);
    let (t, d) = (32_768, 128);
    let seqs = SeqLens::new(&[t]);
    let tensor = |heads, seed| both(&(noise(&[t, heads, d], seed) * 2.0).unwrap(), DType::BF16).0;
    let (q, k, v, d_o) = (tensor(2, 1), tensor(1, 2), tensor(1, 3), tensor(2, 4));
    let (o, lse) = ops::attention(&q, &k, &v, &seqs, SCALE).unwrap();
    let got = ops::attention_backward(&q, &k, &v, &o, &lse, &d_o, &seqs, SCALE).unwrap();
    let wide = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
    let [q, k, v, d_o] = [&q, &k, &v, &d_o].map(wide);
    let (o32, lse32) = plain::attention(&q, &k, &v, &seqs, SCALE).unwrap();
    let want = plain::attention_backward(&q, &k, &v, &o32, &lse32, &d_o, &seqs, SCALE).unwrap();
    for (got, want) in [
        (&o, &o32),
        (&lse, &lse32),
        (&got.0, &want.0),
        (&got.1, &want.1),
        (&got.2, &want.2),
    ] {
        let off = off(got, want);
        assert!(off < tolerance(DType::BF16), "off by {off:e}");
    }
}

#[test]
fn decoding_over_a_cache() {
    let (slots, lens) = ([3u32, 0, 4, 1], [300u32, 1, 128, 129]);
    // groups of heads for each kind of block; head dims with and without tensor cores
    for (dtype, num_heads, num_kv, d) in [
        (DType::F32, 4, 2, 8),
        (DType::F32, 3, 3, 40),
        (DType::F32, 6, 2, 128),
        (DType::F32, 10, 1, 256),
        (DType::BF16, 3, 1, 80),
        (DType::BF16, 14, 2, 64),
        (DType::BF16, 12, 2, 128),
        (DType::BF16, 20, 1, 128),
    ] {
        let what = format!("{dtype:?}, {num_heads} heads of {num_kv}, {d} dims");
        let (s, p) = (5, 320);
        let cache = || {
            let zeros = Tensor::zeros((s, num_kv, p, d), DType::F32, &Device::Cpu).unwrap();
            both(&zeros, dtype)
        };
        let ((keys, keys64), (values, values64)) = (cache(), cache());
        for (i, (&slot, &len)) in slots.iter().zip(&lens).enumerate() {
            // the last position first: the order is the caller's
            let positions: Vec<u32> = (0..len).rev().collect();
            let to = vec![slot; positions.len()];
            for (cache, cache64, seed) in [(&keys, &keys64, 10), (&values, &values64, 20)] {
                let shape = [positions.len(), num_kv, d];
                let (x, x64) = both(&(noise(&shape, seed + i as u32) * 2.0).unwrap(), dtype);
                decode::append(cache, &x, &to, &positions).unwrap();
                decode::append(cache64, &x64, &to, &positions).unwrap();
            }
        }
        assert_eq!(off(&keys, &keys64), 0.0, "{what}");
        assert_eq!(off(&values, &values64), 0.0, "{what}");
        let (q, q64) = both(&noise(&[4, num_heads, d], 30), dtype);
        let o = decode::attention(&q, &keys, &values, &slots, &lens, SCALE).unwrap();
        assert_eq!(o.dtype(), dtype);
        let off_by = off(&o, &in_f64(&q64, &keys64, &values64, &slots, &lens));
        assert!(off_by < tolerance(dtype), "{what}: off by {off_by:e}");
        // a row does not depend on the others
        for row in 0..4 {
            let (q, slots, lens) = (q.narrow(0, row, 1).unwrap(), [slots[row]], [lens[row]]);
            let alone = decode::attention(&q, &keys, &values, &slots, &lens, SCALE).unwrap();
            let want = o.narrow(0, row, 1).unwrap();
            assert_eq!(
                off(&alone, &want.to_dtype(DType::F64).unwrap()),
                0.0,
                "{what}, row {row}"
            );
        }
    }
}

fn in_f64(q: &Tensor, keys: &Tensor, values: &Tensor, slots: &[u32], lens: &[u32]) -> Tensor {
    let (_, num_heads, _) = q.dims3().unwrap();
    let group = num_heads / keys.dim(1).unwrap();
    let mut rows = Vec::new();
    for (b, (&slot, &len)) in slots.iter().zip(lens).enumerate() {
        for head in 0..num_heads {
            let part = |cache: &Tensor| {
                let part = cache.i((slot as usize, head / group, ..len as usize));
                part.unwrap().contiguous().unwrap() // [L, D]
            };
            let q = q.i((b, head..head + 1)).unwrap().contiguous().unwrap(); // [1, D]
            let scores = (q.matmul(&part(keys).t().unwrap()).unwrap() * SCALE).unwrap();
            let p = scores.exp().unwrap();
            let p = p.broadcast_div(&p.sum_keepdim(1).unwrap()).unwrap();
            rows.push(p.matmul(&part(values)).unwrap());
        }
    }
    let rows = Tensor::cat(&rows, 0).unwrap();
    rows.reshape(q.dims()).unwrap()
}

#[test]
fn what_does_not_fit_a_cache_is_an_error() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::BF16, &device()).unwrap();
    let cache = zeros(&[2, 1, 4, 8]);
    for (slot, position) in [(2, 0), (0, 4)] {
        assert!(decode::append(&cache, &zeros(&[1, 1, 8]), &[slot], &[position]).is_err());
    }
    assert!(decode::append(&cache, &zeros(&[1, 2, 8]), &[0], &[0]).is_err());
    reference(|| assert_eq!(off(&cache, &cache.to_dtype(DType::F64).unwrap()), 0.0));
}
