//! The operations in bf16 on the CPU against the plain forms in f64 on the same rounded numbers, forward and backward: odd
//! sizes, several sequences in a pack, one token; and a model in bf16 against the same model in f32.

mod train_common;

use candle_core::{DType, Device, Tensor};
use distill::model::{Batch, CausalLm, Recompute};
use distill::ops::paged::{KvPool, PAGE, PageTable, PoolShape};
use distill::ops::{
    self, AdamWStep, Gradients, Master, Nf4, ParamId, RopeTable, SeqLens, decode, plain,
};
use std::ops::Range;
use train_common::tiny;

/// Numbers in -1 .. 1 in bf16, the same each time.
fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    let t = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    t.to_dtype(DType::BF16).unwrap()
}

fn wide(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F64).unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    wide(t).flatten_all().unwrap().to_vec1().unwrap()
}

/// Relative to the largest value, as the goal has it.
const TOLERANCE: f64 = 1e-2;

/// Largest difference relative to the largest value.
fn gap(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (values(a), values(b));
    let largest = b.iter().fold(1e-12f64, |m, v| m.max(v.abs()));
    let differences = a.iter().zip(&b).map(|(x, y)| (x - y).abs());
    differences.fold(0.0f64, |m, d| {
        m.max(if d.is_nan() { f64::INFINITY } else { d })
    }) / largest
}

#[track_caller]
fn assert_close(what: &str, a: &Tensor, b: &Tensor) {
    let gap = gap(a, b);
    assert!(gap < TOLERANCE, "{what}: {gap}");
}

#[test]
fn attention_over_block_borders_and_groups() {
    // blocks are 128 queries and 256 keys
    let packs: [&[usize]; 4] = [&[1], &[1, 2, 127, 128, 129, 257], &[300, 5], &[513]];
    for (i, lens) in packs.iter().enumerate() {
        for (h, k, d) in [(4, 4, 20), (4, 2, 64), (4, 1, 7)] {
            let what = format!("{lens:?}, {h} heads, {k} key/value heads of {d}");
            let seqs = SeqLens::new(lens);
            let t = seqs.total();
            let seed = i as u64 * 10 + k as u64;
            let (q, key, v, d_o) = (
                random(&[t, h, d], seed + 1),
                random(&[t, k, d], seed + 2),
                random(&[t, k, d], seed + 3),
                random(&[t, h, d], seed + 4),
            );
            let scale = 1.5 / (d as f64).sqrt();
            let (o, lse) = ops::attention(&q, &key, &v, &seqs, scale).unwrap();
            assert_eq!((o.dtype(), lse.dtype()), (DType::BF16, DType::F32));
            let (q64, k64, v64) = (wide(&q), wide(&key), wide(&v));
            let (o64, lse64) = plain::attention(&q64, &k64, &v64, &seqs, scale).unwrap();
            assert_close(&what, &o, &o64);
            assert_close(&what, &lse, &lse64);
            let fast = ops::attention_backward(&q, &key, &v, &o, &lse, &d_o, &seqs, scale).unwrap();
            let d64 = wide(&d_o);
            let slow =
                plain::attention_backward(&q64, &k64, &v64, &o64, &lse64, &d64, &seqs, scale)
                    .unwrap();
            // one token has no gradient but that of v: all others are differences of equals
            if t > 1 {
                assert_close(&what, &fast.0, &slow.0);
                assert_close(&what, &fast.1, &slow.1);
            }
            assert_close(&what, &fast.2, &slow.2);
        }
    }
}

