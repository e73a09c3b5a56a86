//! Problems that need no file: families made from a seed, with R1-style traces, held-out problems, a tokenizer and a chat
//! template. How they read is in `builtin_text`.
//!
//! The one family is `arithmetic`: a number and three or four operations on it, one after the other. A student that
//! answers at once would have to do all of them in one step; one that writes each result down in `<think>` has only small
//! steps to learn.
//!
//! A problem is held out by the hash of its number and operations, whatever the seed and the wording: no trace ever shows
//! a held-out problem.

use super::builtin_text as text;
use super::problems::Problem;
use super::trace::{Trace, Verdict};
use crate::recipe::load::closest;
use crate::tokenize::TextTokenizer;
use crate::{Error, Result};
use std::collections::HashSet;

/// Changes whenever a seed gives other traces.
pub const VERSION: u32 = 1;
/// Traces of a source that does not say how many.
pub const DEFAULT_NUM_PROBLEMS: usize = 8_000;
/// Problems of a suite that does not say how many.
pub const DEFAULT_NUM_HELD_OUT: usize = 200;

const FAMILIES: [&str; 1] = ["arithmetic"];
/// One problem in so many is held out.
const HELD_OUT_SHARE: u64 = 10;
/// A suite asks the same problems whatever the recipe's seed.
const HELD_OUT_SEED: u64 = 0x6865_6c64;

/// A number and what is done to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Chain {
    pub start: i64,
    pub steps: Vec<Step>,
}

/// One operation with its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Step {
    pub op: Op,
    pub operand: i64,
    pub before: i64,
    pub after: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Op {
    Add,
    Subtract,
    Multiply,
}

impl Chain {
    /// The answer.
    pub fn result(&self) -> i64 {
        self.steps.last().map_or(self.start, |step| step.after)
    }

