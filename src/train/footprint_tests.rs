//! What a run takes, by hand and as it was measured.

use super::*;
use crate::model::family;
use crate::train::shrink::{Change, changes_to_fit};

pub(crate) const LOAD: Load = Load {
    dtype: Dtype::F32,
    recompute: Recompute::None,
    num_adapter_weights: None,
    quant: None,
    stream: false,
    dora: false,
    optimizer: Optimizer::AdamW,
    at_once: false,
    pack_length: 2048,
    max_length: 1024,
    on_host: true,
    fast_cpu: true,
    fast_gpu: false,
    num_slots: 16,
    slot_length: 320,
    rollouts: None,
};

pub(crate) fn model() -> ModelConfig {
    family::config("qwen2-42m").unwrap()
}

#[test]
fn parts_by_hand() {
    let p = model().num_parameters() as u64;
    // embedding; 12 blocks of q and o, k and v, three feed-forward matrices, norms, biases; the last norm
    let block = 2 * 512 * 512 + 2 * 512 * 128 + 3 * 512 * 1408 + 2 * 512 + 512 + 2 * 128;
    assert_eq!(p, 16_384 * 512 + 12 * block + 512);
    let f = Footprint::new(&model(), &LOAD);
    assert_eq!(
        (f.weights, f.master, f.gradients, f.optimizer),
        (4 * p, 0, 4 * p, 8 * p)
    );
    // 2 x 512 + 2 x 512 + 2 x 128 + 2 x 1408 numbers and 8 sums a token and block
    assert_eq!(f.activations, 2048 * 12 * (5120 * 4 + 8 * 4));
    assert_eq!(f.block, 2048 * (3 * 1408 + 6 * 512 + 3 * 512 + 3 * 128) * 4);
    assert_eq!(f.loss, 512 * 16_384 * 4 + 2 * 2048 * 512 * 4);
    assert_eq!(f.kv_cache, 16 * (320 * 12 * 2 * 128 * 4 + 16_384 * 4));
    assert_eq!(f.attention, 0);
    let block = Footprint::new(
        &model(),
        &Load {
            recompute: Recompute::Block,
            ..LOAD
        },
    );
    assert_eq!(block.activations, 2048 * (12 * 512 * 4 + 5120 * 4 + 32));
    let attended = Footprint::new(
        &model(),
        &Load {
            recompute: Recompute::KeepAttention,
            ..LOAD
        },
    );
    let kept = 12 * (1024 * 4 + 8 * 4);
    assert_eq!(attended.activations, 2048 * (kept + 5120 * 4 + 32));
    let bf16 = Footprint::new(
        &model(),
        &Load {
            dtype: Dtype::Bf16,
            fast_cpu: false,
            ..LOAD
        },
    );
    assert_eq!((bf16.weights, bf16.master), (2 * p, 4 * p));
    assert_eq!(bf16.attention, 6 * 8 * 512 * 1024 * 4);
    assert_eq!(bf16.loss, 4 * 256 * 16_384 * 4 + 2 * 2048 * 512 * 2);
    assert_eq!(bf16.process, 0);
    assert_eq!(bf16.temporaries, 5 * 16_384 * 512 * 4);
    assert_eq!(f.temporaries, 0);
}

#[test]
fn states_in_8_bits() {
    let load = Load {
        optimizer: Optimizer::AdamW8bit,
        ..LOAD
    };
    let p = model().num_parameters() as u64;
    // the embedding, norms and biases keep theirs in f32
    let f32s = 16_384 * 512 + 12 * (2 * 512 + 512 + 2 * 128) + 512;
    let scales = (p - f32s).div_ceil(256) * 4;
    let f = Footprint::new(&model(), &load);
    assert_eq!(f.optimizer, 2 * (4 * f32s + p - f32s + scales));
    let adapters = Load {
        num_adapter_weights: Some(1024),
        ..load
    };
    let f = Footprint::new(&model(), &adapters);
    assert_eq!(f.optimizer, 2 * (1024 + 4 * 4));
}

#[test]
fn gradients_that_are_let_go() {
    let at_once = |config: &ModelConfig| {
        let load = Load {
            at_once: true,
            ..LOAD
        };
        Footprint::new(config, &load).gradients
    };
    let table = 16_384 * 512;
    let block = 2 * 512 * 512 + 2 * 512 * 128 + 3 * 512 * 1408 + 2 * 512 + 512 + 2 * 128;
    // norms at the end count with the blocks
    assert_eq!(at_once(&model()), 4 * (table + block + 512 / 12));
    let mut untied = model();
    untied.tie_word_embeddings = false;
    assert_eq!(at_once(&untied), 4 * table);
    untied.vocab_size = 1024;
    assert_eq!(at_once(&untied), 4 * (block + 512 / 12));
}

