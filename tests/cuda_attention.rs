//! The attention kernels against the plain forms in f64: packed sequences forward and backward, and decoding over a cache.
//! Where it runs: see `tests/cuda/mod.rs`.
#![cfg(any(feature = "cuda", feature = "cuda-emulator"))]

mod cuda;

use candle_core::{DType, Device, IndexOp, Tensor};
use cuda::{both, device, noise, off, off_above, tolerance};
use distill::ops::paged::{KvPool, PAGE, PageTable, PoolShape};
use distill::ops::{self, SeqLens, plain};

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
    // where tokens see themselves alone these are 0, and what the kernels give is what rounding leaves
    let least = 1e-4;
    for (name, got, want) in [("dq", &dq, &dq64), ("dk", &dk, &dk64)] {
        let off = off_above(got, want, least);
        assert!(off < limit, "{what}: {name} is off by {off:e}");
    }
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

/// Pages of both dtypes: those of the kernels, with NaN where nothing is, and the same values in f64.
fn pools(dtype: DType, num_kv_heads: usize, head_dim: usize, num_pages: usize) -> [KvPool; 2] {
    let shape = PoolShape {
        num_layers: 2,
        num_kv_heads,
        head_dim,
    };
    let mut pools = [
        KvPool::new(shape, dtype, &device()),
        KvPool::new(shape, DType::F64, &Device::Cpu),
    ];
    for pool in &mut pools {
        pool.reserve(num_pages).unwrap();
    }
    // what is read and was not written is seen
    let nan = Tensor::full(f32::NAN, (PAGE, num_kv_heads, head_dim), &Device::Cpu).unwrap();
    let nan = nan.to_dtype(dtype).unwrap().to_device(&device()).unwrap();
    for page in 0..num_pages as u32 {
        let places: Vec<u32> = (page * PAGE as u32..).take(PAGE).collect();
        for layer in 0..2 {
            pools[0].append(layer, &nan, &nan, &places).unwrap();
        }
    }
    pools
}

/// The places of the first `len` positions of a sequence, the last one first: the order is the caller's.
fn places(pages: &[u32], len: usize) -> Vec<u32> {
    let place = |t: usize| pages[t / PAGE] * PAGE as u32 + (t % PAGE) as u32;
    (0..len).rev().map(place).collect()
}

/// Writes what a sequence holds into both.
fn fill([pool, pool64]: &[KvPool; 2], dtype: DType, dims: [usize; 2], places: &[u32], seed: u32) {
    let [num_kv, d] = dims;
    for layer in 0..2 {
        let x = |seed| {
            both(
                &(noise(&[places.len(), num_kv, d], seed) * 2.0).unwrap(),
                dtype,
            )
        };
        let (k, k64) = x(seed + layer as u32);
        let (v, v64) = x(seed + 500 + layer as u32);
        pool.append(layer, &k, &v, places).unwrap();
        pool64.append(layer, &k64, &v64, places).unwrap();
    }
}

fn f64s(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F64).unwrap()
}

#[test]
fn decoding_over_pages() {
    // lengths of a page and of a part at their borders; the first two begin with the same page, and three chunks are in use
    let page = PAGE as u32;
    let sequences: [(&[u32], u32); 8] = [
        (&[40, 3, 17, 0, 33], 4 * page + 44),
        (&[40, 5], page + 1),
        (&[1], 1),
        (&[16], page - 1),
        (&[32], page),
        (&[6, 47], 2 * page),
        (&[8, 7, 9], 2 * page + 1),
        (&[10, 20], 2 * page - 1),
    ];
    let rows = sequences.map(|(pages, _)| pages);
    let lens = sequences.map(|(_, len)| len);
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
        let pools = pools(dtype, num_kv, d, 48);
        for (i, (pages, len)) in sequences.iter().enumerate() {
            let places = places(pages, *len as usize);
            fill(&pools, dtype, [num_kv, d], &places, 10 * (i as u32 + 1));
        }
        let table = PageTable::new(&rows, &lens).unwrap();
        for layer in 0..2 {
            for i in 0..rows.len() {
                let [held, held64] = pools.each_ref().map(|p| p.held(layer, &table, i).unwrap());
                assert_eq!(off(&held, &held64), 0.0, "{what}, sequence {i}");
            }
            let (q, q64) = both(&noise(&[rows.len(), num_heads, d], 30), dtype);
            let o = pools[0].attention(layer, &q, &table, SCALE).unwrap();
            assert_eq!(o.dtype(), dtype);
            let off_by = off(&o, &in_f64(&q64, &pools[1], layer, &table));
            assert!(off_by < tolerance(dtype), "{what}: off by {off_by:e}");
            // a row does not depend on the others
            for row in 0..rows.len() {
                let q = q.narrow(0, row, 1).unwrap();
                let table = PageTable::new(&rows[row..=row], &lens[row..=row]).unwrap();
                let alone = pools[0].attention(layer, &q, &table, SCALE).unwrap();
                let want = o.narrow(0, row, 1).unwrap();
                assert_eq!(off(&alone, &f64s(&want)), 0.0, "{what}, row {row}");
            }
        }
    }
}

