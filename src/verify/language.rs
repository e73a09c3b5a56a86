//! Language consistency: the share of a reasoning's words that are in the language asked for.
//!
//! R1's reward is `words in the target language / words` over the chain of thought (arXiv 2501.12948, section 2.3.2). The
//! paper does not say what a word is. Here:
//! - Han characters and kana count one each, as word processors count them; Hangul and alphabets by the word;
//! - code, formulas, addresses, numbers, single letters and words with digits or underscores are no words of any language
//!   (what passes for code or formula is decided in `prose.rs`, so that no prose hides there);
//! - scripts of one language settle the language of a word by themselves; Han is Japanese where kana stand near;
//! - the language of a Latin word is that of the words around it, as `whichlang` sees them: twice, in a window of
//!   five words and in one of nine. A single word has no language that any library could tell (`situation`,
//!   `normal`), five words nearly always have. A word is foreign when both windows are foreign.

use whichlang::Lang;

use super::prose::{Segment, segments};
use super::{Outcome, Verdict, format};
use crate::{Error, Result};

/// Latin words that are looked at together.
const NARROW: usize = 5;
const WIDE: usize = 9;
/// With fewer Latin words than this nothing is said against them.
const MIN_WINDOW: usize = 3;
/// Share of words from which on a text counts as being in a language.
pub const CONSISTENT_SHARE: f64 = 0.95;

/// A language that can be told from others: those of `whichlang`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Language(Lang);

/// ISO 639-1 codes and English names.
const LANGUAGES: [(&str, &str, Lang); 16] = [
    ("ar", "arabic", Lang::Ara),
    ("de", "german", Lang::Deu),
    ("en", "english", Lang::Eng),
    ("es", "spanish", Lang::Spa),
    ("fr", "french", Lang::Fra),
    ("hi", "hindi", Lang::Hin),
    ("it", "italian", Lang::Ita),
    ("ja", "japanese", Lang::Jpn),
    ("ko", "korean", Lang::Kor),
    ("nl", "dutch", Lang::Nld),
    ("pt", "portuguese", Lang::Por),
    ("ru", "russian", Lang::Rus),
    ("sv", "swedish", Lang::Swe),
    ("tr", "turkish", Lang::Tur),
    ("vi", "vietnamese", Lang::Vie),
    ("zh", "chinese", Lang::Cmn),
];

impl Language {
    /// The language of an ISO 639-1 code (`en`), its ISO 639-3 code (`eng`) or its English name.
    ///
    /// # Errors
    /// None of the languages that can be told apart.
    pub fn parse(name: &str) -> Result<Self> {
        let wanted = name.trim().to_lowercase();
        let base = wanted.split(['-', '_']).next().unwrap_or_default();
        let found = LANGUAGES.into_iter().find(|(code, english, lang)| {
            base == *code || wanted == *english || base == lang.three_letter_code()
        });
        found.map(|(.., lang)| Self(lang)).ok_or_else(|| {
            let codes: Vec<_> = LANGUAGES.iter().map(|(code, ..)| *code).collect();
            Error::input(format!("unknown language `{name}`"))
                .with_hint(format!("the languages are {}", codes.join(", ")))
        })
    }

    /// Its ISO 639-1 code.
    pub fn code(self) -> &'static str {
        let entry = LANGUAGES.into_iter().find(|(.., lang)| *lang == self.0);
        entry.map_or("en", |(code, ..)| code)
    }

    /// The language that most words of `text` are in; None where there are no words.
    pub fn of(text: &str) -> Option<Self> {
        main_language(text).map(|(language, _)| language)
    }
}

