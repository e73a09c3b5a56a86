//! The table of rotations of every position.

use super::ModelConfig;
use crate::Result;
use crate::ops::RopeTable;
use candle_core::{Device, Tensor};
use std::f64::consts::PI;

/// Inverse frequencies `theta^(-2i/D)`, those of Llama 3.1 slowed down as its `rope_scaling` says.
pub(super) fn inverse_frequencies(config: &ModelConfig) -> Vec<f64> {
    let d = config.head_dim;
    (0..d / 2)
        .map(|i| {
            let frequency = config.rope_theta.powf(-2.0 * i as f64 / d as f64);
            let Some(s) = &config.rope_scaling else {
                return frequency;
            };
            let wavelength = 2.0 * PI / frequency;
            let original = s.original_max_position_embeddings as f64;
            if wavelength < original / s.high_freq_factor {
                frequency
            } else if wavelength > original / s.low_freq_factor {
                frequency / s.factor
            } else {
                let blend = (original / wavelength - s.low_freq_factor)
                    / (s.high_freq_factor - s.low_freq_factor);
                (1.0 - blend) * frequency / s.factor + blend * frequency
            }
        })
        .collect()
}

/// Cosines and sines, `[P, D/2]`, f32. Angles are taken in f32 as transformers does.
pub(super) fn table(config: &ModelConfig, device: &Device) -> Result<RopeTable> {
    let frequencies = inverse_frequencies(config);
    let shape = (config.max_position_embeddings, config.head_dim / 2);
    let angles: Vec<f32> = (0..shape.0)
        .flat_map(|p| frequencies.iter().map(move |f| p as f32 * *f as f32))
        .collect();
    let make = |f: fn(f32) -> f32| -> Result<Tensor> {
        Ok(Tensor::from_vec(
            angles.iter().map(|a| f(*a)).collect::<Vec<f32>>(),
            shape,
            device,
        )?)
    };
    Ok(RopeTable {
        cos: make(f32::cos)?,
        sin: make(f32::sin)?,
    })
}
