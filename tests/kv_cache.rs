//! The KV cache of a whole model: what sequences share, what they hold, and that neither changes a bit of what is computed.

use candle_core::{DType, Device, Tensor};
use distill::model::{CausalLm, KvCache, ModelConfig};
use distill::ops::paged::{PAGE, PAGES_A_CHUNK};

fn model(dtype: DType) -> CausalLm {
    let json = serde_json::json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 61, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "tie_word_embeddings": true, "initializer_range": 0.2,
    });
    let config = ModelConfig::from_json(&json, "config.json").unwrap();
    CausalLm::random(config, 3, &Device::Cpu, dtype).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn tokens(n: usize, seed: usize, model: &CausalLm) -> Vec<u32> {
    let vocab = model.config().vocab_size;
    (0..n)
        .map(|i| ((i * 31 + seed * 17 + i * i) % vocab) as u32)
        .collect()
}

/// Logits of each step of a sequence that is alone in a cache.
fn alone(model: &CausalLm, prompt: &[u32], next: &[u32]) -> Vec<Vec<f32>> {
    let mut cache = model.new_cache(1).unwrap();
    let mut all = vec![values(&model.prefill(&mut cache, 0, prompt).unwrap())];
    for &token in next {
        all.push(values(&model.decode(&mut cache, &[0], &[token]).unwrap()));
    }
    all
}

#[test]
fn a_sequence_is_the_same_alone_and_beside_those_that_share_with_it() {
    for dtype in [DType::F32, DType::BF16] {
        let model = model(dtype);
        for len in [1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 2 * PAGE + 7] {
            let prompt = tokens(len, 1, &model);
            let mut cache = model.new_cache(5).unwrap();
            // another sequence, so that pages do not follow each other
            let other = tokens(PAGE - 2, 2, &model);
            model.prefill(&mut cache, 4, &other).unwrap();
            let first = values(&model.prefill(&mut cache, 2, &prompt).unwrap());
            let num_steps = PAGE + 3;
            let next: Vec<Vec<u32>> = (0..5).map(|s| tokens(num_steps, 10 + s, &model)).collect();
            let want: Vec<Vec<Vec<f32>>> = (0..5)
                .map(|slot| {
                    alone(
                        &model,
                        if slot == 4 { &other } else { &prompt },
                        &next[slot],
                    )
                })
                .collect();
            assert_eq!(first, want[2][0]);
            let mut slots = vec![2u32, 4];
            for step in 0..num_steps {
                // shared at once, and after its source has gone on
                match step {
                    0 => slots.push(0),
                    1 => slots.insert(0, 3),
                    5 => slots.push(1),
                    _ => {}
                }
                for slot in [0, 1, 3] {
                    if slots.contains(&slot) && cache.len(slot) == 0 {
                        cache.copy_prefix(2, slot, len).unwrap();
                    }
                }
                let at = |slot: u32| {
                    let began = match slot {
                        3 => 1,
                        1 => 5,
                        _ => 0,
                    };
                    step - began
                };
                let inputs: Vec<u32> = slots.iter().map(|&s| next[s as usize][at(s)]).collect();
                let logits = model.decode(&mut cache, &slots, &inputs).unwrap();
                for (row, &slot) in slots.iter().enumerate() {
                    let got = values(&logits.get(row).unwrap());
                    let want = &want[slot as usize][at(slot) + 1];
                    assert_eq!(
                        &got, want,
                        "{dtype:?}, {len} tokens, slot {slot}, step {step}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_slot_is_used_again() {
    let model = model(DType::F32);
    let (long, short) = (tokens(2 * PAGE, 1, &model), tokens(5, 2, &model));
    let mut cache = model.new_cache(2).unwrap();
    assert!(cache.is_empty());
    model.prefill(&mut cache, 0, &long).unwrap();
    cache.copy_prefix(0, 1, PAGE + 9).unwrap();
    // cut to its prompt; cleared; filled over what it held, which the other slot goes on with
    cache.copy_prefix(0, 0, PAGE + 9).unwrap();
    assert_eq!((cache.len(0), cache.len(1)), (PAGE + 9, PAGE + 9));
    let want = alone(&model, &long[..PAGE + 9], &short);
    for (i, &token) in short.iter().enumerate() {
        let logits = model.decode(&mut cache, &[1, 0], &[token; 2]).unwrap();
        assert_eq!(values(&logits.get(0).unwrap()), want[i + 1]);
        assert_eq!(values(&logits.get(1).unwrap()), want[i + 1]);
    }
    cache.copy_prefix(1, 0, PAGE).unwrap();
    let first = values(&model.prefill(&mut cache, 1, &short).unwrap());
    assert_eq!(first, alone(&model, &short, &[])[0]);
    let logits = model.decode(&mut cache, &[0], &[long[PAGE]]).unwrap();
    assert_eq!(
        values(&logits),
        alone(&model, &long[..PAGE], &long[PAGE..=PAGE])[1]
    );
    for slot in 0..2 {
        cache.clear(slot).unwrap();
    }
    assert!(cache.is_empty());
    assert_eq!(cache.bytes().0, 0);
    assert!(cache.clear(2).is_err());
    assert!(model.decode(&mut cache, &[0, 0], &[1, 1]).is_err());
}

/// Pages that hold something, and those that there is memory for.
fn pages(cache: &KvCache, model: &CausalLm) -> (usize, usize) {
    let c = model.config();
    let page = c.num_hidden_layers * 2 * c.num_key_value_heads * c.head_dim * PAGE * 4;
    let (held, all) = cache.bytes();
    assert!(held.is_multiple_of(page) && all.is_multiple_of(page));
    (held / page, all / page)
}

#[test]
fn a_group_holds_its_prompt_once() {
    let model = model(DType::F32);
    let prompt = tokens(3 * PAGE + 10, 1, &model);
    let mut cache = model.new_cache(16).unwrap();
    assert_eq!(pages(&cache, &model), (0, 0));
    model.prefill(&mut cache, 0, &prompt).unwrap();
    for slot in 1..16 {
        cache.copy_prefix(0, slot, prompt.len()).unwrap();
    }
    assert_eq!(pages(&cache, &model), (4, PAGES_A_CHUNK));
    let slots: Vec<u32> = (0..16).collect();
    model.decode(&mut cache, &slots, &[1; 16]).unwrap();
    assert_eq!(pages(&cache, &model), (3 + 16, 2 * PAGES_A_CHUNK));
    for _ in 1..PAGE {
        model.decode(&mut cache, &slots, &[1; 16]).unwrap();
    }
    // each has ten positions in a page of its own that follows
    assert_eq!(pages(&cache, &model), (3 + 2 * 16, 3 * PAGES_A_CHUNK));
    // what one gives back, the next takes
    for slot in 0..8 {
        cache.clear(slot).unwrap();
    }
    assert_eq!(pages(&cache, &model), (3 + 2 * 8, 3 * PAGES_A_CHUNK));
    for slot in 0..8 {
        model
            .prefill(&mut cache, slot, &prompt[..2 * PAGE])
            .unwrap();
    }
    assert_eq!(pages(&cache, &model), (3 + 4 * 8, 3 * PAGES_A_CHUNK));
}