/// The language that most words of `text` are in, and how many are; None where there are no words.
pub fn main_language(text: &str) -> Option<(Language, Consistency)> {
    let tally = tally(text, None);
    // of two languages with as many words the one listed first
    let (num_target, lang) = LANGUAGES
        .iter()
        .rev()
        .map(|(.., lang)| (tally.of(*lang), *lang))
        .max_by_key(|(n, _)| *n)
        .filter(|(n, _)| *n > 0)?;
    let language = Language(lang);
    // Latin words were presumed to be English
    let found = match is_latin(lang) && lang != Lang::Eng {
        true => consistency(text, language),
        false => Consistency {
            num_words: tally.num_words,
            num_target,
        },
    };
    Some((language, found))
}

/// Words of a text, and those of the target language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consistency {
    pub num_words: usize,
    pub num_target: usize,
}

impl Consistency {
    /// The share of words in the target language. A text without words says nothing in any language: 0, so that nothing is
    /// earned by not reasoning.
    pub fn share(self) -> f64 {
        if self.num_words == 0 {
            return 0.0;
        }
        self.num_target as f64 / self.num_words as f64
    }
}

/// How many words of `text` there are, and how many are in `target`.
pub fn consistency(text: &str, target: Language) -> Consistency {
    let tally = tally(text, Some(target.0));
    Consistency {
        num_words: tally.num_words,
        num_target: tally.of(target.0),
    }
}

/// The verdict on the reasoning of `prediction`: correct where [`CONSISTENT_SHARE`] of its words are in `target`.
pub fn check(prediction: &str, target: Language) -> (Verdict, f64) {
    let found = consistency(format::reasoning(prediction), target);
    let reason = format!(
        "{} of {} words are in `{}`",
        found.num_target,
        found.num_words,
        target.code()
    );
    let outcome = match found.share() {
        _ if found.num_words == 0 => Outcome::Unparsable,
        share if share >= CONSISTENT_SHARE => Outcome::Correct,
        _ => Outcome::Wrong,
    };
    (Verdict::new(outcome, None, reason), found.share())
}

#[derive(Default)]
struct Tally {
    num_words: usize,
    by_language: Vec<(Lang, usize)>,
}

impl Tally {
    fn of(&self, lang: Lang) -> usize {
        let found = self.by_language.iter().find(|(other, _)| *other == lang);
        found.map_or(0, |(_, n)| *n)
    }

    fn add(&mut self, lang: Option<Lang>, n: usize) {
        self.num_words += n;
        let Some(lang) = lang else { return };
        match self
            .by_language
            .iter_mut()
            .find(|(other, _)| *other == lang)
        {
            Some((_, count)) => *count += n,
            None => self.by_language.push((lang, n)),
        }
    }
}

/// Counts the words of `text` by language. Where the languages of Latin words cannot be told they are in `target`, if that
/// is written so, or else in English.
fn tally(text: &str, target: Option<Lang>) -> Tally {
    let mut tally = Tally::default();
    let mut latin: Vec<String> = Vec::new();
    let mut num_kana = 0;
    let mut num_han = 0;
    for segment in segments(text) {
        let (text, is_prose) = match segment {
            Segment::Prose(text) => (text, true),
            Segment::Other(text) => (text, false),
        };
        for word in Words::new(text) {
            match word.script {
                // in code and formulas Latin and Greek letters are names
                Script::Latin | Script::Greek if !is_prose => {}
                Script::Latin if is_symbol(word.text) => {}
                Script::Latin => latin.push(word.text.to_lowercase()),
                Script::Greek if word.text.chars().count() == 1 => {}
                Script::Han => num_han += word.num_words,
                Script::Kana => num_kana += word.num_words,
                script => tally.add(script.language(), word.num_words),
            }
        }
    }
    // running Japanese has about as many kana as Han; a few kana in Chinese do not make it Japanese
    let han = if num_kana * 4 >= num_han.max(1) || (target == Some(Lang::Jpn) && num_han < 8) {
        Lang::Jpn
    } else {
        Lang::Cmn
    };
    if num_kana > 0 {
        tally.add(Some(Lang::Jpn), num_kana);
    }
    if num_han > 0 {
        tally.add(Some(han), num_han);
    }
    let presumed = target.filter(|lang| is_latin(*lang)).unwrap_or(Lang::Eng);
    for (lang, n) in latin_languages(&latin, presumed) {
        tally.add(Some(lang), n);
    }
    tally
}

