//! Lengths of sequences that lie end to end.

use std::ops::Range;

/// Lengths of packed sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeqLens {
    lens: Vec<usize>,
}

impl SeqLens {
    /// Sequences of these lengths; empty ones are left out.
    pub fn new(lens: &[usize]) -> Self {
        Self {
            lens: lens.iter().copied().filter(|&n| n > 0).collect(),
        }
    }

    /// Tokens of all sequences.
    pub fn total(&self) -> usize {
        self.lens.iter().sum()
    }

    /// The token range of each sequence.
    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.lens.iter().scan(0, |start, len| {
            let range = *start..*start + len;
            *start += len;
            Some(range)
        })
    }

    /// The position of each token within its sequence.
    pub fn positions(&self) -> Vec<u32> {
        self.lens.iter().flat_map(|&len| 0..len as u32).collect()
    }
}
