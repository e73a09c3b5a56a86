//! Work of a training step, from a model's shape alone.

use crate::model::ModelConfig;
use crate::recipe::Recompute;

/// Floating-point operations of an optimiser step over sequences of these lengths, in tokens: 2 a weight and token forward,
/// 2 backward for the input and, where it is trained, 2 for the weight; causal attention half of the square, forward and twice
/// backward; and what is computed again, in each block all but its last product.
pub fn step_flops(
    config: &ModelConfig,
    lengths: &[usize],
    recompute: Recompute,
    is_frozen: bool,
) -> f64 {
    let embedding = (config.vocab_size * config.hidden_size) as f64;
    let tables = if config.tie_word_embeddings { 1.0 } else { 2.0 };
    let layers = config.num_hidden_layers as f64;
    let blocks = config.num_parameters() as f64 - tables * embedding;
    let last = layers * (config.intermediate_size * config.hidden_size) as f64;
    let tokens: f64 = lengths.iter().map(|&n| n as f64).sum();
    let squares: f64 = lengths.iter().map(|&n| (n as f64).powi(2)).sum();
    let width = (config.num_attention_heads * config.head_dim) as f64 * layers;
    // q k^T and p v: 2 products of 2 operations over half of the square
    let attention = 2.0 * squares * width;
    let products = 2.0 * tokens * blocks;
    let passes = if is_frozen { 2.0 } else { 3.0 };
    let again = match recompute {
        Recompute::None => 0.0,
        Recompute::KeepAttention => products - 2.0 * tokens * last,
        Recompute::Block | Recompute::Offload | Recompute::Auto => {
            products - 2.0 * tokens * last + attention
        }
    };
    passes * (products + 2.0 * tokens * embedding) + 3.0 * attention + again
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::family;

    #[test]
    fn work_of_the_known_step() {
        // 33.7 M weights in blocks and 8.4 M in the head, 2048 tokens, 6 each: 0.52 TFLOP; attention 0.077
        let model = family::config("qwen2-42m").unwrap();
        let flops = |recompute, is_frozen| step_flops(&model, &[1024, 1024], recompute, is_frozen);
        let all = flops(Recompute::None, false);
        let blocks = model.num_parameters() as f64 - 16_384.0 * 512.0;
        let attention = 2.0 * 2.0 * 1_048_576.0 * 6144.0;
        let weights = 2.0 * 2048.0 * (blocks + 8_388_608.0);
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-12;
        assert!(near(all, 3.0 * weights + 3.0 * attention));
        assert!((0.5e12..0.65e12).contains(&all), "{all:e}");
        // the head and the last product of each block are not computed again
        let again = 2.0 * 2048.0 * (blocks - 12.0 * 512.0 * 1408.0);
        assert!(near(flops(Recompute::KeepAttention, false), all + again));
        assert!(near(
            flops(Recompute::Block, false),
            all + again + attention
        ));
        assert!(near(
            flops(Recompute::None, true),
            2.0 * weights + 3.0 * attention
        ));
    }
}
