//! A text cut into prose and the rest: code blocks, inline code, formulas and addresses. What is called code or formula
//! but reads like sentences is prose: nothing can be hidden between fences and dollars.

/// A piece of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Segment<'a> {
    Prose(&'a str),
    /// Code, a formula or an address.
    Other(&'a str),
}

/// Words in a row, without a symbol between them, that make a sentence of what is called a formula or code.
const SENTENCE_WORDS: usize = 5;

/// The pieces of `text`, in order; put together they are the text without its delimiters.
pub(super) fn segments(text: &str) -> Vec<Segment<'_>> {
    let mut out = Vec::new();
    let mut prose_start = 0;
    let mut at = 0;
    let mut scan = Scan {
        text,
        paragraph_end: 0,
        unclosed_until: [0; DELIMITERS.len()],
    };
    while at < text.len() {
        let Some(span) = scan.delimited(at) else {
            at += 1;
            continue;
        };
        if prose_start < at {
            out.push(Segment::Prose(&text[prose_start..at]));
        }
        push(&mut out, &text[span.inner.0..span.inner.1], span.is_block);
        at = span.end;
        prose_start = at;
    }
    if prose_start < text.len() {
        out.push(Segment::Prose(&text[prose_start..]));
    }
    out
}

/// Adds what stands between delimiters. A block of more sentences than code, comments included, is taken line by line.
fn push<'a>(out: &mut Vec<Segment<'a>>, inner: &'a str, is_block: bool) {
    if is_block {
        let lines = || inner.lines().skip(1).filter(|line| !line.trim().is_empty());
        let num_sentences = lines().filter(|line| is_sentence(line)).count();
        if num_sentences * 2 <= lines().count() {
            out.push(Segment::Other(inner));
            return;
        }
    }
    for piece in inner.split_inclusive(|c| is_block && c == '\n') {
        out.push(if is_sentence(piece) {
            Segment::Prose(piece)
        } else {
            Segment::Other(piece)
        });
    }
}

/// Something between delimiters.
struct Span {
    inner: (usize, usize),
    end: usize,
    is_block: bool,
}

/// What opens and what closes; the first is a block. A longer delimiter stands before the one it begins with.
const DELIMITERS: [(&str, &str); 6] = [
    ("```", "```"),
    ("`", "`"),
    ("$$", "$$"),
    ("$", "$"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
];

/// What is known of a text while it is read, so that the whole costs one pass.
struct Scan<'a> {
    text: &'a str,
    /// Where the paragraph ends that was looked at last.
    paragraph_end: usize,
    /// For each delimiter: nothing closes it before this byte.
    unclosed_until: [usize; DELIMITERS.len()],
}

impl Scan<'_> {
    /// The code, formula or address that begins at byte `at`.
    fn delimited(&mut self, at: usize) -> Option<Span> {
        let rest = self.text.as_bytes().get(at..)?;
        if rest.starts_with(b"http") {
            return address(self.text, at);
        }
        if !matches!(rest.first(), Some(b'`' | b'$' | b'\\')) {
            return None;
        }
        let which = DELIMITERS
            .iter()
            .position(|(open, _)| rest.starts_with(open.as_bytes()))?;
        let (open, close) = DELIMITERS[which];
        let is_block = which == 0;
        let start = at + open.len();
        // inline code and formulas end in their paragraph, or are none
        let reach = if is_block {
            self.text.len()
        } else {
            self.paragraph_end(start)
        };
        if !is_block && reach <= self.unclosed_until[which] {
            return None;
        }
        let length = match self.text[start..reach].find(close) {
            Some(length) => length,
            // a block that nothing closes goes on to the end
            None if is_block => reach - start,
            None => {
                self.unclosed_until[which] = reach;
                return None;
            }
        };
        Some(Span {
            inner: (start, start + length),
            end: (start + length + close.len()).min(self.text.len()),
            is_block,
        })
    }

    fn paragraph_end(&mut self, from: usize) -> usize {
        if from > self.paragraph_end {
            let rest = &self.text[from..];
            self.paragraph_end = from + rest.find("\n\n").unwrap_or(rest.len());
        }
        self.paragraph_end
    }
}

/// `http://...` or `https://...` up to white space.
fn address(text: &str, at: usize) -> Option<Span> {
    let rest = &text[at..];
    if !rest.starts_with("http://") && !rest.starts_with("https://") {
        return None;
    }
    let length = rest
        .find(|c: char| c.is_whitespace() || !c.is_ascii() || matches!(c, ')' | '>' | '"' | '`'))
        .unwrap_or(rest.len());
    Some(Span {
        inner: (at, at + length),
        end: at + length,
        is_block: false,
    })
}

/// Whether there are [`SENTENCE_WORDS`] words in a row: two letters or more, with nothing but spaces and commas between.
fn is_sentence(text: &str) -> bool {
    let mut num_words = 0;
    let mut num_letters = 0;
    let mut is_command = false;
    for c in text.chars().chain(std::iter::once('\0')) {
        if c.is_alphabetic() || c == '\'' || c == '’' {
            num_letters += 1;
            continue;
        }
        if num_letters >= 2 && !is_command {
            num_words += 1;
        }
        if num_words >= SENTENCE_WORDS {
            return true;
        }
        is_command = c == '\\';
        // a single letter is a name, but `a` and `I` are words too: it neither counts nor breaks the row
        num_letters = 0;
        let in_row = matches!(
            c,
            ' ' | ',' | '.' | ':' | ';' | '~' | '!' | '?' | '-' | '\n' | '\t'
        );
        if !in_row {
            num_words = 0;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use Segment::{Other, Prose};

    #[test]
    fn code_and_formulas_are_no_prose() {
        let cases: [(&str, &[Segment]); 9] = [
            ("so $x+1$ is", &[Prose("so "), Other("x+1"), Prose(" is")]),
            (r"\(a\) b", &[Other("a"), Prose(" b")]),
            ("it costs $5", &[Prose("it costs $5")]),
            ("$5\n\nand $6", &[Prose("$5\n\nand $6")]),
            (
                "a\n```python\nx = 1\n```\nb",
                &[Prose("a\n"), Other("python\nx = 1\n"), Prose("\nb")],
            ),
            (
                "see https://a.b/c d",
                &[Prose("see "), Other("https://a.b/c"), Prose(" d")],
            ),
            ("`x`", &[Other("x")]),
            ("```\nx", &[Other("\nx")]),
            ("", &[]),
        ];
        for (text, expected) in cases {
            assert_eq!(segments(text), expected, "{text:?}");
        }
    }

    #[test]
    fn sentences_between_delimiters_are_prose() {
        for text in [
            "$\\text{primero tenemos que sumar todos los lados}$",
            "```\nprimero tenemos que sumar todos los lados\n```",
            "`primero tenemos que sumar todos los lados`",
        ] {
            let found = segments(text);
            assert!(found.iter().any(|s| matches!(s, Prose(_))), "{found:?}");
        }
        for text in [
            "$\\sin x + \\cos y = \\tan z$",
            "```\nfor i in range(n):\n    total += values[i]\n```",
            "`from os import path`",
        ] {
            let found = segments(text);
            assert!(found.iter().all(|s| matches!(s, Other(_))), "{found:?}");
        }
    }

    #[test]
    fn hostile_delimiters_take_linear_time() {
        for text in [
            "$".repeat(300_001),
            "`".repeat(300_001),
            "\\(".repeat(200_000),
            "http".repeat(100_000),
            "`a".repeat(200_000),
            "https://".repeat(50_000),
        ] {
            assert!(segments(&text).len() <= text.len());
        }
    }
}