/// The language of each Latin word by its surroundings, as runs.
fn latin_languages(words: &[String], presumed: Lang) -> Vec<(Lang, usize)> {
    if words.len() < MIN_WINDOW {
        return vec![(presumed, words.len())];
    }
    let mut runs: Vec<(Lang, usize)> = Vec::new();
    let mut window = String::new();
    let mut detect = |at: usize, size: usize| {
        let start = at
            .saturating_sub(size / 2)
            .min(words.len().saturating_sub(size));
        window.clear();
        for word in &words[start..(start + size).min(words.len())] {
            window.push_str(word);
            window.push(' ');
        }
        whichlang::detect_language(&window)
    };
    for at in 0..words.len() {
        let narrow = detect(at, NARROW);
        let lang = if narrow == presumed {
            presumed
        } else {
            // at its edges a foreign run looks native in one of the two
            match detect(at, WIDE) {
                wide if wide == presumed => presumed,
                wide if is_latin(wide) => wide,
                _ => presumed,
            }
        };
        match runs.last_mut() {
            Some((last, n)) if *last == lang => *n += 1,
            _ => runs.push((lang, 1)),
        }
    }
    runs
}

fn is_latin(lang: Lang) -> bool {
    !matches!(
        lang,
        Lang::Ara | Lang::Cmn | Lang::Hin | Lang::Jpn | Lang::Kor | Lang::Rus
    )
}

/// Whether Latin letters are a symbol rather than a word: one letter, the names of points and lines (`AB`, `ABC`), functions
/// and units that are written alike in every language.
fn is_symbol(word: &str) -> bool {
    const SYMBOLS: [&str; 26] = [
        "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "lg", "exp", "mod", "gcd", "lcm",
        "max", "min", "lim", "det", "deg", "km", "cm", "mm", "kg", "mg", "ml", "http", "https",
    ];
    let num_chars = word.chars().count();
    num_chars == 1
        || (num_chars <= 4 && word.chars().all(char::is_uppercase))
        || SYMBOLS.contains(&word.to_lowercase().as_str())
}

/// What a word is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Script {
    Latin,
    Greek,
    Cyrillic,
    Arabic,
    Devanagari,
    Han,
    Kana,
    Hangul,
    /// Any other, and words of two alphabets at once.
    Other,
}

impl Script {
    fn of(c: char) -> Option<Self> {
        let script = match u32::from(c) {
            0x41..=0x5a | 0x61..=0x7a | 0xaa | 0xba | 0xc0..=0x24f if c.is_alphabetic() => {
                Self::Latin
            }
            0x250..=0x2af
            | 0x1d00..=0x1dbf
            | 0x1e00..=0x1eff
            | 0x2c60..=0x2c7f
            | 0xa720..=0xa7ff
                if c.is_alphabetic() =>
            {
                Self::Latin
            }
            0xff21..=0xff3a | 0xff41..=0xff5a => Self::Latin,
            0x370..=0x3ff | 0x1f00..=0x1fff if c.is_alphabetic() => Self::Greek,
            0x400..=0x52f | 0x1c80..=0x1c8f => Self::Cyrillic,
            0x600..=0x6ff | 0x750..=0x77f | 0x8a0..=0x8ff | 0xfb50..=0xfdff | 0xfe70..=0xfeff
                if c.is_alphabetic() =>
            {
                Self::Arabic
            }
            0x900..=0x97f if c.is_alphabetic() => Self::Devanagari,
            0x3005..=0x3007
            | 0x3400..=0x4dbf
            | 0x4e00..=0x9fff
            | 0xf900..=0xfaff
            | 0x20000..=0x3ffff => Self::Han,
            0x3041..=0x3096
            | 0x309d..=0x309f
            | 0x30a1..=0x30fa
            | 0x30fc..=0x30ff
            | 0x31f0..=0x31ff
            | 0xff66..=0xff9d => Self::Kana,
            0x1100..=0x11ff
            | 0x3130..=0x318f
            | 0xa960..=0xa97f
            | 0xac00..=0xd7ff
            | 0xffa0..=0xffdc => Self::Hangul,
            _ if c.is_alphabetic() => Self::Other,
            _ => return None,
        };
        Some(script)
    }

