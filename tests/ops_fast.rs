//! The fast CPU kernels against the plain forms, forward and backward, over block borders, groups and odd sizes; and the
//! plain backwards against finite differences in f64.

use candle_core::{DType, Device, Tensor};
use distill::ops::{self, AdamWStep, Gradients, ParamId, RopeTable, SeqLens, plain};

/// Numbers in -1 .. 1, the same each time.
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
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn wide(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F64).unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    wide(t).flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest difference relative to the largest value.
fn assert_close(what: &str, a: &Tensor, b: &Tensor, tolerance: f64) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let (a, b) = (values(a), values(b));
    let largest = b.iter().fold(1e-12f64, |m, v| m.max(v.abs()));
    let worst = a
        .iter()
        .zip(&b)
        .fold(0.0f64, |m, (x, y)| m.max((x - y).abs()));
    assert!(worst / largest < tolerance, "{what}: {worst} of {largest}");
}

#[test]
fn attention_over_block_borders_and_groups() {
    // blocks are 128 queries and 256 keys
    let packs: [&[usize]; 3] = [&[1, 2, 127, 128, 129, 257], &[300, 5], &[513]];
    for (i, lens) in packs.iter().enumerate() {
        for (h, k, d) in [(4, 4, 20), (4, 2, 64), (4, 1, 8)] {
            let what = format!("{lens:?}, {h} heads, {k} key/value heads of {d}");
            let seqs = SeqLens::new(lens);
            let t = seqs.total();
            let seed = i as u64 * 10 + k as u64;
            let (q, key, v) = (
                random(&[t, h, d], seed + 1),
                random(&[t, k, d], seed + 2),
                random(&[t, k, d], seed + 3),
            );
            let d_o = random(&[t, h, d], seed + 4);
            let scale = 1.5 / (d as f64).sqrt();
            let (o, lse) = ops::attention(&q, &key, &v, &seqs, scale).unwrap();
            let (q64, k64, v64) = (wide(&q), wide(&key), wide(&v));
            let (o64, lse64) = plain::attention(&q64, &k64, &v64, &seqs, scale).unwrap();
            assert_close(&what, &o, &o64, 1e-5);
            assert_close(&what, &lse, &lse64, 1e-5);
            let fast = ops::attention_backward(&q, &key, &v, &o, &lse, &d_o, &seqs, scale).unwrap();
            let slow = plain::attention_backward(
                &q64,
                &k64,
                &v64,
                &o64,
                &lse64,
                &wide(&d_o),
                &seqs,
                scale,
            )
            .unwrap();
            assert_close(&what, &fast.0, &slow.0, 1e-5);
            assert_close(&what, &fast.1, &slow.1, 1e-5);
            assert_close(&what, &fast.2, &slow.2, 1e-5);
        }
    }
}

#[test]
fn norms_rotations_and_gates() {
    for (rows, c) in [(1, 1), (3, 17), (70, 64), (33, 130)] {
        let (x, w, dy) = (
            random(&[rows, c], 1),
            random(&[c], 2),
            random(&[rows, c], 3),
        );
        let (x64, w64, dy64) = (wide(&x), wide(&w), wide(&dy));
        let what = format!("{rows} x {c}");
        assert_close(
            &what,
            &ops::rms_norm(&x, &w, 1e-6).unwrap(),
            &plain::rms_norm(&x64, &w64, 1e-6).unwrap(),
            1e-5,
        );
        let fast = ops::rms_norm_backward(&x, &w, 1e-6, &dy).unwrap();
        let slow = plain::rms_norm_backward(&x64, &w64, 1e-6, &dy64).unwrap();
        // with one value dx is a difference of equals
        if c > 1 {
            assert_close(&what, &fast.0, &slow.0, 2e-5);
        }
        assert_close(&what, &fast.1, &slow.1, 2e-5);
        let (gate, up) = ((&x * 9.0).unwrap(), &dy);
        assert_close(
            &what,
            &ops::swiglu(&gate, up).unwrap(),
            &plain::swiglu(&wide(&gate), &wide(up)).unwrap(),
            1e-5,
        );
        let fast = ops::swiglu_backward(&gate, up, &dy).unwrap();
        let slow = plain::swiglu_backward(&wide(&gate), &wide(up), &dy64).unwrap();
        assert_close(&what, &fast.0, &slow.0, 1e-5);
        assert_close(&what, &fast.1, &slow.1, 1e-5);
        assert_close(
            &what,
            &ops::sum_rows(&x).unwrap(),
            &x64.sum(0).unwrap(),
            1e-5,
        );
    }
    let table = RopeTable {
        cos: random(&[9, 5], 4),
        sin: random(&[9, 5], 5),
    };
    let (x, positions) = (
        random(&[40, 3, 10], 6),
        (0..40).map(|i| i % 9).collect::<Vec<u32>>(),
    );
    let (fast, slow) = (
        ops::rope(&x, &table, &positions),
        plain::rope(&x, &table, &positions),
    );
    assert_close("rope", &fast.unwrap(), &slow.unwrap(), 1e-6);
    let (fast, slow) = (
        ops::rope_backward(&x, &table, &positions),
        plain::rope_backward(&x, &table, &positions),
    );
    assert_close("rope backward", &fast.unwrap(), &slow.unwrap(), 1e-6);
}