#[test]
fn norms_rotations_gates_and_sums() {
    for (rows, c) in [(1, 1), (3, 17), (70, 64), (33, 130)] {
        let (x, w, dy) = (
            random(&[rows, c], 1),
            random(&[c], 2),
            random(&[rows, c], 3),
        );
        let (x64, w64, dy64) = (wide(&x), wide(&w), wide(&dy));
        let what = format!("{rows} x {c}");
        let fast = ops::rms_norm(&x, &w, 1e-6).unwrap();
        assert_eq!(fast.dtype(), DType::BF16);
        assert_close(&what, &fast, &plain::rms_norm(&x64, &w64, 1e-6).unwrap());
        let fast = ops::rms_norm_backward(&x, &w, 1e-6, &dy).unwrap();
        let slow = plain::rms_norm_backward(&x64, &w64, 1e-6, &dy64).unwrap();
        // with one value dx is a difference of equals
        if c > 1 {
            assert_close(&what, &fast.0, &slow.0);
        }
        assert_close(&what, &fast.1, &slow.1);
        let (gate, up) = ((&x * 9.0).unwrap(), &dy);
        let fast = ops::swiglu(&gate, up).unwrap();
        assert_close(&what, &fast, &plain::swiglu(&wide(&gate), &dy64).unwrap());
        let fast = ops::swiglu_backward(&gate, up, &dy).unwrap();
        let slow = plain::swiglu_backward(&wide(&gate), &dy64, &dy64).unwrap();
        assert_close(&what, &fast.0, &slow.0);
        assert_close(&what, &fast.1, &slow.1);
        let sum = ops::sum_rows(&x).unwrap();
        assert_eq!(sum.dtype(), DType::F32);
        assert_close(&what, &sum, &x64.sum(0).unwrap());
        let both = dy.copy().unwrap();
        ops::add_inplace(&both, &x).unwrap();
        assert_close(&what, &both, &(&x64 + &dy64).unwrap());
    }
    let f32s = |t: Tensor| t.to_dtype(DType::F32).unwrap();
    let table = RopeTable {
        cos: f32s(random(&[9, 5], 4)),
        sin: f32s(random(&[9, 5], 5)),
    };
    let (x, positions) = (
        random(&[40, 3, 10], 6),
        (0..40).map(|i| i % 9).collect::<Vec<u32>>(),
    );
    let slow = plain::rope(&wide(&x), &table, &positions).unwrap();
    let fast = ops::rope(&x, &table, &positions).unwrap();
    assert_close("rope", &fast, &slow);
    let slow = plain::rope_backward(&wide(&x), &table, &positions).unwrap();
    let fast = ops::rope_backward(&x, &table, &positions).unwrap();
    assert_close("rope backward", &fast, &slow);
}

#[test]
fn products_and_their_gradients() {
    for (t, i, o) in [(37, 19, 23), (1, 1, 1), (1, 64, 40), (130, 600, 33)] {
        let what = format!("{t} x {i} x {o}");
        let (x, w, b, dy) = (
            random(&[t, i], 1),
            random(&[o, i], 2),
            random(&[o], 3),
            random(&[t, o], 4),
        );
        let (x64, w64, b64, dy64) = (wide(&x), wide(&w), wide(&b), wide(&dy));
        let y = ops::linear(&x, &w, Some(&b)).unwrap();
        assert_eq!(y.dtype(), DType::BF16);
        assert_close(&what, &y, &plain::linear(&x64, &w64, Some(&b64)).unwrap());
        let dx = ops::linear_backward_input(&dy, &w).unwrap();
        let dx64 = plain::linear_backward_input(&dy64, &w64).unwrap();
        assert_close(&what, &dx, &dx64);
        // twice: the second product is added to the first
        let mut grads = Gradients::new(vec![vec![o, i], vec![3, o]], &Device::Cpu);
        let ids: Vec<u32> = (0..t as u32).map(|r| r * r % 3).collect();
        for _ in 0..2 {
            grads.add_matmul(ParamId(0), &dy, &x).unwrap();
            grads.add_rows(ParamId(1), &ids, &dy).unwrap();
        }
        let dw64 = (dy64.t().unwrap().matmul(&x64).unwrap() * 2.0).unwrap();
        let dw = grads.get(ParamId(0)).unwrap();
        assert_eq!(dw.dtype(), DType::F32);
        // products of bf16 are exact in f32
        assert!(gap(dw, &dw64) < 1e-5, "{what}");
        let zero = Tensor::zeros((3, o), DType::F64, &Device::Cpu).unwrap();
        let index = Tensor::new(ids, &Device::Cpu).unwrap();
        let rows64 = (zero.index_add(&index, &dy64, 0).unwrap() * 2.0).unwrap();
        assert!(gap(grads.get(ParamId(1)).unwrap(), &rows64) < 1e-5);
    }
}

