//! Where a text ends: stop texts that may run across token boundaries, found while the text grows.
//!
//! Tokens are not texts: a character may need several tokens. The text is therefore grown by decoding a short window of
//! the last tokens and taking what is new in it, and a window that ends in the middle of a character waits for the next
//! token. Stop tokens need no text and are handled where tokens are drawn.

use crate::Result;

/// Tokens to text; special tokens are left out.
pub trait Detokenize {
    fn detokenize(&self, tokens: &[u32]) -> Result<String>;
}

/// The growing text of one completion, watched for stop texts.
#[derive(Default)]
pub struct Watch {
    text: String,
    /// the window begins here; what it gives up to `read` is in `text` already
    window: usize,
    read: usize,
}

impl Watch {
    /// Takes notice that `tokens` has grown; whether its text now holds one of `stops`.
    pub fn grew(
        &mut self,
        tokens: &[u32],
        stops: &[String],
        decoder: &impl Detokenize,
    ) -> Result<bool> {
        let known = decoder.detokenize(&tokens[self.window..self.read])?;
        let window = decoder.detokenize(&tokens[self.window..])?;
        let Some(new) = window
            .get(known.len()..)
            .filter(|new| !new.is_empty() && !new.ends_with('\u{fffd}'))
        else {
            return Ok(false);
        };
        // a stop text ends in what is new, so it begins at most its own length before
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        let mut from = self.text.len().saturating_sub(longest);
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        self.text.push_str(new);
        (self.window, self.read) = (self.read, tokens.len());
        Ok(first_stop(&self.text[from..], stops).is_some())
    }
}

/// Where the first of the stop texts begins.
pub fn first_stop(text: &str, stops: &[String]) -> Option<usize> {
    stops
        .iter()
        .filter_map(|stop| text.find(stop.as_str()))
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each token is one byte.
    struct Bytes;

    impl Detokenize for Bytes {
        fn detokenize(&self, tokens: &[u32]) -> Result<String> {
            let bytes: Vec<u8> = tokens.iter().map(|&token| token as u8).collect();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
    }

    /// After how many tokens a stop text is seen.
    fn found_at(text: &str, stops: &[&str]) -> Option<usize> {
        let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut watch = Watch::default();
        (1..=tokens.len()).find(|&n| watch.grew(&tokens[..n], &stops, &Bytes).unwrap())
    }

    #[test]
    fn stop_texts_cross_token_boundaries() {
        assert_eq!(found_at("abc\n\nUser: x", &["\n\nUser:"]), Some(10));
        assert_eq!(found_at("aab", &["ab"]), Some(3));
        assert_eq!(found_at("abcabd", &["abd", "zz"]), Some(6));
        assert_eq!(found_at("abc", &["abcd"]), None);
    }

    #[test]
    fn characters_of_several_tokens_are_waited_for() {
        assert_eq!(found_at("数学。x", &["。"]), Some(9));
        assert_eq!(found_at("é😀é!", &["😀é"]), Some(8));
    }

    #[test]
    fn the_first_stop_text_wins() {
        let stops = ["c".to_string(), "b".to_string()];
        assert_eq!(first_stop("abcb", &stops), Some(1));
        assert_eq!(first_stop("xyz", &stops), None);
    }
}
