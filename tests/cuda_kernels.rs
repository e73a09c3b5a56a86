//! Each CUDA kernel against the plain form in f64, for odd sizes too: on a GPU with `--features cuda`, in the emulator of
//! `tests/cuda` with `--features cuda-emulator`, and not at all without either.
#![cfg(any(feature = "cuda", feature = "cuda-emulator"))]

mod cuda;

use candle_core::{DType, Device, Tensor};
use cuda::{both, device, noise, off, reference, tolerance};
use distill::ops::adam8::{Adam8State, adamw8_inplace};
use distill::ops::{
    self, AdamWStep, Filters, GgmlBlocks, GgmlType, Gradients, Master, Nf4, ParamId, RopeTable,
    plain,
};
use distill::optim::{AdamW, AdamWConfig};

const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

fn near(what: &str, got: &Tensor, want: &Tensor, dtype: DType) {
    let off = off(got, want);
    assert!(off < tolerance(dtype), "{what} {dtype:?}: off by {off:e}");
}

#[test]
fn rms_norm_and_its_gradients() {
    for dtype in DTYPES {
        for (rows, size) in [(1, 8), (3, 33), (9, 128), (517, 40), (21, 896)] {
            let what = format!("rms_norm {rows} x {size}");
            let (x, x64) = both(&noise(&[rows, size], 1), dtype);
            let (w, w64) = both(&noise(&[size], 2), dtype);
            let (dy, dy64) = both(&noise(&[rows, size], 3), dtype);
            let y = ops::rms_norm(&x, &w, 1e-6).unwrap();
            near(
                &what,
                &y,
                &plain::rms_norm(&x64, &w64, 1e-6).unwrap(),
                dtype,
            );
            let (dx, dw) = ops::rms_norm_backward(&x, &w, 1e-6, &dy).unwrap();
            let (dx64, dw64) = plain::rms_norm_backward(&x64, &w64, 1e-6, &dy64).unwrap();
            near(&what, &dx, &dx64, dtype);
            near(&what, &dw, &dw64, DType::F32);
            assert_eq!(dw.dtype(), DType::F32);
        }
    }
}

#[test]
fn rope_and_back() {
    for dtype in DTYPES {
        for (tokens, heads, d) in [(1, 1, 2), (7, 3, 64), (5, 2, 128)] {
            let angles = noise(&[50, d / 2], 4);
            let table = |device: &Device, dtype| RopeTable {
                cos: angles
                    .cos()
                    .unwrap()
                    .to_dtype(dtype)
                    .unwrap()
                    .to_device(device)
                    .unwrap(),
                sin: angles
                    .sin()
                    .unwrap()
                    .to_dtype(dtype)
                    .unwrap()
                    .to_device(device)
                    .unwrap(),
            };
            let (of_device, of_64) = (
                table(&device(), DType::F32),
                table(&Device::Cpu, DType::F64),
            );
            let positions: Vec<u32> = (0..tokens as u32).map(|t| t * 13 % 50).collect();
            let (x, x64) = both(&noise(&[tokens, heads, d], 5), dtype);
            let y = ops::rope(&x, &of_device, &positions).unwrap();
            near(
                "rope",
                &y,
                &plain::rope(&x64, &of_64, &positions).unwrap(),
                dtype,
            );
            let dx = ops::rope_backward(&x, &of_device, &positions).unwrap();
            let dx64 = plain::rope_backward(&x64, &of_64, &positions).unwrap();
            near("rope backward", &dx, &dx64, dtype);
        }
    }
}

#[test]
fn swiglu_and_its_gradients() {
    for dtype in DTYPES {
        for shape in [[1, 1], [3, 5], [17, 64]] {
            let large = |seed| (noise(&shape, seed) * 6.0).unwrap();
            let (gate, gate64) = both(&large(6), dtype);
            let (up, up64) = both(&large(7), dtype);
            let (dy, dy64) = both(&large(8), dtype);
            let y = ops::swiglu(&gate, &up).unwrap();
            near("swiglu", &y, &plain::swiglu(&gate64, &up64).unwrap(), dtype);
            let (dgate, dup) = ops::swiglu_backward(&gate, &up, &dy).unwrap();
            let (dgate64, dup64) = plain::swiglu_backward(&gate64, &up64, &dy64).unwrap();
            near("swiglu backward", &dgate, &dgate64, dtype);
            near("swiglu backward", &dup, &dup64, dtype);
        }
    }
}