#[test]
fn the_head() {
    // more rows than a chunk takes, and rows that fill registers unevenly
    for (t, i, vocab) in [(600, 19, 61), (1, 8, 1500), (9, 40, 777)] {
        let what = format!("{t} rows, {vocab} tokens");
        let (h, w) = (random(&[t, i], 5), random(&[vocab, i], 6));
        let (h64, w64) = (wide(&h), wide(&w));
        let targets: Vec<u32> = (0..t as u32).map(|r| r * 7 % vocab as u32).collect();
        let coef: Vec<f32> = (0..t).map(|r| (r % 5) as f32 - 2.25).collect();
        let new = || Gradients::new(vec![vec![vocab, i]], &Device::Cpu);
        let (mut fast, mut slow, id) = (new(), new(), ParamId(0));
        let (lp, dh) =
            ops::linear_logprobs_backward(&h, &w, &targets, &coef, &mut fast, id).unwrap();
        let (lp64, dh64) =
            plain::linear_logprobs_backward(&h64, &w64, &targets, &coef, &mut slow, id).unwrap();
        assert_eq!(dh.dtype(), DType::BF16);
        assert_close(&what, &dh, &dh64);
        assert_close(&what, fast.get(id).unwrap(), slow.get(id).unwrap());
        assert_eq!(ops::linear_logprobs(&h, &w, &targets).unwrap(), lp);
        // logits are not rounded
        assert!(lp.iter().zip(&lp64).all(|(a, b)| (a - b).abs() < 1e-5));

        let coefs = |rows: Range<usize>, _: &[f32]| Ok(coef[rows].to_vec());
        let mut again = new();
        let (stats, dh) =
            ops::linear_policy_backward(&h, &w, &targets, &mut { coefs }, &mut again, id).unwrap();
        assert_eq!(stats.logprobs, lp);
        assert_close(&what, &dh, &dh64);
        assert_eq!(ops::linear_token_stats(&h, &w, &targets).unwrap(), stats);
        let stats64 = plain::linear_token_stats(&h64, &w64, &targets).unwrap();
        let entropies = stats.entropies.iter().zip(&stats64.entropies);
        assert!(entropies.into_iter().all(|(a, b)| (a - b).abs() < 1e-4));
    }
}

#[test]
fn the_step_moves_the_master_and_rounds_it() {
    let one = |v: f32| Tensor::from_vec(vec![v; 3], 3, &Device::Cpu).unwrap();
    let (master, m, v, g) = (one(1.0), one(0.0), one(0.0), one(1.0));
    let value = master.to_dtype(DType::BF16).unwrap();
    let step = AdamWStep {
        lr: 0.003,
        beta1: 0.9,
        beta2: 0.999,
        eps: 0.0,
        weight_decay: 0.0,
        step: 1,
        grad_scale: 1.0,
    };
    let rest = Tensor::zeros(3, DType::I16, &Device::Cpu).unwrap();
    for master in [Master::Whole(master), Master::Rest(rest)] {
        let value = value.copy().unwrap();
        let (m, v) = (m.copy().unwrap(), v.copy().unwrap());
        ops::adamw_inplace(&value, Some(&master), &m, &v, &g, &step).unwrap();
        assert!((master.weights(&value).unwrap()[2] - 0.997).abs() < 1e-6);
        // 255 / 256 = 0.99609, 256 / 256 = 1: spacing 2^-8 below 1
        assert_eq!(values(&value), [0.996_093_75; 3]);
    }
}

/// What holds `num_pages` of one layer.
fn pool(num_kv_heads: usize, head_dim: usize, num_pages: usize) -> KvPool {
    let shape = PoolShape {
        num_layers: 1,
        num_kv_heads,
        head_dim,
    };
    let mut pool = KvPool::new(shape, DType::BF16, &Device::Cpu);
    pool.reserve(num_pages).unwrap();
    pool
}

