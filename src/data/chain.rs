//! Chains of operations on a number: what the problems of the built-in families are about. How they read belongs to the
//! families.
//!
//! A chain is held out by the hash of its number and operations, whatever the seed and the wording: no trace ever shows a
//! held-out problem.

use crate::random::{GOLDEN, SplitMix64, mix};
use std::collections::HashSet;

/// One problem in so many is held out.
const HELD_OUT_SHARE: u64 = 10;

/// Which chains a family has.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub num_steps: Span,
    pub start: Span,
    /// What is added or subtracted.
    pub term: Span,
    pub factor: Span,
    /// Every result is from 0 to one less than this.
    pub below: i64,
}

/// From the first to the second, both possible.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub i64, pub i64);

impl Span {
    fn draw(self, random: &mut Random) -> i64 {
        random.between(self.0, self.1)
    }
}

/// A number and what is done to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chain {
    pub start: i64,
    pub steps: Vec<Step>,
}

/// One operation with its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    pub op: Op,
    pub operand: i64,
    pub before: i64,
    pub after: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Add,
    Subtract,
    Multiply,
}

impl Chain {
    /// The answer.
    pub fn result(&self) -> i64 {
        self.steps.last().map_or(self.start, |step| step.after)
    }

    /// No operation twice, no result outside the bounds.
    fn draw(random: &mut Random, bounds: &Bounds) -> Self {
        let num_steps = bounds.num_steps.draw(random) as usize;
        loop {
            let start = bounds.start.draw(random);
            let mut steps: Vec<Step> = Vec::with_capacity(num_steps);
            let mut value = start;
            while steps.len() < num_steps {
                let op = match random.between(0, 3) {
                    0 | 1 => Op::Add,
                    2 => Op::Subtract,
                    _ => Op::Multiply,
                };
                let operand = match op {
                    Op::Multiply => bounds.factor.draw(random),
                    Op::Add | Op::Subtract => bounds.term.draw(random),
                };
                let after = op.apply(value, operand);
                let again = steps.iter().any(|s| (s.op, s.operand) == (op, operand));
                if again || !(0..bounds.below).contains(&after) {
                    break;
                }
                steps.push(Step {
                    op,
                    operand,
                    before: value,
                    after,
                });
                value = after;
            }
            if steps.len() == num_steps {
                return Self { start, steps };
            }
        }
    }

    fn held_out(&self) -> bool {
        let mut hash = self.start as u64;
        for step in &self.steps {
            let code = (step.op as u64) << 8 | step.operand as u64;
            hash = mix(hash ^ code.wrapping_mul(GOLDEN));
        }
        mix(hash).is_multiple_of(HELD_OUT_SHARE)
    }
}

impl Op {
    /// Its result.
    pub fn apply(self, a: i64, b: i64) -> i64 {
        match self {
            Self::Add => a + b,
            Self::Subtract => a - b,
            Self::Multiply => a * b,
        }
    }
}

/// Problems of a seed, each once, held out or not.
pub struct Chains {
    pub random: Random,
    bounds: Bounds,
    held_out: bool,
    seen: HashSet<Chain>,
}

impl Chains {
    /// Those of `seed` within `bounds`.
    pub fn new(seed: u64, held_out: bool, bounds: Bounds) -> Self {
        Self {
            random: Random::new(seed),
            bounds,
            held_out,
            seen: HashSet::new(),
        }
    }

    /// Another one. Does not end where there is none left.
    pub fn next_chain(&mut self) -> Chain {
        loop {
            let chain = Chain::draw(&mut self.random, &self.bounds);
            if chain.held_out() == self.held_out && self.seen.insert(chain.clone()) {
                return chain;
            }
        }
    }
}

/// Draws that are the same everywhere.
pub struct Random(SplitMix64);

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64(mix(seed)))
    }

    /// From `low` to `high`, both possible.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + (self.0.draw() % (high - low + 1) as u64) as i64
    }

    /// One of `all`, which is not empty.
    pub fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.between(0, all.len() as i64 - 1) as usize]
    }

    /// True in `percent` of 100 draws.
    pub fn percent(&mut self, percent: i64) -> bool {
        self.between(1, 100) <= percent
    }
}
