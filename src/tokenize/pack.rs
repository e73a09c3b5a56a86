//! Sequences into packs: best-fit decreasing. Which tokens see which is the matter of attention, not of packing.

use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Distributes sequences over packs of at most `capacity` tokens so that few packs are needed: the longest sequence
/// first, each into the fullest pack that still takes it (best-fit decreasing, at most 11/9 of the optimum plus a pack).
///
/// Returns the indices of `lengths` pack by pack; each occurs exactly once. O(n log n) and deterministic: sequences of
/// one length are placed in the order given, and of equally full packs the oldest is taken.
///
/// A length of zero or above `capacity` is an error that names the index: the caller drops or cuts such rows before.
pub fn best_fit(lengths: &[usize], capacity: usize) -> Result<Vec<Vec<usize>>> {
    if let Some(index) = lengths
        .iter()
        .position(|&length| length == 0 || length > capacity)
    {
        return Err(Error::input(format!(
            "sequence {index} of {} tokens does not fit a pack of {capacity}",
            lengths[index]
        ))
        .with_hint("raise `pack_length`, or lower `max_length`"));
    }
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(lengths[index])); // stable
    let mut packs: Vec<Vec<usize>> = Vec::new();
    // free tokens -> packs that have so many free
    let mut open: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for index in order {
        let length = lengths[index];
        let found = open
            .range(length..)
            .next()
            .and_then(|(&free, packs)| Some((free, *packs.first()?)));
        let (pack, free) = match found {
            Some((free, pack)) => {
                if let Some(same) = open.get_mut(&free) {
                    same.remove(&pack);
                    if same.is_empty() {
                        open.remove(&free);
                    }
                }
                (pack, free)
            }
            None => {
                packs.push(Vec::new());
                (packs.len() - 1, capacity)
            }
        };
        packs[pack].push(index);
        if free > length {
            open.entry(free - length).or_default().insert(pack);
        }
    }
    Ok(packs)
}

/// Share of the packs' tokens that hold something: 1.0 is no waste. 1.0 for no packs.
pub fn utilisation(packs: &[Vec<usize>], lengths: &[usize], capacity: usize) -> f64 {
    if packs.is_empty() {
        return 1.0;
    }
    let used: usize = packs.iter().flatten().map(|&index| lengths[index]).sum();
    used as f64 / (packs.len() * capacity) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, read literally: O(n²).
    fn brute_force(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by(|&a, &b| lengths[b].cmp(&lengths[a]).then(a.cmp(&b)));
        let mut packs: Vec<(usize, Vec<usize>)> = Vec::new();
        for index in order {
            let mut best: Option<usize> = None;
            for (at, (used, _)) in packs.iter().enumerate() {
                if used + lengths[index] <= capacity
                    && best.is_none_or(|best| packs[best].0 < *used)
                {
                    best = Some(at);
                }
            }
            match best {
                Some(at) => {
                    packs[at].0 += lengths[index];
                    packs[at].1.push(index);
                }
                None => packs.push((lengths[index], vec![index])),
            }
        }
        packs.into_iter().map(|(_, pack)| pack).collect()
    }

    /// Fewest packs of any distribution, by trying them all.
    fn optimum(lengths: &[usize], capacity: usize) -> usize {
        fn place(rest: &[usize], used: &mut Vec<usize>, capacity: usize, best: &mut usize) {
            let Some((&length, rest)) = rest.split_first() else {
                *best = used.len().min(*best);
                return;
            };
            for at in 0..used.len() {
                if used[at] + length <= capacity {
                    used[at] += length;
                    place(rest, used, capacity, best);
                    used[at] -= length;
                }
            }
            used.push(length);
            place(rest, used, capacity, best);
            used.pop();
        }
        let mut best = lengths.len();
        place(lengths, &mut Vec::new(), capacity, &mut best);
        best
    }

    /// xorshift: the same cases on every machine.
    fn random(state: &mut u64, below: usize) -> usize {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state % below as u64) as usize
    }

    #[test]
    fn by_hand() {
        // 7 | 6+4 -> the 3 goes to the 7 (both have 3 or 0 free), the 2 needs a pack of its own
        assert_eq!(
            best_fit(&[4, 7, 3, 6, 2], 10).unwrap(),
            vec![vec![1, 2], vec![3, 0], vec![4]]
        );
        assert_eq!(best_fit(&[], 10).unwrap(), Vec::<Vec<usize>>::new());
        assert_eq!(
            best_fit(&[5, 5, 5, 5], 10).unwrap(),
            vec![vec![0, 1], vec![2, 3]]
        );
        assert_eq!(utilisation(&[vec![0, 1], vec![2]], &[4, 6, 5], 10), 0.75);
    }

    #[test]
    fn equals_the_definition_and_keeps_its_promises() {
        let mut state = 0x5eed;
        for case in 0..300 {
            let capacity = 1 + random(&mut state, 200);
            let longest = 1 + random(&mut state, capacity);
            let lengths: Vec<usize> = (0..random(&mut state, 120))
                .map(|_| 1 + random(&mut state, longest))
                .collect();
            let packs = best_fit(&lengths, capacity).unwrap();
            assert_eq!(packs, brute_force(&lengths, capacity), "case {case}");
            let mut seen: Vec<usize> = packs.iter().flatten().copied().collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            let used: Vec<usize> = packs
                .iter()
                .map(|p| p.iter().map(|&i| lengths[i]).sum())
                .collect();
            assert!(used.iter().all(|&used| 0 < used && used <= capacity));
            // at most one pack is half empty or less: two such would have been one
            assert!(used.iter().filter(|&&used| 2 * used <= capacity).count() <= 1);
        }
    }

    #[test]
    fn near_the_optimum() {
        let mut state = 77;
        for _ in 0..200 {
            let lengths: Vec<usize> = (0..1 + random(&mut state, 8))
                .map(|_| 1 + random(&mut state, 20))
                .collect();
            let best = optimum(&lengths, 20);
            let packs = best_fit(&lengths, 20).unwrap().len();
            assert!(
                packs >= best && 9 * packs <= 11 * best + 9,
                "{lengths:?}: {packs} against {best}"
            );
        }
    }

    #[test]
    fn refuses_what_cannot_fit() {
        for lengths in [[3, 11], [3, 0]] {
            let error = best_fit(&lengths, 10).unwrap_err();
            assert!(error.to_string().contains("sequence 1 of"), "{error}");
        }
    }

    #[test]
    fn a_hundred_thousand_at_once() {
        let mut state = 3;
        let lengths: Vec<usize> = (0..100_000)
            .map(|_| 1 + random(&mut state, 16_384))
            .collect();
        let packs = best_fit(&lengths, 32_768).unwrap();
        assert!(utilisation(&packs, &lengths, 32_768) > 0.99);
    }
}