#[test]
fn sums() {
    for dtype in DTYPES {
        for (rows, size) in [(1, 1), (7, 33), (1300, 40)] {
            let (x, x64) = both(&noise(&[rows, size], 9), dtype);
            near(
                "sum_rows",
                &ops::sum_rows(&x).unwrap(),
                &x64.sum(0).unwrap(),
                DType::F32,
            );
            let (y, y64) = both(&noise(&[rows, size], 10), dtype);
            ops::add_inplace(&y, &x).unwrap();
            near("add", &y, &(y64 + &x64).unwrap(), dtype);
        }
    }
    // a part of a tensor that begins in the middle of 16 bytes
    let (x, x64) = both(&noise(&[5, 3], 11), DType::BF16);
    let sums = ops::sum_rows(&x.narrow(0, 1, 4).unwrap()).unwrap();
    near(
        "sum_rows",
        &sums,
        &x64.narrow(0, 1, 4).unwrap().sum(0).unwrap(),
        DType::F32,
    );
}

#[test]
fn linear_with_a_bias() {
    for dtype in DTYPES {
        let (x, x64) = both(&noise(&[9, 24], 12), dtype);
        let (w, w64) = both(&noise(&[17, 24], 13), dtype);
        let (b, b64) = both(&noise(&[17], 14), dtype);
        let y = ops::linear(&x, &w, Some(&b)).unwrap();
        near(
            "linear",
            &y,
            &plain::linear(&x64, &w64, Some(&b64)).unwrap(),
            dtype,
        );
    }
}

#[test]
fn gradients_gather() {
    for dtype in DTYPES {
        let shapes = vec![vec![6, 5], vec![9, 300], vec![40]];
        let mut grads = Gradients::new(shapes, &device());
        let [matrix, table, vector] = [0, 1, 2].map(ParamId);
        let mut want = Vec::new();
        for round in 0..2 {
            let (dy, dy64) = both(&noise(&[11, 6], 20 + round), dtype);
            let (x, x64) = both(&noise(&[11, 5], 30 + round), dtype);
            grads.add_matmul(matrix, &dy, &x).unwrap();
            let ids = [8u32, 0, 3, 8, 8, 5, 0];
            let (rows, rows64) = both(&noise(&[7, 300], 40 + round), dtype);
            grads.add_rows(table, &ids, &rows).unwrap();
            let (v, v64) = both(&noise(&[40], 50 + round), dtype);
            grads.add(vector, &v).unwrap();
            let of_rows = Tensor::zeros((9, 300), DType::F64, &Device::Cpu).unwrap();
            let index = Tensor::new(&ids, &Device::Cpu).unwrap();
            want.push([
                dy64.t()
                    .unwrap()
                    .contiguous()
                    .unwrap()
                    .matmul(&x64)
                    .unwrap(),
                of_rows.index_add(&index, &rows64, 0).unwrap(),
                v64,
            ]);
        }
        let mut squares = 0.0;
        for (i, id) in [matrix, table, vector].into_iter().enumerate() {
            let want = (&want[0][i] + &want[1][i]).unwrap();
            near("gradient", grads.get(id).unwrap(), &want, DType::F32);
            squares += want
                .sqr()
                .unwrap()
                .sum_all()
                .unwrap()
                .to_scalar::<f64>()
                .unwrap();
        }
        let got = grads.sum_squares().unwrap();
        assert!((got - squares).abs() < 1e-5 * squares, "{got} {squares}");
        assert_eq!(grads.non_finite().unwrap(), []);
    }
}

#[test]
fn head_tells_and_differentiates() {
    // the last has more rows than exist at a time
    for (rows, vocab, c) in [(3, 1003, 16), (1, 7, 8), (1100, 50, 8)] {
        for dtype in DTYPES {
            let (h, h64) = both(&(noise(&[rows, c], 60) * 3.0).unwrap(), dtype);
            let (w, w64) = both(&noise(&[vocab, c], 61), dtype);
            let targets: Vec<u32> = (0..rows as u32).map(|t| t * 37 % vocab as u32).collect();
            let coef: Vec<f32> = (0..rows).map(|t| (t % 5) as f32 / 2.0 - 1.0).collect();
            let stats = ops::linear_token_stats(&h, &w, &targets).unwrap();
            let want = plain::linear_token_stats(&h64, &w64, &targets).unwrap();
            for (got, want) in [
                (&stats.logprobs, &want.logprobs),
                (&stats.entropies, &want.entropies),
            ] {
                let tensor = |v: &[f32]| Tensor::new(v, &Device::Cpu).unwrap();
                near("head", &tensor(got), &tensor(want), DType::F32);
            }
            let id = ParamId(0);
            let mut grads = Gradients::new(vec![vec![vocab, c]], &device());
            let (logprobs, dh) =
                ops::linear_logprobs_backward(&h, &w, &targets, &coef, &mut grads, id).unwrap();
            assert_eq!(logprobs, stats.logprobs);
            let (dh64, dw64) = reference(|| {
                let mut grads = Gradients::new(vec![vec![vocab, c]], &Device::Cpu);
                let (_, dh) =
                    plain::linear_logprobs_backward(&h64, &w64, &targets, &coef, &mut grads, id)
                        .unwrap();
                (dh, grads.get(id).unwrap().clone())
            });
            near("head, h", &dh, &dh64, dtype);
            near("head, w", grads.get(id).unwrap(), &dw64, dtype);
        }
    }
}