#[test]
fn many_sequences_of_a_prompt() {
    // 40 that begin with the same two pages, and end at every place of a third one or before
    let (num, num_heads, num_kv, d) = (40, 4, 2, 64);
    for dtype in [DType::F32, DType::BF16] {
        let pools = pools(dtype, num_kv, d, 2 + num);
        fill(&pools, dtype, [num_kv, d], &places(&[1, 0], 2 * PAGE), 3);
        let pages: Vec<[u32; 3]> = (0..num as u32).map(|i| [1, 0, 2 + i]).collect();
        let rows: Vec<&[u32]> = pages.iter().map(|row| &row[..]).collect();
        let lens: Vec<u32> = (0..num).map(|i| (100 + 2 * i) as u32).collect();
        for (i, pages) in pages.iter().enumerate() {
            let all = places(pages, lens[i] as usize);
            let own = all.into_iter().filter(|place| place / PAGE as u32 >= 2);
            let own: Vec<u32> = own.collect();
            if !own.is_empty() {
                fill(&pools, dtype, [num_kv, d], &own, 10 + 3 * i as u32);
            }
        }
        let table = PageTable::new(&rows, &lens).unwrap();
        let (q, q64) = both(&noise(&[num, num_heads, d], 31), dtype);
        let o = pools[0].attention(1, &q, &table, SCALE).unwrap();
        let off = off(&o, &in_f64(&q64, &pools[1], 1, &table));
        assert!(off < tolerance(dtype), "{dtype:?}: off by {off:e}");
    }
}

fn in_f64(q: &Tensor, pool: &KvPool, layer: usize, table: &PageTable) -> Tensor {
    let (b, num_heads, _) = q.dims3().unwrap();
    let mut rows = Vec::new();
    for b in 0..b {
        let held = pool.held(layer, table, b).unwrap(); // [2, K, P, D]
        let group = num_heads / held.dim(1).unwrap();
        for head in 0..num_heads {
            let part = |which: usize| held.i((which, head / group)).unwrap(); // [P, D]
            let q = q.i((b, head..head + 1)).unwrap().contiguous().unwrap(); // [1, D]
            let scores = (q.matmul(&part(0).t().unwrap()).unwrap() * SCALE).unwrap();
            let p = scores.exp().unwrap();
            let p = p.broadcast_div(&p.sum_keepdim(1).unwrap()).unwrap();
            rows.push(p.matmul(&part(1)).unwrap());
        }
    }
    let rows = Tensor::cat(&rows, 0).unwrap();
    rows.reshape(q.dims()).unwrap()
}

#[test]
fn pages_are_copied() {
    for dtype in [DType::F32, DType::BF16] {
        let pools = pools(dtype, 2, 64, 20);
        fill(&pools, dtype, [2, 64], &places(&[3], PAGE), 7);
        for to in [4, 18] {
            for pool in &pools {
                pool.copy_page(3, to, 50).unwrap();
            }
            let table = PageTable::new(&[&[to]], &[50]).unwrap();
            for layer in 0..2 {
                let [held, held64] = pools.each_ref().map(|p| p.held(layer, &table, 0).unwrap());
                assert_eq!(off(&held, &held64), 0.0);
            }
        }
    }
}

#[test]
fn what_does_not_fit_a_pool_is_an_error() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::BF16, &device()).unwrap();
    let [pool, _] = pools(DType::BF16, 1, 8, 2);
    let one = zeros(&[1, 1, 8]);
    for (layer, place) in [(2, 0), (0, 16 * PAGE as u32)] {
        assert!(pool.append(layer, &one, &one, &[place]).is_err());
    }
    let two = zeros(&[1, 2, 8]);
    assert!(pool.append(0, &two, &two, &[0]).is_err());
    let table = PageTable::new(&[&[16]], &[1]).unwrap();
    assert!(pool.attention(0, &one, &table, SCALE).is_err());
}
