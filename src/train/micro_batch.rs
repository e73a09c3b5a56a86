//! The rows of a step cut into micro-batches: rows end to end, as the model takes them.

use super::Examples;
use crate::model::Batch;
use crate::tokenize::pack;
use crate::{Error, Result};
use std::ops::Range;

/// Rows that go through the model together. Sequences never see each other, so how rows are grouped changes memory and
/// speed, not the loss.
pub struct MicroBatch {
    pub batch: Batch,
    /// The rows, in the order of their tokens.
    pub rows: Vec<usize>,
}

/// Groups the rows of one step: best-fit packs of at most `pack_length` tokens, or one row each.
pub fn group(
    rows: &[usize],
    examples: &dyn Examples,
    packing: bool,
    pack_length: usize,
) -> Result<Vec<Vec<usize>>> {
    if !packing {
        return Ok(rows.iter().map(|&row| vec![row]).collect());
    }
    let lengths: Vec<usize> = rows.iter().map(|&row| examples.length(row)).collect();
    let packs = pack::best_fit(&lengths, pack_length)?;
    Ok(packs
        .into_iter()
        .map(|pack| pack.into_iter().map(|i| rows[i]).collect())
        .collect())
}

/// Trained tokens of a row that the model predicts: all but one at the very start, which nothing precedes.
pub fn num_trained(examples: &dyn Examples, row: usize) -> usize {
    let trained = examples.trained(row);
    trained.iter().skip(1).filter(|&&t| t != 0).count()
}

/// Refuses a row whose mask does not fit, or with a token that the model does not have.
pub fn check_row(examples: &dyn Examples, row: usize, vocab_size: usize) -> Result<()> {
    let (tokens, trained) = (examples.tokens(row), examples.trained(row));
    if tokens.is_empty() || tokens.len() != trained.len() {
        return Err(Error::input(format!(
            "{}: {} tokens with a mask of {}",
            examples.name(row),
            tokens.len(),
            trained.len()
        )));
    }
    match tokens.iter().find(|&&t| t as usize >= vocab_size) {
        None => Ok(()),
        Some(token) => Err(Error::input(format!(
            "{}: token {token} is outside the model's vocabulary of {vocab_size}",
            examples.name(row)
        ))
        .with_hint("the rows were tokenised for another model")),
    }
}

impl MicroBatch {
    /// Rows end to end. The target of a token is the next token of its sequence; its weight is 1 where that one is
    /// trained. The division by the global count comes once, with the update.
    pub fn new(rows: Vec<usize>, examples: &dyn Examples, vocab_size: usize) -> Result<Self> {
        let total = rows.iter().map(|&row| examples.length(row)).sum();
        let mut batch = Batch {
            tokens: Vec::with_capacity(total),
            seq_lens: Vec::with_capacity(rows.len()),
            targets: Vec::with_capacity(total),
            weights: Vec::with_capacity(total),
        };
        for &row in &rows {
            check_row(examples, row, vocab_size)?;
            let (tokens, trained) = (examples.tokens(row), examples.trained(row));
            batch.tokens.extend_from_slice(tokens);
            batch.seq_lens.push(tokens.len());
            batch.targets.extend_from_slice(&tokens[1..]);
            batch.targets.push(0); // nothing follows; weight 0
            let weight = |&t: &u8| if t == 0 { 0.0 } else { 1.0 };
            batch.weights.extend(trained[1..].iter().map(weight));
            batch.weights.push(0.0);
        }
        Ok(Self { batch, rows })
    }

    /// Each row with the places of its tokens.
    pub fn spans(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let mut start = 0;
        self.rows
            .iter()
            .zip(&self.batch.seq_lens)
            .map(move |(&row, len)| {
                let span = start..start + len;
                start = span.end;
                (row, span)
            })
    }
}