#[test]
fn decoding() {
    let (b, k, p) = (5, 2, PAGE + 6);
    for (h, d) in [(4, 64), (6, 16), (2, 7), (2, 128), (4, 32)] {
        let pool = pool(k, d, 2 * b);
        for position in 0..p {
            let new = |seed| random(&[b, k, d], position as u64 * 2 + seed);
            let place = |slot| (2 * slot + position / PAGE) * PAGE + position % PAGE;
            let places: Vec<u32> = (0..b).map(|slot| place(slot) as u32).collect();
            pool.append(0, &new(0), &new(1), &places).unwrap();
        }
        let lens = [p as u32, 1, 17];
        let rows = [[6, 7], [0, 1], [8, 9]];
        let rows = rows.each_ref().map(|row| &row[..]);
        let (table, q) = (
            PageTable::new(&rows, &lens).unwrap(),
            random(&[3, h, d], 99),
        );
        let last = random(&[b, k, d], 2 * (p as u64 - 1));
        let held = pool.held(0, &table, 0).unwrap();
        let held = held.narrow(2, p - 1, 1).unwrap().get(0).unwrap();
        assert_eq!(values(&held), values(&last.get(3).unwrap()));
        let o = pool.attention(0, &q, &table, 0.3).unwrap();
        let q64 = wide(&q);
        for (i, &len) in lens.iter().enumerate() {
            // as the last token of a sequence
            let held = wide(&pool.held(0, &table, i).unwrap());
            let part = |which: usize| {
                let part = held.get(which).unwrap().transpose(0, 1);
                part.unwrap().contiguous().unwrap() // [P, K, D]
            };
            let len = len as usize;
            let q = q64
                .narrow(0, i, 1)
                .unwrap()
                .broadcast_as((len, h, d))
                .unwrap();
            let seqs = SeqLens::new(&[len]);
            let q = q.contiguous().unwrap();
            let (all, _) = plain::attention(&q, &part(0), &part(1), &seqs, 0.3).unwrap();
            let expected = all.narrow(0, len - 1, 1).unwrap();
            assert_close("decode", &o.narrow(0, i, 1).unwrap(), &expected);
            let q = random(&[3, h, d], 99).narrow(0, i, 1).unwrap();
            let table = PageTable::new(&rows[i..=i], &lens[i..=i]).unwrap();
            let alone = pool.attention(0, &q, &table, 0.3).unwrap();
            assert_eq!(values(&alone), values(&o.narrow(0, i, 1).unwrap()));
        }
    }
    for (b, i, o) in [
        (1, 16, 8),
        (3, 33, 41),
        (16, 64, 300),
        (17, 5, 7),
        (40, 48, 129),
    ] {
        let what = format!("{b} x {i} x {o}");
        let (x, w, bias) = (random(&[b, i], 1), random(&[o, i], 2), random(&[o], 3));
        let y = &decode::linears(&x, &[(&w, Some(&bias)), (&w, None)]).unwrap()[0];
        let expected = plain::linear(&wide(&x), &wide(&w), Some(&wide(&bias))).unwrap();
        assert_close(&what, y, &expected);
        let logits = decode::logits(&x, &w).unwrap();
        assert_eq!(logits.dtype(), DType::F32);
        let expected = plain::linear(&wide(&x), &wide(&w), None).unwrap();
        assert!(gap(&logits, &expected) < 1e-5, "{what}");
        for row in 0..b {
            let x = x.narrow(0, row, 1).unwrap();
            let alone = &decode::linears(&x, &[(&w, Some(&bias))]).unwrap()[0];
            assert_eq!(values(alone), values(&y.narrow(0, row, 1).unwrap()));
        }
    }
}