#[test]
fn adamw_steps() {
    let (num, cpu) = (3000, Device::Cpu);
    let gradients: Vec<Tensor> = (0..3).map(|i| noise(&[num], 70 + i)).collect();
    let start = noise(&[num], 80);
    let constants = |step| AdamWStep {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step,
        grad_scale: 0.5,
    };
    let run = |device: &Device, dtype: DType, in_parts: bool| {
        let w = start.to_device(device).unwrap().copy().unwrap();
        let value = w.to_dtype(dtype).unwrap();
        let zeros = |dtype| Tensor::zeros(num, dtype, device).unwrap();
        let (m, v) = (zeros(DType::F32), zeros(DType::F32));
        let (value, master) = match (dtype, in_parts) {
            (DType::F32, _) => (w, None),
            (_, false) => (value, Some(Master::Whole(w))),
            (_, true) => (value, Some(Master::Rest(zeros(DType::I16)))),
        };
        for (i, g) in gradients.iter().enumerate() {
            let g = g.to_device(device).unwrap();
            ops::adamw_inplace(&value, master.as_ref(), &m, &v, &g, &constants(i + 1)).unwrap();
        }
        let whole = match &master {
            Some(master) => master.weights(&value).unwrap(),
            None => value.to_vec1().unwrap(),
        };
        (value, Tensor::new(whole, &Device::Cpu).unwrap(), v)
    };
    for (dtype, in_parts) in [
        (DType::F32, false),
        (DType::BF16, false),
        (DType::BF16, true),
    ] {
        let got = run(&device(), dtype, in_parts);
        let want = reference(|| run(&cpu, dtype, in_parts));
        near("value", &got.0, &want.0, dtype);
        near("master", &got.1, &want.1, DType::F32);
        near("v", &got.2, &want.2, DType::F32);
        if in_parts {
            let rounded: Tensor = got.1.to_dtype(DType::BF16).unwrap();
            let bits = |t: &Tensor| t.to_vec1::<half::bf16>().unwrap();
            assert_eq!(bits(&rounded), bits(&got.0));
        }
    }
}

#[test]
fn states_are_saved_and_taken_back() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("optimizer.safetensors");
    for (dtype, eight_bit) in [
        (DType::F32, false),
        (DType::BF16, false),
        (DType::BF16, true),
    ] {
        let config = AdamWConfig {
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.1,
            eight_bit,
        };
        let gradient = noise(&[80, 64], 7).to_device(&device()).unwrap();
        let mut gradients = Gradients::new(vec![vec![80, 64]], &device());
        gradients.add(ParamId(0), &gradient).unwrap();
        let w = noise(&[80, 64], 8).to_dtype(dtype).unwrap();
        let on_device = |w: &Tensor| w.to_device(&device()).unwrap().copy().unwrap();
        let of = |w: &Tensor| AdamW::new(&[("w".to_string(), w.clone())], config).unwrap();
        let value = on_device(&w);
        let mut optimizer = of(&value);
        optimizer.step(&gradients, 1e-3, 1.0).unwrap();
        optimizer.save(&file).unwrap();
        let copy = on_device(&value);
        let mut taken_back = of(&copy);
        taken_back.load(&file).unwrap();
        optimizer.step(&gradients, 1e-3, 1.0).unwrap();
        taken_back.step(&gradients, 1e-3, 1.0).unwrap();
        let want = value.to_device(&Device::Cpu).unwrap();
        let want = want.to_dtype(DType::F64).unwrap();
        assert_eq!(off(&copy, &want), 0.0, "{dtype:?} {eight_bit}");
    }
}