#[test]
fn products_and_the_head() {
    let (t, i, o) = (37, 19, 23);
    let (x, w, b, dy) = (
        random(&[t, i], 1),
        random(&[o, i], 2),
        random(&[o], 3),
        random(&[t, o], 4),
    );
    let (x64, w64, b64) = (wide(&x), wide(&w), wide(&b));
    assert_close(
        "linear",
        &ops::linear(&x, &w, Some(&b)).unwrap(),
        &plain::linear(&x64, &w64, Some(&b64)).unwrap(),
        1e-5,
    );
    let dx = ops::linear_backward_input(&dy, &w).unwrap();
    assert_close(
        "dx",
        &dx,
        &plain::linear_backward_input(&wide(&dy), &w64).unwrap(),
        1e-5,
    );

    // more rows than a chunk of the head takes
    let (t, vocab) = (600, 61);
    let (h, head) = (random(&[t, i], 5), random(&[vocab, i], 6));
    let targets: Vec<u32> = (0..t as u32).map(|r| r * 7 % vocab as u32).collect();
    let coef: Vec<f32> = (0..t).map(|r| (r % 5) as f32 - 2.0).collect();
    let shapes = || vec![vec![vocab, i]];
    let (mut fast, mut slow) = (
        Gradients::new(shapes(), &Device::Cpu),
        Gradients::new(shapes(), &Device::Cpu),
    );
    let id = ParamId(0);
    let (lp, dh) =
        ops::linear_logprobs_backward(&h, &head, &targets, &coef, &mut fast, id).unwrap();
    let (lp64, dh64) =
        plain::linear_logprobs_backward(&wide(&h), &wide(&head), &targets, &coef, &mut slow, id)
            .unwrap();
    assert_close("dh", &dh, &dh64, 1e-5);
    assert_close("dw", fast.get(id).unwrap(), slow.get(id).unwrap(), 1e-5);
    let only = ops::linear_logprobs(&h, &head, &targets).unwrap();
    for ((a, b), c) in lp.iter().zip(&lp64).zip(&only) {
        assert!((a - b).abs() < 1e-5 && a == c);
    }
}

#[test]
fn the_head_with_entropies_and_coefficients_of_log_probabilities() {
    // rows that fill lanes unevenly, more of them than a chunk takes, and logits far apart
    for (t, i, vocab, spread) in [(600, 19, 61, 1.0), (7, 8, 1500, 1.0), (40, 16, 33, 40.0)] {
        let what = format!("{t} rows, {vocab} tokens");
        let (h, head) = (
            (random(&[t, i], 5) * spread).unwrap(),
            random(&[vocab, i], 6),
        );
        let targets: Vec<u32> = (0..t as u32).map(|r| r * 7 % vocab as u32).collect();
        // the derivative of sum_t (t mod 3) logp^2 / 2
        let coefs = |rows: std::ops::Range<usize>, logprobs: &[f32]| {
            assert_eq!(rows.len(), logprobs.len());
            let some = rows.zip(logprobs);
            Ok(some.map(|(row, lp)| (row % 3) as f32 * lp).collect())
        };
        let new = || Gradients::new(vec![vec![vocab, i]], &Device::Cpu);
        let (mut fast, mut slow, id) = (new(), new(), ParamId(0));
        let (stats, dh) =
            ops::linear_policy_backward(&h, &head, &targets, &mut { coefs }, &mut fast, id)
                .unwrap();
        let (h64, head64) = (wide(&h), wide(&head));
        let (stats64, dh64) =
            plain::linear_policy_backward(&h64, &head64, &targets, &mut { coefs }, &mut slow, id)
                .unwrap();
        assert_close(&what, &dh, &dh64, 1e-5);
        assert_close(&what, fast.get(id).unwrap(), slow.get(id).unwrap(), 1e-5);
        let pairs = [
            (&stats.logprobs, &stats64.logprobs),
            (&stats.entropies, &stats64.entropies),
        ];
        for (a, b) in pairs {
            let worst = a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(worst < 1e-5 * spread as f32, "{what}: {worst}");
        }
        assert_eq!(ops::linear_token_stats(&h, &head, &targets).unwrap(), stats);
        let plain_stats = plain::linear_token_stats(&h64, &head64, &targets).unwrap();
        assert_eq!(plain_stats, stats64);
    }
    // entropies by hand: two equal tokens, and one that is certain
    let (h, w) = (
        Tensor::new(&[[0f32], [1.0]], &Device::Cpu).unwrap(),
        Tensor::new(&[[0f32], [300.0]], &Device::Cpu).unwrap(),
    );
    let stats = ops::linear_token_stats(&h, &w, &[0, 1]).unwrap();
    assert!((stats.entropies[0] - std::f32::consts::LN_2).abs() < 1e-6);
    assert_eq!((stats.entropies[1], stats.logprobs[1]), (0.0, 0.0));
    // one coefficient a row
    let mut grads = Gradients::new(vec![vec![2, 1]], &Device::Cpu);
    let short: ops::CoefsFn = &mut |_, _| Ok(vec![1.0]);
    assert!(ops::linear_policy_backward(&h, &w, &[0, 1], short, &mut grads, ParamId(0)).is_err());
}

