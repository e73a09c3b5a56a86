//! 8-bit AdamW by hand, against its portable form, and against bitsandbytes: `tests/golden/adam8.json`, made by the script
//! beside it.

use super::*;
use serde_json::Value;

const STEP: AdamWStep = AdamWStep {
    lr: 1e-2,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    step: 1,
    grad_scale: 0.5,
};

fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n)
        .map(|i| (((i + seed) * 7919 + 31 * seed) % 2003) as f32 / 1001.0 - 1.0)
        .map(|x| x * x * x)
        .collect()
}

fn tensor(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

fn step_of(i: usize) -> AdamWStep {
    AdamWStep {
        step: i + 1,
        ..STEP
    }
}

#[test]
fn a_block_by_hand() {
    // absmax 2: 2 -> 1, -2 -> -0.993, 0 -> 0; 0.5 / 2 = 0.25 lies between 0.241 and 0.255 of the first decade
    let mut codes = [9; 4];
    let map = dynamic_map::signed();
    let absmax = write_block(map, &[2.0, -2.0, 0.0, 0.5], &mut codes);
    assert_eq!((absmax, codes), (2.0, [255, 0, 127, 201]));
    let mut again = [0.0; 4];
    read_block(map, &codes, absmax, &mut again);
    assert!((again[3] - 2.0 * 0.247_656_25).abs() < 1e-6, "{}", again[3]);
    assert_eq!(write_block(map, &[0.0; 4], &mut codes), 0.0);
    read_block(map, &codes, 0.0, &mut again);
    assert_eq!(again, [0.0; 4]);
}

#[test]
fn fast_equals_portable() {
    for n in [1, 255, 256, 300, 4096, 70_000] {
        let (fast, slow) = (tensor(&numbers(n, 1)), tensor(&numbers(n, 1)));
        let states = [(); 2].map(|()| Adam8State::zeros(n, &Device::Cpu).unwrap());
        for i in 0..4 {
            let g = tensor(&numbers(n, 2 + i));
            adamw8_inplace(&fast, None, &states[0], &g, &step_of(i)).unwrap();
            portable(&slow, &states[1], &g, &step_of(i)).unwrap();
        }
        // products and quotients are rounded in another order, so that a code may be the next one
        let num_off = |a: &[f32], b: &[f32]| {
            let off = a.iter().zip(b).filter(|(a, b)| (*a - *b).abs() > 1e-5);
            off.count()
        };
        let values = |t: &Tensor| t.to_vec1::<f32>().unwrap();
        assert!(num_off(&values(&fast), &values(&slow)) * 1000 <= n, "{n}");
        let [(m, v), (m_slow, v_slow)] = states.map(|s| s.dequantise().unwrap());
        assert!(num_off(&m, &m_slow) * 1000 <= n, "{n}");
        assert!(num_off(&v, &v_slow) * 1000 <= n, "{n}");
    }
}

#[test]
fn states_stay_near_those_in_32_bits() {
    let n = 4096;
    let (w, full) = (tensor(&numbers(n, 1)), tensor(&numbers(n, 1)));
    let state = Adam8State::zeros(n, &Device::Cpu).unwrap();
    let zeros = || Tensor::zeros(n, DType::F32, &Device::Cpu).unwrap();
    let (m, v) = (zeros(), zeros());
    for i in 0..10 {
        let roots: Vec<f32> = numbers(n, 7 * i).iter().map(|x| x.cbrt()).collect();
        let g = tensor(&roots);
        adamw8_inplace(&w, None, &state, &g, &step_of(i)).unwrap();
        super::super::adamw_inplace(&full, None, &m, &v, &g, &step_of(i)).unwrap();
    }
    let mean_off = |a: &[f32], b: &Tensor| {
        let b = b.to_vec1::<f32>().unwrap();
        let off: f32 = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).sum();
        off / b.iter().map(|b| b.abs()).sum::<f32>()
    };
    let (m8, v8) = state.dequantise().unwrap();
    assert!(mean_off(&m8, &m) < 0.05, "{}", mean_off(&m8, &m));
    assert!(mean_off(&v8, &v) < 0.05, "{}", mean_off(&v8, &v));
    let w = w.to_vec1::<f32>().unwrap();
    assert!(mean_off(&w, &full) < 0.02, "{}", mean_off(&w, &full));
}

#[test]
fn other_sizes_are_refused() {
    let state = Adam8State::zeros(10, &Device::Cpu).unwrap();
    let (w, g) = (tensor(&[0.0; 11]), tensor(&[0.0; 11]));
    let e = adamw8_inplace(&w, None, &state, &g, &STEP).unwrap_err();
    assert_eq!(
        e.to_string(),
        "11 weights, 11 gradients and 8-bit states of [10]"
    );
}

