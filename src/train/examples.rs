//! What the trainer reads: rows of tokens with a mask and a name.

/// Rows to train on. [`crate::data::Store`] is one; a test can be another.
pub trait Examples: Sync {
    /// Number of rows.
    fn len(&self) -> usize;

    /// Tokens of row `i`.
    fn tokens(&self, i: usize) -> &[u32];

    /// For each token of row `i`, 1 where the model learns to predict it, else 0. The first token is never predicted.
    fn trained(&self, i: usize) -> &[u8];

    /// Where row `i` came from, for messages: `"file.parquet row 17 trace 2"`.
    fn name(&self, i: usize) -> String;

    /// Whether there is nothing to train on.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of tokens of row `i`.
    fn length(&self, i: usize) -> usize {
        self.tokens(i).len()
    }
}

impl Examples for crate::data::Store {
    fn len(&self) -> usize {
        self.len()
    }

    fn tokens(&self, i: usize) -> &[u32] {
        self.tokens(i)
    }

    fn trained(&self, i: usize) -> &[u8] {
        self.trained(i)
    }

    fn name(&self, i: usize) -> String {
        self.name(i)
    }
}