    /// The language that alone is written in it, as far as this room knows languages.
    fn language(self) -> Option<Lang> {
        match self {
            Self::Cyrillic => Some(Lang::Rus),
            Self::Arabic => Some(Lang::Ara),
            Self::Devanagari => Some(Lang::Hin),
            Self::Hangul => Some(Lang::Kor),
            Self::Kana => Some(Lang::Jpn),
            Self::Han => Some(Lang::Cmn),
            Self::Latin | Self::Greek | Self::Other => None,
        }
    }

    /// Written without spaces: every character counts.
    fn is_by_character(self) -> bool {
        matches!(self, Self::Han | Self::Kana)
    }
}

/// A word, or a run of characters that count one each.
pub(super) struct Word<'a> {
    pub text: &'a str,
    pub script: Script,
    pub num_words: usize,
}

/// The words of running text.
pub(super) struct Words<'a> {
    rest: &'a str,
    /// A digit or an underscore stands right before the rest: what follows belongs to a name.
    in_name: bool,
}

impl<'a> Words<'a> {
    pub fn new(text: &'a str) -> Self {
        Self {
            rest: text,
            in_name: false,
        }
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = Word<'a>;

    fn next(&mut self) -> Option<Word<'a>> {
        loop {
            let first = self.rest.chars().next()?;
            let Some(mut script) = Script::of(first) else {
                // `\frac` is a command, `x_max` and `2nd` are names
                self.in_name = first.is_numeric() || matches!(first, '_' | '\\');
                self.rest = &self.rest[first.len_utf8()..];
                continue;
            };
            let by_character = script.is_by_character();
            let mut num_chars = 0;
            let mut end = 0;
            let mut chars = self.rest.char_indices().peekable();
            while let Some((at, c)) = chars.next() {
                match Script::of(c) {
                    Some(other) if other.is_by_character() != by_character => break,
                    Some(other) if by_character && other != script => break,
                    // two alphabets in one word: letters that look alike
                    Some(other) if other != script => script = Script::Other,
                    Some(_) => {}
                    None if is_mark(c) => {}
                    // `don't`, `l'eau`, `well-known`
                    None if matches!(c, '\'' | '’' | '-')
                        && !by_character
                        && chars.peek().is_some_and(|(_, next)| {
                            Script::of(*next).is_some_and(|s| !s.is_by_character())
                        }) => {}
                    None => break,
                }
                num_chars += usize::from(!is_mark(c));
                end = at + c.len_utf8();
            }
            let text = &self.rest[..end];
            let after = self.rest[end..].chars().next();
            self.rest = &self.rest[end..];
            let is_name = !by_character
                && script == Script::Latin
                && (self.in_name || after.is_some_and(|c| c == '_' || c.is_ascii_digit()));
            self.in_name = false;
            if !is_name {
                return Some(Word {
                    text,
                    script,
                    num_words: if by_character { num_chars } else { 1 },
                });
            }
        }
    }
}

/// Accents written by themselves, and joiners within words.
fn is_mark(c: char) -> bool {
    matches!(u32::from(c), 0x300..=0x36f | 0x483..=0x487 | 0x610..=0x61a | 0x64b..=0x65f | 0x670 | 0x93a..=0x94f
        | 0x3099..=0x309a | 0x200c..=0x200d | 0xad)
}

#[cfg(test)]
#[path = "language_tests.rs"]
mod tests;