#[test]
fn gradients_add_up_and_the_step_is_that_of_adamw() {
    let (dy, x) = (random(&[11, 3], 1), random(&[11, 4], 2));
    let mut grads = Gradients::new(vec![vec![3, 4], vec![5, 3]], &Device::Cpu);
    for _ in 0..2 {
        grads.add_matmul(ParamId(0), &dy, &x).unwrap();
        grads
            .add_rows(ParamId(1), &[4, 0, 4, 1, 1, 2, 3, 0, 4, 4, 1], &dy)
            .unwrap();
    }
    let twice = (wide(&dy).t().unwrap().matmul(&wide(&x)).unwrap() * 2.0).unwrap();
    assert_close("dy^T x", grads.get(ParamId(0)).unwrap(), &twice, 1e-6);
    let rows = values(&dy);
    let row4: f64 = [0, 2, 8, 9].iter().map(|r| 2.0 * rows[r * 3]).sum();
    assert!((values(grads.get(ParamId(1)).unwrap())[12] - row4).abs() < 1e-5);
    let squares: f64 = (0..2)
        .flat_map(|i| values(grads.get(ParamId(i)).unwrap()))
        .map(|v| v * v)
        .sum();
    assert!((grads.sum_squares().unwrap() / squares - 1.0).abs() < 1e-6);

    // by hand: g = 0.5, m = 0.05, v = 0.00025, both corrected to g and g^2, so w = 1 - lr * wd - lr
    let one = |v: f32| Tensor::from_vec(vec![v], 1, &Device::Cpu).unwrap();
    let (w, m, v, g) = (one(1.0), one(0.0), one(0.0), one(1.0));
    let step = AdamWStep {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        eps: 0.0,
        weight_decay: 0.2,
        step: 1,
        grad_scale: 0.5,
    };
    ops::adamw_inplace(&w, None, &m, &v, &g, &step).unwrap();
    assert!((values(&w)[0] - 0.88).abs() < 1e-6 && (values(&m)[0] - 0.05).abs() < 1e-8);
    assert!((values(&v)[0] / 0.00025 - 1.0).abs() < 1e-6);
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let seqs = SeqLens::new(&[200, 77]);
    let (q, k, v) = (
        random(&[277, 4, 16], 1),
        random(&[277, 2, 16], 2),
        random(&[277, 2, 16], 3),
    );
    let (x, w) = (random(&[277, 300], 4), random(&[517, 300], 5));
    let run = |threads: usize| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(|| {
                let (o, lse) = ops::attention(&q, &k, &v, &seqs, 0.25).unwrap();
                let (dq, dk, dv) =
                    ops::attention_backward(&q, &k, &v, &o, &lse, &q, &seqs, 0.25).unwrap();
                let y = ops::linear(&x, &w, None).unwrap();
                let mut grads = Gradients::new(vec![vec![517, 300]], &Device::Cpu);
                grads.add_matmul(ParamId(0), &y, &x).unwrap();
                [
                    o,
                    lse,
                    dq,
                    dk,
                    dv,
                    y,
                    grads.get(ParamId(0)).unwrap().clone(),
                ]
                .map(|t| values(&t))
            })
    };
    assert!(run(1) == run(2));
}

/// d/dx of `sum(f(x) * dy)` by central differences.
fn difference(x: &Tensor, dy: &Tensor, f: impl Fn(&Tensor) -> Tensor) -> Vec<f64> {
    let start = values(x);
    let at = |i: usize, h: f64| {
        let mut moved = start.clone();
        moved[i] += h;
        let y = f(&Tensor::from_vec(moved, x.shape(), &Device::Cpu).unwrap());
        values(&(y * dy).unwrap().sum_all().unwrap())[0]
    };
    (0..start.len())
        .map(|i| (at(i, 1e-5) - at(i, -1e-5)) / 2e-5)
        .collect()
}