#[test]
fn a_policy_holds_a_reference_and_what_it_samples() {
    let p = model().num_parameters() as u64;
    let load = Load {
        rollouts: Some(Rollouts {
            has_reference: true,
            num_tokens: 1000,
            group_size: 1,
            prompt_length: 0,
        }),
        ..LOAD
    };
    let (plain, f) = (
        Footprint::new(&model(), &LOAD),
        Footprint::new(&model(), &load),
    );
    assert_eq!((f.reference, f.rollout), (4 * p, 1000 * 52));
    // it is asked when the gradients and the activations of an update are gone
    let of_training = plain.peak() - plain.process;
    assert_eq!(f.peak() - f.process, of_training + 52_000);
    // more than an update, where many are sampled
    let many = Load {
        num_slots: 4096,
        ..load
    };
    let g = Footprint::new(&model(), &many);
    let held = 12 * p + 52_000 + g.kv_cache;
    assert_eq!(g.peak() - g.process, held);
    let alone = Load {
        rollouts: Some(Rollouts {
            has_reference: false,
            num_tokens: 0,
            group_size: 1,
            prompt_length: 0,
        }),
        ..LOAD
    };
    let alone = Footprint::new(&model(), &alone);
    assert_eq!(alone.peak() - alone.process, plain.peak() - plain.process);
    // fewer side by side come first: they change nothing
    let fits = Footprint::new(
        &model(),
        &Load {
            num_slots: 512,
            ..load
        },
    )
    .peak();
    assert_eq!(
        changes_to_fit(&model(), &many, true, fits),
        Some(vec![Change::Slots(512)])
    );
    // a model that scores has no logits
    let scorer = Footprint::scoring(&model(), &LOAD);
    assert_eq!(scorer.weights, 4 * (p + 512));
    assert!(scorer.loss < 3 * 2048 * 512 * 4);
}

#[test]
fn adapters_alone_have_gradients_and_states() {
    let p = model().num_parameters() as u64;
    let load = Load {
        num_adapter_weights: Some(1000),
        rollouts: Some(Rollouts {
            has_reference: true,
            num_tokens: 0,
            group_size: 1,
            prompt_length: 0,
        }),
        ..LOAD
    };
    let f = Footprint::new(&model(), &load);
    assert_eq!(
        (f.weights, f.gradients, f.optimizer, f.reference),
        (4 * (p + 1000), 4000, 8000, 4000)
    );
    // of a block 2 x 512 x 512, 2 x 512 x 128 and 3 x 512 x 1408 in 4 bits
    let n = 12 * (2 * 512 * 512 + 2 * 512 * 128 + 3 * 512 * 1408);
    // rows of 1408 values are no multiple of 256: the last matrix of a block is in q8_0 then
    let down = 12 * 512 * 1408;
    for (quant, packed) in [
        (PackedAs::Nf4, n / 2 + n / 64 + n / 4096),
        (PackedAs::Q8_0, n / 32 * 34),
        (PackedAs::Q4K, (n - down) / 256 * 144 + down / 32 * 34),
    ] {
        let quant = Some(quant);
        let q = Footprint::new(&model(), &Load { quant, ..load });
        assert_eq!(f.weights - q.weights, 4 * n - packed, "{quant:?}");
        assert_eq!(q.block - f.block, 512 * 1408 * 4);
        // on the host of a device there is nothing of them
        let streamed = Load {
            quant,
            stream: true,
            on_host: false,
            fast_cpu: false,
            num_slots: 1,
            ..load
        };
        let streamed = Footprint::new(&model(), &streamed);
        assert_eq!(f.weights - streamed.weights, 4 * n);
        // nor of what is evaluated then, but for two blocks of it
        let rest = 4 * model().num_parameters() as u64 - 4 * n;
        assert_eq!(streamed.weights_after, rest + 2 * 4 * n / 12);
    }
}

