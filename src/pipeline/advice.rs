//! What to change where a training does not fit, in the words of a recipe; which changes these are is found by
//! [`crate::train::shrink`].

use crate::model::{AdapterConfig, ModelConfig};
use crate::ops::PackedAs;
use crate::recipe::Recompute;
use crate::recipe::plan::PROJECTIONS;
use crate::train::footprint::Load;
use crate::train::shrink::{Change, changes_to_fit};

/// The cheapest changes with which `load` fits into `bytes`, in the settings of `table`; of the method of training where
/// nothing else does. Weights `in_files` may be streamed, and trained by adapters.
pub(super) fn advice(
    config: &ModelConfig,
    load: &Load,
    bytes: u64,
    (table, in_files): (&str, bool),
) -> Vec<String> {
    if let Some(changes) = changes_to_fit(config, load, in_files, bytes) {
        return changes.iter().map(|c| say(c, load, table)).collect();
    }
    for (text, other) in other_methods(config, load, in_files && table != "reward_model") {
        if let Some(changes) = changes_to_fit(config, &other, in_files, bytes) {
            let more = changes.iter().map(|c| say(c, &other, table));
            return [text.to_string()].into_iter().chain(more).collect();
        }
    }
    vec!["no other setting makes it fit: take a smaller student or a larger device".to_string()]
}

/// What takes less than training as it is meant to be.
fn other_methods(config: &ModelConfig, load: &Load, adapters: bool) -> Vec<(&'static str, Load)> {
    let num_adapter_weights = load.num_adapter_weights.or_else(|| {
        let default = AdapterConfig {
            rank: 16,
            alpha: 32.0,
            rslora: false,
            dora: false,
            targets: PROJECTIONS.map(str::to_string).to_vec(),
        };
        adapters.then(|| default.num_parameters(config) as u64)
    });
    let with = |quant| Load {
        num_adapter_weights,
        quant,
        ..*load
    };
    let lora = "`student.method = \"lora\"`: adapters beside frozen weights";
    let qlora = "`student.method = \"qlora\"`: adapters beside frozen weights in 4 bits";
    let four_bits = "`student.lora.quant = \"q4_k\"`: frozen weights in 4 bits";
    match (load.num_adapter_weights, load.quant) {
        (None, _) if adapters => vec![(lora, with(None)), (qlora, with(Some(PackedAs::Nf4)))],
        (Some(_), None) => vec![(qlora, with(Some(PackedAs::Nf4)))],
        (Some(_), Some(PackedAs::Q8_0)) => vec![(four_bits, with(Some(PackedAs::Q4K)))],
        _ => Vec::new(),
    }
}

/// A change as people make it.
fn say(change: &Change, load: &Load, table: &str) -> String {
    match change {
        Change::Recompute(level) => format!("`{table}.recompute = \"auto\"`, or \"{}\": {}, the same numbers", level.name(), costs(*level)),
        Change::Adam8bit => format!("`{table}.optimizer = \"adamw_8bit\"`: optimiser states in a quarter of the memory, rounded to 8 bits"),
        Change::Stream => "`student.lora.stream = true`: frozen weights wait on the host and come for each use, slower, the same numbers".to_string(),
        Change::PackLength(n) => format!("`{table}.pack_length = {n}`: smaller packs, the same numbers"),
        Change::MaxLength(n) if load.rollouts.is_some() => format!("prompts and completions of {n} tokens together, by `{table}.max_new_tokens`: longer ones are cut off, so it changes what is learned"),
        Change::MaxLength(n) => format!("`{table}.max_length = {n}`: longer rows are dropped, so it changes what is learned"),
        Change::Slots(n) => format!("`{}.batch_size = {n}`: fewer sequences side by side, the same numbers", if load.rollouts.is_some() { table } else { "eval" }),
    }
}

/// What a level of recomputation is paid with.
fn costs(level: Recompute) -> &'static str {
    match level {
        Recompute::None => "nothing is computed twice",
        Recompute::KeepAttention => "a fifth more work",
        Recompute::Block | Recompute::Auto => "a quarter to a third more work",
        Recompute::Offload => {
            "blocks are computed again from inputs that wait in the memory of the host"
        }
    }
}