    /// Three or four operations, none twice, results from 0 to 49: few enough facts to be learnt.
    fn draw(random: &mut Random) -> Self {
        let num_steps = random.between(3, 4) as usize;
        loop {
            let start = random.between(2, 20);
            let mut steps: Vec<Step> = Vec::with_capacity(num_steps);
            let mut value = start;
            while steps.len() < num_steps {
                let op = match random.between(0, 3) {
                    0 | 1 => Op::Add,
                    2 => Op::Subtract,
                    _ => Op::Multiply,
                };
                let operand = random.between(2, if op == Op::Multiply { 3 } else { 9 });
                let after = op.apply(value, operand);
                let again = steps.iter().any(|s| (s.op, s.operand) == (op, operand));
                if again || !(0..50).contains(&after) {
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
            hash = mix(hash ^ code.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        }
        mix(hash).is_multiple_of(HELD_OUT_SHARE)
    }
}

impl Op {
    fn apply(self, a: i64, b: i64) -> i64 {
        match self {
            Self::Add => a + b,
            Self::Subtract => a - b,
            Self::Multiply => a * b,
        }
    }
}

/// Problems of a seed, each once, held out or not.
struct Chains {
    random: Random,
    held_out: bool,
    seen: HashSet<Chain>,
}

impl Chains {
    fn new(seed: u64, held_out: bool) -> Self {
        Self {
            random: Random(mix(seed)),
            held_out,
            seen: HashSet::new(),
        }
    }

    fn next_chain(&mut self) -> Chain {
        loop {
            let chain = Chain::draw(&mut self.random);
            if chain.held_out() == self.held_out && self.seen.insert(chain.clone()) {
                return chain;
            }
        }
    }
}

/// `num` traces of a family, the same for the same seed.
///
/// # Errors
/// No such family, or more traces than it has problems.
pub fn traces(
    family: &str,
    seed: u64,
    num: usize,
) -> Result<impl Iterator<Item = Trace> + Send + use<>> {
    check(family, num)?;
    let mut chains = Chains::new(seed, false);
    let family = family.to_string();
    Ok((1..=num).map(move |number| {
        let chain = chains.next_chain();
        let problem = text::problem(&chain, &mut chains.random);
        let (reasoning, answer) = text::solution(&chain);
        Trace {
            name: format!("builtin:{family} {number}"),
            problem,
            reasoning: Some(reasoning),
            answer: Some(answer),
            gold: Some(chain.result().to_string()),
            source: Some(format!("builtin:{family}")),
            domain: Some("math".into()),
            verdicts: vec![Verdict {
                by: "construction".into(),
                correct: Some(true),
            }],
            complete: Some(true),
            finish_reason: Some("stop".into()),
            ..Trace::default()
        }
    }))
}

/// `num` held-out problems of a family, always the same.
///
/// # Errors
/// No such family, or more than it has.
pub fn problems(family: &str, num: usize) -> Result<impl Iterator<Item = Problem> + use<>> {
    check(family, num)?;
    let mut chains = Chains::new(HELD_OUT_SEED, true);
    let family = family.to_string();
    Ok((1..=num).map(move |number| {
        let chain = chains.next_chain();
        Problem {
            id: format!("{family}-{number}"),
            problem: text::problem(&chain, &mut chains.random),
            gold: chain.result().to_string(),
            extra: serde_json::Map::new(),
        }
    }))
}

/// The tokenizer of a family, with its chat template.
///
/// # Errors
/// No such family.
pub fn tokenizer(family: &str) -> Result<TextTokenizer> {
    check(family, 1)?;
    text::tokenizer()
}

fn check(family: &str, num: usize) -> Result<()> {
    if !FAMILIES.contains(&family) {
        let error = Error::input(format!("there is no built-in family `{family}`"));
        return Err(
            error.with_hint(match closest(family, FAMILIES.into_iter()) {
                Some(near) => format!("did you mean `builtin:{near}`?"),
                None => format!("built-in: builtin:{}", FAMILIES.join(", builtin:")),
            }),
        );
    }
    // far below the number of chains, so that drawing new ones stays quick
    const MOST: usize = 100_000;
    if num > MOST {
        return Err(Error::input(format!(
            "`builtin:{family}` has no {num} problems; at most {MOST}"
        )));
    }
    Ok(())
}

/// SplitMix64: the same numbers everywhere.
pub(super) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// From `low` to `high`, both possible.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1) as u64) as i64
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_problem_is_both_shown_and_held_out() {
        let chains = |seed, held_out, num: usize| -> HashSet<Chain> {
            let mut chains = Chains::new(seed, held_out);
            (0..num).map(|_| chains.next_chain()).collect()
        };
        let held = chains(HELD_OUT_SEED, true, 2_000);
        assert_eq!(held.len(), 2_000);
        for seed in [0, 42] {
            let shown = chains(seed, false, 20_000);
            assert_eq!(shown.len(), 20_000);
            assert!(shown.is_disjoint(&held));
        }
        let shown: HashSet<String> = traces("arithmetic", 42, 8_000)
            .unwrap()
            .map(|t| t.problem)
            .collect();
        assert!(
            problems("arithmetic", 200)
                .unwrap()
                .all(|p| !shown.contains(&p.problem))
        );
    }

    #[test]
    fn every_step_of_every_trace_is_right() {
        let number = |s: &str| s.parse::<i64>().unwrap();
        for trace in traces("arithmetic", 7, 500).unwrap() {
            let reasoning = trace.reasoning.unwrap();
            let mut last = None;
            for line in reasoning.lines().filter(|l| l.contains('=')) {
                let equation = line.split(' ').find(|word| word.contains('=')).unwrap();
                let (left, right) = equation.split_once('=').unwrap();
                let right = number(right.trim_end_matches('.'));
                let at = left.find(['+', '-', '*']).unwrap();
                let (a, b) = (number(&left[..at]), number(&left[at + 1..]));
                let op = match &left[at..=at] {
                    "+" => Op::Add,
                    "-" => Op::Subtract,
                    _ => Op::Multiply,
                };
                assert_eq!(op.apply(a, b), right, "{line}");
                if !line.contains("check") {
                    assert!(last.is_none_or(|last| last == a), "{reasoning}");
                    last = Some(right);
                }
            }
            let gold = trace.gold.unwrap();
            assert_eq!(last.unwrap().to_string(), gold);
            let answer = trace.answer.unwrap();
            assert_eq!(crate::verify::extract_boxed(&answer), Some(gold.as_str()));
        }
    }

    #[test]
    fn a_seed_gives_the_same_traces() {
        let first = |seed| traces("arithmetic", seed, 1).unwrap().next().unwrap();
        assert_eq!(first(1), first(1));
        assert_ne!(first(1).problem, first(2).problem);
        let error = traces("arithmetics", 0, 1).err().unwrap();
        assert_eq!(
            error.to_string(),
            "there is no built-in family `arithmetics`"
        );
        assert_eq!(error.hint().unwrap(), "did you mean `builtin:arithmetic`?");
    }
}