#[test]
fn adamw_in_8_bits_steps() {
    let cpu = Device::Cpu;
    // blocks that are whole, and one that is not
    let num = 3 * 256 + 77;
    let run = |device: &Device, dtype: DType| {
        let w = noise(&[num], 80).to_device(device).unwrap().copy().unwrap();
        let value = w.to_dtype(dtype).unwrap();
        let rest = Tensor::zeros(num, DType::I16, device).unwrap();
        let (value, master) = match dtype {
            DType::F32 => (w, None),
            _ => (value, Some(Master::Rest(rest))),
        };
        let state = Adam8State::zeros(num, device).unwrap();
        for step in 1..=3 {
            let c = AdamWStep {
                lr: 1e-2,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.1,
                step,
                grad_scale: 0.5,
            };
            let g = noise(&[num], 70 + step as u32).to_device(device).unwrap();
            adamw8_inplace(&value, master.as_ref(), &state, &g, &c).unwrap();
        }
        (value, state)
    };
    for dtype in DTYPES {
        let (got, state) = run(&device(), dtype);
        let (want, want_state) = reference(|| run(&cpu, dtype));
        let wide = |t: &Tensor| -> Vec<f64> {
            let t = t.to_device(&cpu).unwrap().to_dtype(DType::F64).unwrap();
            t.to_vec1().unwrap()
        };
        let (values, wanted) = (wide(&got), wide(&want));
        let gaps = values.iter().zip(&wanted).map(|(a, b)| (a - b).abs());
        let num_off = gaps.clone().filter(|gap| *gap > tolerance(dtype)).count();
        let worst = gaps.fold(0.0, f64::max);
        // where a code differs its value does
        assert!(
            num_off * 200 <= num && worst < 1e-2,
            "{dtype:?}: {num_off} of {num} values are off, the worst by {worst:e}"
        );
        let codes = |t: &Tensor| t.to_vec1::<u8>().unwrap();
        for (got, want) in [(&state.m, &want_state.m), (&state.v, &want_state.v)] {
            let differ = codes(got)
                .iter()
                .zip(codes(want))
                .filter(|(a, b)| **a != *b)
                .count();
            // the last bit of a moment may decide between two codes
            assert!(differ * 200 <= num, "{differ} of {num} codes differ");
        }
        near("scales", &state.v_absmax, &want_state.v_absmax, DType::F32);
    }
}

#[test]
fn nf4_is_the_same_values() {
    for (rows, columns) in [(64, 64), (3, 51), (130, 257)] {
        let w = noise(&[rows, columns], 90);
        let want = reference(|| {
            Nf4::quantise(&w, &Device::Cpu)
                .unwrap()
                .dequantise(DType::F32)
                .unwrap()
        });
        let quantised = Nf4::quantise(&w, &device()).unwrap();
        for dtype in DTYPES {
            let got = quantised.dequantise(dtype).unwrap();
            assert_eq!(got.dtype(), dtype);
            // one rounding of the scale, or to bf16
            near("nf4", &got, &want, dtype);
        }
    }
}

#[test]
fn blocks_are_the_same_bits() {
    for of in [GgmlType::Q8_0, GgmlType::Q4_K] {
        for (rows, columns) in [(1, 256), (3, 512), (37, 768), (5, 4096)] {
            let w = noise(&[rows, columns], 91);
            let want = reference(|| {
                let blocks = GgmlBlocks::quantise(&w, of, &Device::Cpu).unwrap();
                blocks.dequantise(DType::F32).unwrap()
            });
            let quantised = GgmlBlocks::quantise(&w, of, &device()).unwrap();
            for dtype in DTYPES {
                let got = quantised.dequantise(dtype).unwrap();
                assert_eq!(got.dtype(), dtype);
                let want = want.to_dtype(dtype).unwrap();
                assert_eq!(off(&got, &want), 0.0, "{of:?} {rows} x {columns} {dtype:?}");
            }
        }
    }
    // scales that are subnormal or negative in f16, of a width that fills no block of threads
    let golden: serde_json::Value = serde_json::from_str(include_str!("golden/ggml.json")).unwrap();
    for of in [GgmlType::Q8_0, GgmlType::Q4_K] {
        let blocks = golden["blocks"][of.name()]["blocks"].as_str().unwrap();
        let blocks = hex::decode(blocks).unwrap();
        let shape = (blocks.len() / of.block_bytes(), of.block_size());
        let blocks = GgmlBlocks::of_bytes(&blocks, of, shape).unwrap();
        let want = reference(|| blocks.dequantise(DType::F32).unwrap());
        let got = blocks.to_device(&device()).unwrap();
        assert_eq!(
            off(&got.dequantise(DType::F32).unwrap(), &want),
            0.0,
            "{of:?}"
        );
    }
}

