//! What to change where a training does not fit into memory, the cheapest change first.

use super::footprint::{Footprint, Load, states};
use crate::model::ModelConfig;
use crate::recipe::{Optimizer, Recompute};
use serde::Serialize;

/// A change of what is learned is worth a share of so much of the peak.
const LEAST_GAIN: u64 = 50;

/// One change of the recipe that makes a run smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Change {
    /// `sft.recompute`: more work, the same numbers.
    Recompute(Recompute),
    /// `sft.optimizer = "adamw_8bit"`: states rounded to 8 bits, so not quite the same numbers.
    Adam8bit,
    /// `student.lora.stream`: frozen weights come to the device for each use; the same numbers.
    Stream,
    /// `sft.pack_length`: more, smaller micro-batches; the same numbers.
    PackLength(usize),
    /// `sft.max_length`: drops or cuts long rows, so it changes what is learned.
    MaxLength(usize),
    /// `grpo.batch_size`, or `eval.batch_size`: fewer sequences sampled side by side; the same numbers.
    Slots(usize),
}

/// What may be computed again, the cheapest first.
const LEVELS: [Recompute; 4] = [
    Recompute::None,
    Recompute::KeepAttention,
    Recompute::Block,
    Recompute::Offload,
];

/// The levels that make a difference: on the CPU nothing can be brought to the host.
fn levels(load: &Load) -> &'static [Recompute] {
    match load.on_host {
        true => &LEVELS[..3],
        false => &LEVELS,
    }
}

fn costs(level: Recompute) -> usize {
    LEVELS.iter().position(|l| *l == level).unwrap_or(0)
}

/// What `recompute = "auto"` stands for: the cheapest level whose `peak`, in bytes, fits into `memory` bytes; the one that takes
/// least where none does; whole blocks where the memory is not known.
pub fn recompute(load: &Load, memory: Option<u64>, peak: impl Fn(&Load) -> u64) -> Recompute {
    if load.recompute != Recompute::Auto {
        return load.recompute;
    }
    let Some(memory) = memory else {
        return Recompute::Block;
    };
    let fits = |recompute| peak(&Load { recompute, ..*load }) <= memory;
    let levels = levels(load);
    let first = levels.iter().copied().find(|&level| fits(level));
    first.or(levels.last().copied()).unwrap_or(Recompute::Block)
}

/// The cheapest changes, in that order, with which `load` fits into `memory` bytes: none where it fits; `None` where
/// weights and states alone do not fit, and a smaller student is the only way. Weights `in_files` may be streamed.
pub fn changes_to_fit(
    config: &ModelConfig,
    load: &Load,
    in_files: bool,
    memory: u64,
) -> Option<Vec<Change>> {
    let fits = |load: &Load| Footprint::new(config, load).peak() <= memory;
    let mut load = *load;
    let mut changes = Vec::new();
    if fits(&load) {
        return Some(changes);
    }
    let may_stream = in_files && load.num_adapter_weights.is_some();
    let streamed = |load: &Load| Load {
        stream: true,
        ..*load
    };
    // the merged weights that are evaluated do not fit beside a single sequence
    let alone = Load {
        num_slots: 1,
        quant: None,
        num_adapter_weights: None,
        ..load
    };
    let evaluates = load.num_slots > 0 && load.rollouts.is_none();
    if may_stream
        && !load.stream
        && evaluates
        && Footprint::sampling(config, &alone).peak() > memory
    {
        load = streamed(&load);
        changes.push(Change::Stream);
        if fits(&load) {
            return Some(changes);
        }
    }
    if load.num_slots > 1 {
        let without = Load {
            num_slots: 0,
            ..load
        };
        let of_slots = |n| {
            let load = Load {
                num_slots: n,
                ..load
            };
            let (some, none) = (
                Footprint::new(config, &load),
                Footprint::new(config, &without),
            );
            // the cache is no more than training itself, or all fits
            some.peak() <= memory.max(none.peak())
        };
        if !of_slots(load.num_slots) {
            load.num_slots = halved(load.num_slots, 1, of_slots);
            changes.push(Change::Slots(load.num_slots));
            if fits(&load) {
                return Some(changes);
            }
        }
    }
    // packs longer than the longest row buy little speed
    if load.pack_length > load.max_length {
        let pack_length = halved(load.pack_length, load.max_length, |n| {
            fits(&Load {
                pack_length: n,
                ..load
            })
        });
        load.pack_length = pack_length;
        changes.push(Change::PackLength(pack_length));
        if fits(&load) {
            return Some(changes);
        }
    }
    for &level in levels(&load) {
        if costs(level) <= costs(load.recompute) {
            continue;
        }
        load.recompute = level;
        changes.retain(|c| !matches!(c, Change::Recompute(_)));
        changes.push(Change::Recompute(level));
        if fits(&load) {
            return Some(changes);
        }
    }
    if load.optimizer == Optimizer::AdamW {
        let smaller = Load {
            optimizer: Optimizer::AdamW8bit,
            ..load
        };
        // where adapters alone have states there is little to gain
        let gain = states(config, &load).saturating_sub(states(config, &smaller));
        if gain * LEAST_GAIN > Footprint::new(config, &load).peak() {
            load = smaller;
            changes.push(Change::Adam8bit);
            if fits(&load) {
                return Some(changes);
            }
        }
    }
    // on the host quantised weights are where they are streamed from
    if may_stream && !load.stream && (load.quant.is_none() || !load.on_host) {
        load = streamed(&load);
        changes.push(Change::Stream);
        if fits(&load) {
            return Some(changes);
        }
    }
    let shorter = |n| Load {
        pack_length: n,
        max_length: n,
        ..load
    };
    let max_length = halved(load.max_length, 1, |n| fits(&shorter(n)));
    fits(&shorter(max_length)).then(|| {
        changes.retain(|c| !matches!(c, Change::PackLength(_)));
        changes.push(Change::MaxLength(max_length));
        changes
    })
}

