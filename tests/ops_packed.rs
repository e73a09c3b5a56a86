//! 4-bit NormalFloat against bitsandbytes and GGML's blocks against llama.cpp's Python package: `tests/golden/nf4.json` and
//! `tests/golden/ggml.json`, made by the scripts beside them. And how near q4_k stays to what it was.

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use distill::ops::{GgmlBlocks, GgmlType, Nf4, Packed, PackedAs};
use serde_json::Value;

fn matrix(rows: usize, columns: usize) -> Tensor {
    let value = |i: usize| {
        let v = ((i * i * 7 + i) % 1009) as f32 / 504.0 - 1.0;
        v * v * v
    };
    let values: Vec<f32> = (0..rows * columns).map(value).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
}

fn hex_of(t: &Tensor) -> String {
    hex::encode(t.to_vec1::<u8>().unwrap())
}

#[test]
fn bits_equal_bitsandbytes() {
    let golden: Value = serde_json::from_str(include_str!("golden/nf4.json")).unwrap();
    for case in golden.as_array().unwrap() {
        let size = |i: usize| case["shape"][i].as_u64().unwrap() as usize;
        let (rows, columns) = (size(0), size(1));
        let packed = Nf4::quantise(&matrix(rows, columns), &Device::Cpu).unwrap();
        let (codes, scale_codes, scales, offset) = packed.parts();
        // theirs ends with the values, ours with the block
        let theirs = case["codes"].as_str().unwrap();
        assert_eq!(&hex_of(codes)[..theirs.len()], theirs, "{rows} x {columns}");
        assert_eq!(hex_of(scale_codes), case["scale_codes"].as_str().unwrap());
        // the mean is an f32 sum of theirs, in an order of the machine's
        let near = |ours: f64, theirs: &Value, what: &str| {
            let theirs = theirs.as_f64().unwrap();
            assert!(
                (ours - theirs).abs() <= 1e-6 * theirs.abs(),
                "{rows} x {columns}, {what}: {ours}, {theirs}"
            );
        };
        let scales = scales.to_vec1::<f32>().unwrap();
        assert_eq!(scales.len(), case["scales"].as_array().unwrap().len());
        for (i, scale) in scales.iter().enumerate() {
            let theirs = case["scales"][i].as_f64().unwrap();
            assert!(
                (f64::from(*scale) - theirs).abs() < 1e-6,
                "{scale}, {theirs}"
            );
        }
        near(f64::from(offset), &case["offset"], "mean");
        let again = packed
            .dequantise(DType::F32)
            .unwrap()
            .flatten_all()
            .unwrap();
        let again = again.to_vec1::<f32>().unwrap();
        let squares = again.iter().map(|&v| f64::from(v).powi(2)).sum();
        near(squares, &case["sum_of_squares"], "squares");
        let weighted = again.iter().enumerate();
        let weighted = weighted.map(|(i, &v)| i as f64 * f64::from(v)).sum();
        near(weighted, &case["weighted_sum"], "weighted sum");
    }
}

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/ggml.json")).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn numbers_equal_those_of_the_gguf_package() {
    let golden = golden();
    for of in [GgmlType::Q8_0, GgmlType::Q4_K] {
        let case = &golden["blocks"][of.name()];
        let bytes = |key: &str| hex::decode(case[key].as_str().unwrap()).unwrap();
        let (blocks, want) = (bytes("blocks"), bytes("values"));
        let num_rows = blocks.len() / of.block_bytes();
        let w = GgmlBlocks::of_bytes(&blocks, of, (num_rows, of.block_size())).unwrap();
        let found = values(&w.dequantise(DType::F32).unwrap());
        assert_eq!(found.len() * 4, want.len());
        for (i, (found, want)) in found.iter().zip(want.as_chunks::<4>().0).enumerate() {
            let want = f32::from_le_bytes(*want);
            // of zeros the sign is free
            assert!(
                found.to_bits() == want.to_bits() || (*found == 0.0 && want == 0.0),
                "{} {i}: {found:e}, {want:e}",
                of.name()
            );
        }
    }
}

#[test]
fn blocks_equal_those_of_the_gguf_package() {
    for (shape, want) in golden()["quantised"].as_object().unwrap() {
        let (rows, columns) = shape.split_once(" x ").unwrap();
        let w = matrix(rows.parse().unwrap(), columns.parse().unwrap());
        let packed = GgmlBlocks::quantise(&w, GgmlType::Q8_0, &Device::Cpu).unwrap();
        let found = hex::encode(packed.bytes().to_vec1::<u8>().unwrap());
        assert_eq!(found, want.as_str().unwrap(), "{shape}");
    }
}

#[test]
fn four_bits_lose_less_than_in_a_plainer_fit() {
    // normal numbers by the sum of twelve uniform ones
    let mut state = 1u64;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let w: Vec<f32> = (0..64 * 512)
        .map(|_| (0..12).map(|_| uniform()).sum())
        .collect();
    let w = Tensor::from_vec(w, (64, 512), &Device::Cpu).unwrap();
    let error = |found: &Tensor| -> f32 {
        let off = (found - &w).unwrap().sqr().unwrap().mean_all().unwrap();
        off.to_scalar().unwrap()
    };
    let own = GgmlBlocks::quantise(&w, GgmlType::Q4_K, &Device::Cpu).unwrap();
    let bytes = own.bytes().to_vec1::<u8>().unwrap();
    let own = error(&own.dequantise(DType::F32).unwrap());
    // without weights and with fewer guesses
    let plainer = QTensor::quantize(&w, GgmlDType::Q4K).unwrap();
    let plainer = error(&plainer.dequantize(&Device::Cpu).unwrap());
    let nf4 = Nf4::quantise(&w, &Device::Cpu).unwrap();
    let nf4 = error(&nf4.dequantise(DType::F32).unwrap());
    assert!(own < plainer && own < nf4, "{own}, {plainer}, {nf4}");
    // 15 steps over the range of 32 normal numbers, about 4.1: a twelfth of the square of a step is 0.0062
    assert!((0.003..0.007).contains(&own), "{own}");
    // candle reads the blocks as we do
    let read = QTensor::new(
        QStorage::from_data(bytes.into(), &Device::Cpu, GgmlDType::Q4K).unwrap(),
        (64, 512),
    );
    let read = error(&read.unwrap().dequantize(&Device::Cpu).unwrap());
    assert_eq!(read, own);
}

#[test]
fn formats_by_the_width_of_rows() {
    for (quant, width, taken) in [
        (PackedAs::Nf4, 7, Some(PackedAs::Nf4)),
        (PackedAs::Q8_0, 64, Some(PackedAs::Q8_0)),
        (PackedAs::Q8_0, 48, None),
        (PackedAs::Q4K, 512, Some(PackedAs::Q4K)),
        (PackedAs::Q4K, 896, Some(PackedAs::Q8_0)),
        (PackedAs::Q4K, 40, None),
    ] {
        assert_eq!(quant.for_width(width), taken);
        let w = matrix(3, width);
        let packed = Packed::quantise(&w, quant, &Device::Cpu);
        match (packed, taken) {
            (Ok(packed), Some(taken)) => {
                assert_eq!(packed.num_bytes(), taken.num_bytes(3 * width));
                assert_eq!(packed.dequantise(DType::F32).unwrap().dims(), [3, width]);
            }
            (Err(error), None) => {
                assert!(error.to_string().contains(quant.name()), "{error}");
                assert!(error.hint().unwrap().contains("nf4"), "{error}");
            }
            (packed, taken) => panic!("{quant:?}, {width}: {packed:?} for {taken:?}"),
        }
    }
}