fn assert_gradient(what: &str, gradient: &Tensor, expected: &[f64]) {
    for (a, b) in values(gradient).iter().zip(expected) {
        assert!(
            (a - b).abs() < 1e-7 * (1.0 + b.abs()),
            "{what}: {a}, by differences {b}"
        );
    }
}

#[test]
fn plain_backwards_are_the_derivatives() {
    let seqs = SeqLens::new(&[4, 1, 3]);
    let (q, k, v) = (
        wide(&random(&[8, 4, 3], 1)),
        wide(&random(&[8, 2, 3], 2)),
        wide(&random(&[8, 2, 3], 3)),
    );
    let dy = wide(&random(&[8, 4, 3], 4));
    let f = |q: &Tensor, k: &Tensor, v: &Tensor| plain::attention(q, k, v, &seqs, 0.7).unwrap().0;
    let (o, lse) = plain::attention(&q, &k, &v, &seqs, 0.7).unwrap();
    let (dq, dk, dv) = plain::attention_backward(&q, &k, &v, &o, &lse, &dy, &seqs, 0.7).unwrap();
    assert_gradient("dq", &dq, &difference(&q, &dy, |q| f(q, &k, &v)));
    assert_gradient("dk", &dk, &difference(&k, &dy, |k| f(&q, k, &v)));
    assert_gradient("dv", &dv, &difference(&v, &dy, |v| f(&q, &k, v)));

    let (x, w, dy) = (
        wide(&random(&[3, 5], 5)),
        wide(&random(&[5], 6)),
        wide(&random(&[3, 5], 7)),
    );
    let (dx, dw) = plain::rms_norm_backward(&x, &w, 1e-3, &dy).unwrap();
    assert_gradient(
        "norm dx",
        &dx,
        &difference(&x, &dy, |x| plain::rms_norm(x, &w, 1e-3).unwrap()),
    );
    assert_gradient(
        "norm dw",
        &dw,
        &difference(&w, &dy, |w| plain::rms_norm(&x, w, 1e-3).unwrap()),
    );

    let (gate, up) = (&x, wide(&random(&[3, 5], 8)));
    let (dg, du) = plain::swiglu_backward(gate, &up, &dy).unwrap();
    assert_gradient(
        "gate",
        &dg,
        &difference(gate, &dy, |g| plain::swiglu(g, &up).unwrap()),
    );
    assert_gradient(
        "up",
        &du,
        &difference(&up, &dy, |u| plain::swiglu(gate, u).unwrap()),
    );

    let (h, head) = (wide(&random(&[4, 3], 9)), wide(&random(&[6, 3], 10)));
    let (targets, coef) = ([5, 0, 2, 2], [1.0f32, -0.5, 2.0, 0.25]);
    let mut grads = Gradients::new(vec![vec![6, 3]], &Device::Cpu);
    let (_, dh) =
        plain::linear_logprobs_backward(&h, &head, &targets, &coef, &mut grads, ParamId(0))
            .unwrap();
    let rows = Tensor::from_vec(coef.map(f64::from).to_vec(), 4, &Device::Cpu).unwrap();
    let logp = |h: &Tensor, head: &Tensor| {
        let logits = h.matmul(&head.t().unwrap()).unwrap();
        let sum = logits.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap();
        let ids = Tensor::new(&targets, &Device::Cpu)
            .unwrap()
            .unsqueeze(1)
            .unwrap();
        logits
            .broadcast_sub(&sum)
            .unwrap()
            .gather(&ids, 1)
            .unwrap()
            .squeeze(1)
            .unwrap()
    };
    assert_gradient("dh", &dh, &difference(&h, &rows, |h| logp(h, &head)));
    assert_gradient(
        "dhead",
        grads.get(ParamId(0)).unwrap(),
        &difference(&head, &rows, |w| logp(&h, w)),
    );
}

#[test]
fn a_tensor_is_added_to_a_view_of_itself() {
    let x = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
    ops::add_inplace(&x, &x).unwrap();
    assert_eq!(x.to_vec2::<f32>().unwrap(), [[2.0, 4.0], [6.0, 8.0]]);
    let same_memory = x.reshape((2, 2)).unwrap();
    ops::add_inplace(&x, &same_memory).unwrap();
    assert_eq!(x.to_vec2::<f32>().unwrap(), [[4.0, 8.0], [12.0, 16.0]]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    assert!(ops::swiglu(&zeros(&[2, 3]), &zeros(&[3, 2])).is_err());
    let seqs = ops::SeqLens::new(&[2]);
    let (q, kv) = (zeros(&[2, 2, 4]), zeros(&[2, 0, 4]));
    assert!(ops::attention(&q, &kv, &kv, &seqs, 1.0).is_err());
}
