//! How probable a model finds given text: the log-probability of each token after those before it.

use crate::model::{Batch, CausalLm};
use crate::{Error, Result};

/// Sequences are read together up to this many tokens; a longer one is read alone.
const MAX_TOKENS: usize = 4096;

/// Natural log-probabilities of every token of every sequence; the first of a sequence follows nothing and has none.
///
/// # Errors
/// A token outside the vocabulary, or a sequence (counted from 0) whose log-probabilities are not finite.
pub fn score(model: &CausalLm, sequences: &[&[u32]]) -> Result<Vec<Vec<Option<f32>>>> {
    let mut scores = Vec::with_capacity(sequences.len());
    while scores.len() < sequences.len() {
        let mut num_tokens = 0;
        let together = sequences[scores.len()..]
            .iter()
            .take_while(|tokens| {
                num_tokens += tokens.len();
                num_tokens <= MAX_TOKENS
            })
            .count()
            .max(1);
        let first = scores.len();
        for logprobs in score_batch(model, &sequences[first..first + together])? {
            if logprobs
                .iter()
                .flatten()
                .any(|logprob| !logprob.is_finite())
            {
                return Err(Error::NonFinite {
                    message: format!(
                        "sequence {}: its log-probabilities are not finite",
                        scores.len()
                    ),
                    hint: Some(
                        "the weights hold NaN or infinite values, or a 16-bit dtype overflows"
                            .into(),
                    ),
                });
            }
            scores.push(logprobs);
        }
    }
    Ok(scores)
}

/// exp of the mean negative log-probability; None where nothing has one.
pub fn perplexity(logprobs: &[Option<f32>]) -> Option<f64> {
    let known: Vec<f64> = logprobs
        .iter()
        .flatten()
        .map(|&logprob| f64::from(logprob))
        .collect();
    (!known.is_empty()).then(|| (-known.iter().sum::<f64>() / known.len() as f64).exp())
}

/// One forward pass over sequences that do not see each other.
fn score_batch(model: &CausalLm, sequences: &[&[u32]]) -> Result<Vec<Vec<Option<f32>>>> {
    let mut batch = Batch {
        tokens: Vec::new(),
        seq_lens: Vec::new(),
        targets: Vec::new(),
        weights: Vec::new(),
    };
    let vocab = model.config().vocab_size;
    for tokens in sequences.iter().filter(|tokens| !tokens.is_empty()) {
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab) {
            return Err(Error::input(format!(
                "token {token} is outside the model's vocabulary of {vocab}"
            ))
            .with_hint("the tokenizer belongs to another model"));
        }
        batch.tokens.extend_from_slice(tokens);
        batch.seq_lens.push(tokens.len());
        // each position is asked for the token after it; the last has none
        batch.targets.extend_from_slice(&tokens[1..]);
        batch.targets.push(0);
        batch
            .weights
            .extend(std::iter::repeat_n(1.0, tokens.len() - 1));
        batch.weights.push(0.0);
    }
    let asked = batch.weights.iter().any(|&weight| weight != 0.0);
    let flat = if asked {
        model.logprobs(&batch)?
    } else {
        vec![0.0; batch.tokens.len()]
    };
    let mut at = 0;
    let of_sequence = |tokens: &&[u32]| {
        let found = &flat[at..at + tokens.len()];
        at += tokens.len();
        let after_first = found
            .iter()
            .take(tokens.len().saturating_sub(1))
            .map(|&logprob| Some(logprob));
        tokens
            .iter()
            .take(1)
            .map(|_| None)
            .chain(after_first)
            .collect()
    };
    Ok(sequences.iter().map(of_sequence).collect())
}

#[cfg(test)]
mod tests {
    use super::perplexity;

    #[test]
    fn perplexity_by_hand() {
        assert_eq!(perplexity(&[None]), None);
        let half = Some(0.5f32.ln());
        assert!((perplexity(&[None, half, half]).unwrap() - 2.0).abs() < 1e-6);
        assert!((perplexity(&[None, half, Some(0.125f32.ln())]).unwrap() - 4.0).abs() < 1e-6);
    }
}
