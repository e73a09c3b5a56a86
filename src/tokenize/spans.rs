//! Where the tokens of a text end in it, found from the tokens themselves: a text that is tokenised again may come out in
//! other tokens than those that were sampled.

use super::TextTokenizer;
use crate::Result;

/// How many bytes of its text are complete after each of `tokens`, ascending. A character of several tokens is complete
/// with the last of them.
///
/// # Errors
/// Tokens that cannot be decoded.
pub fn text_ends(
    tokenizer: &TextTokenizer,
    tokens: &[u32],
    skip_special: bool,
) -> Result<Vec<usize>> {
    let decode = |tokens: &[u32]| tokenizer.decode(tokens, skip_special);
    let mut ends = Vec::with_capacity(tokens.len());
    // what a window of the last tokens has more than it had without the newest is new: some tokenizers write a space
    // between words, and none in front of the first
    let (mut window, mut read, mut length) = (0, 0, 0);
    for n in 1..=tokens.len() {
        let known = decode(&tokens[window..read])?;
        let grown = decode(&tokens[window..n])?;
        let new = grown.get(known.len()..).unwrap_or_default();
        // a character that is not complete waits for its last token
        if !new.is_empty() && !new.ends_with('\u{fffd}') {
            length += new.len();
            (window, read) = (read, n);
        }
        ends.push(length);
    }
    Ok(ends)
}

/// The token with which each of `places` in the text is reached; the last one where none does. `ends` are [`text_ends`].
pub fn tokens_at(ends: &[usize], places: impl IntoIterator<Item = usize>) -> Vec<usize> {
    let last = ends.len().saturating_sub(1);
    let places = places.into_iter();
    places
        .map(|place| ends.partition_point(|&end| end < place).min(last))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenize::files::TokenizerFiles;
    use serde_json::json;

    /// One token a byte, with merges and a special token.
    fn bytes() -> TextTokenizer {
        let printable = |b: u8| match b {
            b'!'..=b'~' => char::from(b),
            b => char::from_u32(256 + u32::from(b)).unwrap_or('?'),
        };
        // ByteLevel writes the bytes that cannot be printed as characters from 256 on, in order
        let mut extra = 256;
        let mut vocab = serde_json::Map::new();
        for b in 0..=255u8 {
            let plain = matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let c = match plain {
                true if b.is_ascii() => printable(b),
                true => char::from_u32(u32::from(b)).unwrap_or('?'),
                false => {
                    extra += 1;
                    char::from_u32(extra - 1).unwrap_or('?')
                }
            };
            vocab.insert(c.to_string(), b.into());
        }
        vocab.insert("ab".into(), 256.into());
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [{"id": 257, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
            "pre_tokenizer": level, "decoder": level,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                      "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [["a", "b"]]}
        });
        TextTokenizer::new(json.to_string().into_bytes(), TokenizerFiles::default()).unwrap()
    }

    #[test]
    fn ends_of_bytes_characters_and_special_tokens() {
        let tokenizer = bytes();
        let of = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
        // sampled otherwise than it would be tokenised: a and b alone
        assert_eq!(tokenizer.encode("ab").unwrap(), [256]);
        let ends = |tokens: &[u32]| text_ends(&tokenizer, tokens, true).unwrap();
        assert_eq!(ends(&of("ab\nc")), [1, 2, 3, 4]);
        assert_eq!(ends(&[256, 10, 256]), [2, 3, 5]);
        // a character of three tokens
        assert_eq!(ends(&of("a数b")), [1, 1, 1, 4, 5]);
        assert_eq!(ends(&[256, 257]), [2, 2]);
        assert_eq!(text_ends(&tokenizer, &[256, 257], false).unwrap(), [2, 7]);
        assert_eq!(ends(&[]), [0usize; 0]);
    }

    #[test]
    fn places_to_tokens() {
        let ends = [1, 1, 1, 4, 5];
        assert_eq!(tokens_at(&ends, [1, 2, 4, 5, 9]), [0, 3, 3, 4, 4]);
        assert_eq!(tokens_at(&[], [1]), [0]);
    }
}