/// The first of `n/2, n/4, ...`, not below `least`, that `fits`; `least` where none does.
fn halved(mut n: usize, least: usize, fits: impl Fn(usize) -> bool) -> usize {
    while n > least {
        n = (n / 2).max(least);
        if fits(n) {
            return n;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::super::footprint::tests::{LOAD, model};
    use super::*;
    use crate::ops::PackedAs;

    #[test]
    fn cheapest_change_first() {
        let config = model();
        let peak = |load: &Load| Footprint::new(&config, load).peak();
        let change = |memory| changes_to_fit(&config, &LOAD, true, memory);
        assert_eq!(change(peak(&LOAD)), Some(vec![]));
        let packs = Load {
            pack_length: 1024,
            ..LOAD
        };
        assert_eq!(change(peak(&packs)), Some(vec![Change::PackLength(1024)]));
        let recomputed = Load {
            recompute: Recompute::Block,
            ..packs
        };
        let block = Change::Recompute(Recompute::Block);
        assert_eq!(
            change(peak(&recomputed)),
            Some(vec![Change::PackLength(1024), block])
        );
        let attention_kept = Load {
            recompute: Recompute::KeepAttention,
            ..packs
        };
        let level = Change::Recompute(Recompute::KeepAttention);
        assert_eq!(
            change(peak(&attention_kept)),
            Some(vec![Change::PackLength(1024), level])
        );
        let eight_bit = Load {
            optimizer: Optimizer::AdamW8bit,
            ..recomputed
        };
        assert_eq!(
            change(peak(&eight_bit)),
            Some(vec![Change::PackLength(1024), block, Change::Adam8bit])
        );
        let shorter = Load {
            pack_length: 256,
            max_length: 256,
            ..eight_bit
        };
        assert_eq!(
            change(peak(&shorter)),
            Some(vec![block, Change::Adam8bit, Change::MaxLength(256)])
        );
        assert_eq!(change(100_000_000), None);
    }

    #[test]
    fn frozen_weights_are_streamed_where_nothing_else_helps() {
        let config = model();
        let load = Load {
            recompute: Recompute::Offload,
            num_adapter_weights: Some(100_000),
            pack_length: LOAD.max_length,
            num_slots: 0,
            on_host: false,
            fast_cpu: false,
            fast_gpu: true,
            ..LOAD
        };
        let streamed = Load {
            stream: true,
            ..load
        };
        let peak = |load: &Load| Footprint::new(&config, load).peak();
        let change = |in_files| changes_to_fit(&config, &load, in_files, peak(&streamed));
        assert!(peak(&streamed) < peak(&load));
        assert_eq!(change(true), Some(vec![Change::Stream]));
        let has =
            |changes: Option<Vec<Change>>| changes.unwrap_or_default().contains(&Change::Stream);
        assert!(!has(change(false)));
        let quant = Some(PackedAs::Nf4);
        let packed = Load { quant, ..load };
        let on_host = Load {
            on_host: true,
            fast_cpu: true,
            fast_gpu: false,
            ..packed
        };
        let changes = changes_to_fit(&config, &on_host, true, peak(&on_host) - 1);
        assert!(!has(changes));
        // training fits, what is evaluated then does not
        let large = Load {
            max_length: 16,
            pack_length: 16,
            num_slots: 1,
            ..packed
        };
        let training = Footprint::new(&config, &large).without_evaluation().peak();
        let streamed = Load {
            stream: true,
            ..large
        };
        let memory = training.max(peak(&streamed));
        assert!(peak(&large) > memory);
        let changes = changes_to_fit(&config, &large, true, memory);
        assert_eq!(changes, Some(vec![Change::Stream]));
    }

    #[test]
    fn what_auto_stands_for() {
        let config = model();
        let peak = |load: &Load| Footprint::new(&config, load).peak();
        let auto = Load {
            recompute: Recompute::Auto,
            ..LOAD
        };
        let at = |recompute| peak(&Load { recompute, ..LOAD });
        let chosen = |memory| recompute(&auto, memory, peak);
        let sizes = [Recompute::None, Recompute::KeepAttention, Recompute::Block].map(at);
        assert!(sizes[0] > sizes[1] && sizes[1] > sizes[2], "{sizes:?}");
        assert_eq!(chosen(Some(sizes[0])), Recompute::None);
        assert_eq!(chosen(Some(sizes[0] - 1)), Recompute::KeepAttention);
        assert_eq!(chosen(Some(sizes[1] - 1)), Recompute::Block);
        assert_eq!(chosen(Some(0)), Recompute::Block);
        assert_eq!(chosen(None), Recompute::Block);
        assert_eq!(recompute(&LOAD, Some(0), peak), Recompute::None);
        let gpu = Load {
            on_host: false,
            fast_cpu: false,
            fast_gpu: true,
            ..auto
        };
        assert_eq!(recompute(&gpu, Some(0), peak), Recompute::Offload);
    }
}
