//! Which rows make which step: a pure function of the seed and the step, so that a resumed run needs no saved generator.

use crate::random::{GOLDEN, SplitMix64, mix};

/// The order of `num_rows` rows in `epoch`: shuffled by seed and epoch, or as they come.
pub fn epoch_order(num_rows: usize, shuffle: bool, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..num_rows).collect();
    if shuffle {
        let mut random = SplitMix64(mix(
            mix(seed.wrapping_add(GOLDEN)).wrapping_add(epoch as u64 + 1)
        ));
        // Fisher-Yates
        for i in (1..num_rows).rev() {
            order.swap(i, below(&mut random, i as u64 + 1) as usize);
        }
    }
    order
}

/// Uniform in `0..n` (Lemire's multiplication, biased products refused: <https://arxiv.org/abs/1805.10941>).
fn below(random: &mut SplitMix64, n: u64) -> u64 {
    loop {
        let product = u128::from(random.draw()) * u128::from(n);
        if product as u64 >= n.wrapping_neg() % n {
            return (product >> 64) as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_once_in_each_epoch() {
        let order = |shuffle, seed, epoch| epoch_order(100, shuffle, seed, epoch);
        assert_eq!(order(false, 1, 3), (0..100).collect::<Vec<_>>());
        let mut sorted = order(true, 1, 0);
        assert_ne!(sorted, (0..100).collect::<Vec<_>>());
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(order(true, 1, 0), order(true, 1, 0));
        assert_ne!(order(true, 1, 0), order(true, 1, 1));
        assert_ne!(order(true, 1, 0), order(true, 2, 0));
        // seed and epoch are not interchangeable
        assert_ne!(order(true, 1, 1), order(true, 2, 0));
        assert_ne!(order(true, 1, 2), order(true, 3, 0));
        assert!(epoch_order(0, true, 1, 0).is_empty());
    }

    #[test]
    fn all_orders_are_equally_likely() {
        // 6 orders of 3 rows over 6000 seeds: 1000 each, standard deviation 29
        let mut counts = std::collections::BTreeMap::new();
        for seed in 0..6000 {
            *counts.entry(epoch_order(3, true, seed, 0)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(
            counts.values().all(|n| (850..1150).contains(n)),
            "{counts:?}"
        );
    }
}
