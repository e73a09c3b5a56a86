//! 4-bit NormalFloat against bitsandbytes: `tests/golden/nf4.json`, made by the script beside it.

use candle_core::{DType, Device, Tensor};
use distill::ops::Nf4;
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
