//! Problems that need no file: families made from a seed, with R1-style traces, held-out problems, a tokenizer and a chat
//! template. What they are about is in `chain`.
//!
//! - `arithmetic`: a number and three or four operations on it, one after the other. A student that answers at once would
//!   have to do all of them in one step; one that writes each result down in `<think>` has only small steps to learn. How
//!   it reads is in `builtin_text`.
//! - `bilingual`, with what a base model has read and open-ended prompts beside it: `super::bilingual`.

use super::bilingual::{self, Subset};
use super::builtin_text as text;
use super::chain::{Bounds, Chains, Span};
use super::problems::Problem;
use super::trace::{Trace, Verdict};
use crate::recipe::load::closest;
use crate::tokenize::TextTokenizer;
use crate::{Error, Result};

/// Changes whenever a seed gives other traces.
pub const VERSION: u32 = 2;
/// Traces of a source that does not say how many.
pub const DEFAULT_NUM_PROBLEMS: usize = 8_000;
/// Pairs of a source.
const NUM_PAIRS: usize = 1_000;
/// Problems of a suite that does not say how many.
pub const DEFAULT_NUM_HELD_OUT: usize = 200;

const FAMILIES: [&str; 4] = [
    "arithmetic",
    "bilingual",
    "bilingual-web",
    "bilingual-wishes",
];
/// A suite asks the same problems whatever the recipe's seed.
pub(super) const HELD_OUT_SEED: u64 = 0x6865_6c64;
/// Few enough facts to be learnt.
const ARITHMETIC: Bounds = Bounds {
    num_steps: Span(3, 4),
    start: Span(2, 20),
    term: Span(2, 9),
    factor: Span(2, 3),
    below: 50,
};

/// `num` traces of a family, the same for the same seed.
///
/// # Errors
/// No such family, or more traces than it has problems.
pub fn traces(
    family: &str,
    seed: u64,
    num: usize,
) -> Result<Box<dyn Iterator<Item = Trace> + Send>> {
    check(family, num)?;
    if let Some(subset) = Subset::parse(family) {
        return Ok(Box::new(bilingual::traces(subset, seed, num)));
    }
    let mut chains = Chains::new(seed, false, ARITHMETIC);
    let family = family.to_string();
    Ok(Box::new((1..=num).map(move |number| {
        let chain = chains.next_chain();
        let problem = text::problem(&chain, &mut chains.random);
        let (reasoning, answer) = text::solution(&chain);
        Trace {
            reasoning: Some(reasoning),
            answer: Some(answer),
            gold: Some(chain.result().to_string()),
            domain: Some("math".into()),
            ..made(&family, number, problem)
        }
    })))
}

/// What all traces that are right by construction have in common.
pub(super) fn made(family: &str, number: usize, problem: String) -> Trace {
    Trace {
        name: format!("builtin:{family} {number}"),
        problem,
        source: Some(format!("builtin:{family}")),
        verdicts: vec![Verdict {
            by: "construction".into(),
            correct: Some(true),
        }],
        complete: Some(true),
        finish_reason: Some("stop".into()),
        ..Trace::default()
    }
}

/// `num` held-out problems of a family, always the same.
///
/// # Errors
/// No such family, or more than it has.
pub fn problems(family: &str, num: usize) -> Result<Box<dyn Iterator<Item = Problem>>> {
    check(family, num)?;
    if let Some(subset) = Subset::parse(family) {
        let most = bilingual::num_held_out_wishes();
        if subset == Subset::Wishes && num > most {
            return Err(Error::input(format!(
                "`builtin:{family}` has no {num} held-out problems; at most {most}"
            )));
        }
        return Ok(bilingual::problems(subset, num));
    }
    let mut chains = Chains::new(HELD_OUT_SEED, true, ARITHMETIC);
    let family = family.to_string();
    Ok(Box::new((1..=num).map(move |number| {
        let chain = chains.next_chain();
        Problem {
            id: format!("{family}-{number}"),
            problem: text::problem(&chain, &mut chains.random),
            gold: chain.result().to_string(),
            extra: serde_json::Map::new(),
        }
    })))
}

/// Pairs of a good and a worse answer, as rows of preferences.
///
/// # Errors
/// No such family, or one whose answers are right or wrong.
pub fn pairs(family: &str, seed: u64) -> Result<Vec<serde_json::Value>> {
    check(family, 1)?;
    if Subset::parse(family) != Some(Subset::Wishes) {
        return Err(Error::input(format!("`builtin:{family}` has no pairs"))
            .with_hint("`builtin:bilingual-wishes` has"));
    }
    let pairs = bilingual::pairs(seed, NUM_PAIRS);
    Ok(pairs
        .map(|[prompt, chosen, rejected]| {
            serde_json::json!({
                "messages": [{ "role": "user", "content": prompt }],
                "chosen": chosen,
                "rejected": rejected,
            })
        })
        .collect())
}

/// The tokenizer of a family, with its chat template.
///
/// # Errors
/// No such family.
pub fn tokenizer(family: &str) -> Result<TextTokenizer> {
    check(family, 1)?;
    match Subset::parse(family) {
        Some(_) => bilingual::tokenizer(),
        None => text::tokenizer(),
    }
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
    let most = match Subset::parse(family) {
        Some(_) => bilingual::MOST,
        None => 100_000,
    };
    if num > most {
        return Err(Error::input(format!(
            "`builtin:{family}` has no {num} problems; at most {most}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::chain::{Chain, Op};
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_problem_is_both_shown_and_held_out() {
        let chains = |seed, held_out, num: usize| -> HashSet<Chain> {
            let mut chains = Chains::new(seed, held_out, ARITHMETIC);
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