/// The same numbers as in `tests/golden/adam8.py`, to the bit.
fn golden_numbers(n: usize, seed: usize) -> Vec<f32> {
    (seed..seed + n)
        .map(|i| ((i * i * 7 + i * 31) % 2003) as f32 / 1001.0 - 1.0)
        .map(|v| v * v * v)
        .collect()
}

fn floats(list: &Value) -> Vec<f32> {
    let list = list.as_array().unwrap().iter();
    list.map(|v| v.as_f64().unwrap() as f32).collect()
}

/// PyTorch's linspace rounds as the vectors of the machine are wide: the last bits of the maps differ, the codes do not.
fn assert_near(ours: &[f32], theirs: &[f32], name: &str) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() <= 3e-7 * b.abs(), "{name}: {a}, {b}");
    }
}

fn golden() -> Value {
    serde_json::from_str(include_str!("../../tests/golden/adam8.json")).unwrap()
}

#[test]
fn maps_and_codes_are_those_of_bitsandbytes() {
    let golden = golden();
    let maps = [dynamic_map::signed(), dynamic_map::unsigned()];
    for (name, map) in ["signed", "unsigned"].into_iter().zip(maps) {
        assert_near(map.values(), &floats(&golden["maps"][name]), name);
    }
    for case in golden["quantised"].as_array().unwrap() {
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let (n, is_signed) = (size("n"), case["signed"].as_bool().unwrap());
        let mut values = golden_numbers(n, size("seed"));
        if !is_signed {
            values.iter_mut().for_each(|v| *v *= *v);
        }
        let map = maps[usize::from(!is_signed)];
        let mut codes = vec![0; n];
        let blocks = values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK));
        let absmax: Vec<f32> = blocks.map(|(v, c)| write_block(map, v, c)).collect();
        let name = format!("{n} values, signed: {is_signed}");
        assert_eq!(
            hex::encode(&codes),
            case["codes"].as_str().unwrap(),
            "{name}"
        );
        assert_eq!(absmax, floats(&case["absmax"]), "{name}");
        let mut last = [0.0; 3];
        read_block(map, &codes[n - 3..], absmax[absmax.len() - 1], &mut last);
        assert_near(&last, &floats(&case["last"]), &name);
    }
}

#[test]
fn steps_are_those_of_bitsandbytes() {
    for case in golden()["updated"].as_array().unwrap() {
        let number = |key: &str| case[key].as_f64().unwrap();
        let n = number("n") as usize;
        let (fast, slow) = (tensor(&golden_numbers(n, 1)), tensor(&golden_numbers(n, 1)));
        let states = [(); 2].map(|()| Adam8State::zeros(n, &Device::Cpu).unwrap());
        for step in 1..=number("steps") as usize {
            let g = tensor(&golden_numbers(n, 10 * step));
            let c = AdamWStep {
                lr: number("lr"),
                beta1: case["betas"][0].as_f64().unwrap(),
                beta2: case["betas"][1].as_f64().unwrap(),
                eps: number("eps"),
                weight_decay: number("weight_decay"),
                step,
                grad_scale: number("grad_scale"),
            };
            adamw8_inplace(&fast, None, &states[0], &g, &c).unwrap();
            portable(&slow, &states[1], &g, &c).unwrap();
        }
        for (w, state) in [(fast, &states[0]), (slow, &states[1])] {
            for (codes, key) in [(&state.m, "m"), (&state.v, "v")] {
                let theirs = hex::decode(case[key].as_str().unwrap()).unwrap();
                let ours = codes.to_vec1::<u8>().unwrap();
                let off = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b));
                // sums in f32 differ in the last bit, and a number on a boundary goes either way
                let num_off = off.clone().filter(|off| *off > 0).count();
                assert!(
                    off.max().unwrap() <= 1 && num_off * 500 <= n,
                    "{key}: {num_off}"
                );
            }
            let near = |ours: &Tensor, key: &str| {
                let ours = ours.to_vec1::<f32>().unwrap();
                for (a, b) in ours.iter().zip(floats(&case[key])) {
                    assert!((a - b).abs() <= 2e-6 * b.abs().max(0.1), "{key}: {a}, {b}");
                }
            };
            near(&state.m_absmax, "m_absmax");
            near(&state.v_absmax, "v_absmax");
            let values = w.to_vec1::<f32>().unwrap();
            let some: Vec<f32> = values.iter().step_by(97).copied().collect();
            near(&tensor(&some), "w_of_97th");
            let squares: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
            let theirs = number("w_squares");
            assert!((squares / theirs - 1.0).abs() < 1e-6, "{squares}, {theirs}");
        }
    }
}