#[test]
fn four_bits_to_sixteen() {
    let w = random(&[33, 70], 1).to_dtype(DType::F32).unwrap();
    let nf4 = Nf4::quantise(&w, &Device::Cpu).unwrap();
    let rounded = nf4.dequantise(DType::F32).unwrap();
    let rounded = rounded.to_dtype(DType::BF16).unwrap();
    let direct = nf4.dequantise(DType::BF16).unwrap();
    assert_eq!(direct.dtype(), DType::BF16);
    assert_eq!(values(&direct), values(&rounded));
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let seqs = SeqLens::new(&[200, 77]);
    let (q, k, v) = (
        random(&[277, 4, 16], 1),
        random(&[277, 2, 16], 2),
        random(&[277, 2, 16], 3),
    );
    // more inputs than a part of k takes, more rows than a task of three threads
    let (x, w) = (random(&[277, 1300], 4), random(&[517, 1300], 5));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(|| {
            let (o, lse) = ops::attention(&q, &k, &v, &seqs, 0.25).unwrap();
            let (dq, dk, dv) =
                ops::attention_backward(&q, &k, &v, &o, &lse, &q, &seqs, 0.25).unwrap();
            let y = ops::linear(&x, &w, None).unwrap();
            let dx = ops::linear_backward_input(&y, &w).unwrap();
            let mut grads = Gradients::new(vec![vec![517, 1300]], &Device::Cpu);
            grads.add_matmul(ParamId(0), &y, &x).unwrap();
            let dw = grads.get(ParamId(0)).unwrap().clone();
            [o, lse, dq, dk, dv, y, dx, dw].map(|t| values(&t))
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
}

/// A tiny model in bf16, and in f32 with the same weights.
fn both_models() -> [CausalLm; 2] {
    let config = tiny(1).config().clone();
    let narrow = CausalLm::random(config, 1, &Device::Cpu, DType::BF16).unwrap();
    let wide = tiny(1);
    for (to, from) in wide.parameters().iter().zip(narrow.parameters()) {
        let from = from.value.to_dtype(DType::F32).unwrap();
        to.value.slice_set(&from, 0, 0).unwrap();
    }
    [narrow, wide]
}

#[test]
fn a_model_and_its_gradients() {
    let [narrow, wide] = both_models();
    let seq_lens = vec![7, 1, 12];
    let batch = Batch {
        tokens: (0..20).map(|t| (t * t * 5 + 3) % 24).collect(),
        targets: (0..20).map(|t| (t * t * 5 + 10 * t + 8) % 24).collect(),
        weights: (0..20).map(|t| [0.0, 0.3, -0.2, 0.1][t % 4]).collect(),
        seq_lens,
    };
    for recompute in [Recompute::None, Recompute::KeepAttention, Recompute::Block] {
        let (mut fine, mut coarse) = (wide.new_gradients(), narrow.new_gradients());
        let exact = wide.forward_backward(&batch, recompute, &mut fine).unwrap();
        let rough = narrow
            .forward_backward(&batch, recompute, &mut coarse)
            .unwrap();
        assert!(
            exact.iter().zip(&rough).all(|(a, b)| (a - b).abs() < 0.03),
            "{exact:?} {rough:?}"
        );
        assert!(rough.iter().any(|lp| *lp < -1.0));
        for (i, parameter) in narrow.parameters().iter().enumerate() {
            let id = ParamId(i);
            let (fine, coarse) = (fine.get(id).unwrap(), coarse.get(id).unwrap());
            assert_eq!(coarse.dtype(), DType::F32);
            let (fine, coarse) = (values(fine), values(coarse));
            let norm = |x: &[f64]| x.iter().map(|v| v * v).sum::<f64>().sqrt();
            let off: Vec<f64> = fine.iter().zip(&coarse).map(|(a, b)| a - b).collect();
            let relative = norm(&off) / norm(&fine);
            // a norm's gradient is a sum of terms that nearly cancel
            let limit = if parameter.value.rank() == 1 {
                0.1
            } else {
                0.03
            };
            assert!(relative < limit, "{}: {relative}", parameter.name);
        }
    }
    // one token at a time as all at once
    let tokens: Vec<u32> = (0..9).map(|t| (t * 7 + 1) % 24).collect();
    let all = narrow.logits(&tokens, &[9]).unwrap();
    let mut cache = narrow.new_cache(2).unwrap();
    let mut last = narrow.prefill(&mut cache, 1, &tokens[..5]).unwrap();
    for (i, &token) in tokens.iter().enumerate().skip(5) {
        assert!(
            gap(&last, &all.get(i - 1).unwrap()) < TOLERANCE,
            "token {i}"
        );
        let next = narrow.decode(&mut cache, &[1], &[token]).unwrap();
        last = next.get(0).unwrap();
    }
    assert!(gap(&last, &all.get(8).unwrap()) < TOLERANCE);
}