/// The token by sorting: what is in play in falling order of weight, equal ones by id, then drawn in the order of ids.
fn sorted_draw(row: &[f32], filters: &Filters, u: f64) -> (u32, f64, f64) {
    let max = row.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    let weigh = |x: f32, t: f64| (f64::from(x - max) / t).exp();
    let of_one: f64 = row.iter().map(|&x| weigh(x, 1.0)).sum();
    let logprob = |token: usize, t: f64, sum: f64| f64::from(row[token] - max) / t - sum.ln();
    if filters.temperature == 0.0 {
        let best = row.iter().position(|&x| x == max).unwrap();
        return (best as u32, logprob(best, 1.0, of_one), 0.0);
    }
    let t = filters.temperature;
    let weights: Vec<f64> = row.iter().map(|&x| weigh(x, t)).collect();
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
    if filters.top_k > 0 {
        order.truncate(filters.top_k);
    }
    let total: f64 = order.iter().map(|&i| weights[i]).sum();
    let mut sum = 0.0;
    let mut kept: Vec<usize> = Vec::new();
    for i in order {
        if filters.top_p < 1.0 && sum >= filters.top_p * total {
            break;
        }
        sum += weights[i];
        if weights[i] >= filters.min_p {
            kept.push(i);
        }
    }
    kept.sort_unstable();
    let total: f64 = kept.iter().map(|&i| weights[i]).sum();
    let mut running = 0.0;
    let token = kept.iter().copied().find(|&i| {
        running += weights[i];
        running > u * total
    });
    let token = token.unwrap_or(*kept.last().unwrap());
    let of_t: f64 = weights.iter().sum();
    (
        token as u32,
        logprob(token, 1.0, of_one),
        logprob(token, t, of_t),
    )
}

#[test]
fn draws_are_those_of_a_sorted_row() {
    let filters = |temperature, top_k, top_p, min_p| Filters {
        temperature,
        top_k,
        top_p,
        min_p,
    };
    let all = [
        filters(0.0, 0, 1.0, 0.0),
        filters(1.0, 0, 1.0, 0.0),
        filters(0.6, 0, 0.95, 0.0),
        filters(1.0, 20, 1.0, 0.0),
        filters(1.5, 50, 0.8, 0.0),
        filters(0.7, 0, 1.0, 0.05),
        filters(1.0, 1, 0.5, 0.3),
    ];
    let (mut num, mut num_other) = (0, 0);
    for vocab in [5, 1000, 3001] {
        for (round, filters) in all.iter().enumerate() {
            let rows = 24;
            let mut logits = (noise(&[rows, vocab], 100 + round as u32) * 8.0).unwrap();
            if round % 2 == 1 {
                // many equal ones
                logits = logits.round().unwrap();
            }
            let us: Vec<f64> = (0..rows).map(|i| (i as f64 * 0.618_034).fract()).collect();
            let drawn = ops::sample(&logits.to_device(&device()).unwrap(), filters, &us).unwrap();
            let drawn = drawn.expect("logits of a GPU are drawn from there");
            let logits = logits.to_vec2::<f32>().unwrap();
            for ((row, &u), drawn) in logits.iter().zip(&us).zip(drawn) {
                let drawn = drawn.expect("a distribution");
                let (token, logprob, sampled_logprob) = sorted_draw(row, filters, u);
                num += 1;
                if drawn.token != token {
                    num_other += 1;
                    continue;
                }
                assert!((f64::from(drawn.logprob) - logprob).abs() < 1e-4);
                assert!((f64::from(drawn.sampled_logprob) - sampled_logprob).abs() < 1e-4);
            }
        }
    }
    // a number may fall so near the end of a token that the last bits of the weights decide
    assert!(num_other * 200 <= num, "{num_other} of {num} draws differ");
}

#[test]
fn no_distribution_is_told() {
    let rows = [
        [0.0, f32::NAN, 1.0],
        [f32::NEG_INFINITY; 3],
        [0.0, f32::INFINITY, 0.0],
        [f32::NEG_INFINITY, 2.0, f32::NEG_INFINITY],
    ];
    let logits = Tensor::new(&rows, &Device::Cpu).unwrap();
    let filters = Filters {
        temperature: 1.0,
        top_k: 0,
        top_p: 0.9,
        min_p: 0.0,
    };
    let logits = logits.to_device(&device()).unwrap();
    let drawn = ops::sample(&logits, &filters, &[0.5; 4]).unwrap().unwrap();
    assert_eq!(drawn[..3], [None; 3]);
    let only = drawn[3].unwrap();
    assert_eq!((only.token, only.logprob), (1, 0.0));
}