#[test]
fn near_what_was_measured() {
    // peak resident memory of whole runs of three steps on two cores (.bench/memory.py), tied embeddings; hidden, layers,
    // intermediate, vocabulary, tokens of a pack, MiB
    for (c, layers, f, vocab, recompute, t, measured) in [
        (512, 12, 1408, 16_384, Recompute::None, 2048, 1543),
        (256, 4, 704, 151_936, Recompute::None, 512, 997),
        (256, 8, 704, 2048, Recompute::Block, 4096, 377),
        (256, 8, 704, 2048, Recompute::None, 4096, 665),
    ] {
        let mut config = model();
        config.hidden_size = c;
        config.num_hidden_layers = layers;
        config.intermediate_size = f;
        config.vocab_size = vocab;
        config.num_attention_heads = c / 64;
        config.num_key_value_heads = 2;
        let load = Load {
            recompute,
            pack_length: t,
            num_slots: 0,
            ..LOAD
        };
        let mib = Footprint::new(&config, &load).peak() >> 20;
        let error = mib as f64 / f64::from(measured) - 1.0;
        assert!(
            error.abs() < 0.1,
            "{c} x {layers}, {t} tokens: {mib} for {measured}"
        );
    }
}

#[test]
fn policies_near_what_was_measured() {
    // peak resident memory of two updates on two cores, tied embeddings; hidden, head dim, layers, intermediate,
    // vocabulary, tokens of a pack, sequences side by side and their room, reference, MiB; less the normed inputs of the
    // products, which blocks kept then (2 c numbers a token and layer)
    for (c, d, layers, f, vocab, t, slots, room, has_reference, measured) in [
        (128, 32, 4, 352, 673, 4096, 128, 256, false, 262),
        (512, 64, 12, 1408, 16_384, 2048, 32, 256, false, 1436),
        (512, 64, 12, 1408, 16_384, 2048, 32, 256, true, 1501),
        (256, 64, 4, 704, 151_936, 512, 32, 128, true, 999),
    ] {
        let mut config = model();
        config.hidden_size = c;
        config.head_dim = d;
        config.num_hidden_layers = layers;
        config.intermediate_size = f;
        config.vocab_size = vocab;
        config.num_attention_heads = c / d;
        config.num_key_value_heads = 2;
        let load = Load {
            pack_length: t,
            max_length: room,
            num_slots: slots,
            slot_length: room,
            rollouts: Some(Rollouts {
                has_reference,
                num_tokens: 2 * slots * room,
                group_size: 1,
                prompt_length: 0,
            }),
            ..LOAD
        };
        let mib = Footprint::new(&config, &load).peak() >> 20;
        let error = mib as f64 / f64::from(measured) - 1.0;
        assert!(
            error.abs() < 0.1,
            "{c} x {layers}, {t} tokens: {mib} for {measured}"
        );
    }
}

#[test]
fn pages_of_a_cache_by_hand() {
    let position = 12 * 2 * 128 * 4;
    let cache = |num_slots: usize, slot_length: usize, group: Option<(usize, usize)>| {
        let load = Load {
            num_slots,
            slot_length,
            rollouts: group.map(|(group_size, prompt_length)| Rollouts {
                has_reference: false,
                num_tokens: 0,
                group_size,
                prompt_length,
            }),
            ..LOAD
        };
        let logits = num_slots as u64 * 16_384 * 4;
        let bytes = Footprint::new(&model(), &load).kv_cache - logits;
        assert_eq!(bytes % (64 * position), 0);
        bytes / (64 * position)
    };
    // pages of 64 positions, 16 of them at a time
    assert_eq!(cache(0, 320, None), 0);
    assert_eq!(cache(16, 320, None), 16 * 5);
    assert_eq!(cache(16, 321, None), 16 * 6);
    assert_eq!(cache(3, 65, None), 16);
    // a group of 16 holds the 7 whole pages of its prompt once, and 5 each: 87
    assert_eq!(cache(16, 768, Some((16, 500))), 96);
    // two groups: 174; a prompt of less than a page
    assert_eq!(cache(32, 768, Some((16, 500))), 176);
    assert_eq!(cache(32, 128, Some((16, 63))), 64);
    // 24 of groups of 16: two groups wherever they begin, 134
    assert_eq!(cache(24, 768, Some((16, 500))), 144);
    // 10 of groups of 16: the second ten are of two groups, 64
    assert_eq!(cache(10, 768, Some((16, 500))), 64);
    // 18 of them: three groups at times, 111
    assert_eq!(cache(18, 768, Some((16, 500))), 112);
}
