//! From LaTeX and plain mathematical text to tokens. One pass over the text; fonts, spacing and sizes are dropped, Unicode
//! signs become the commands they mean, thousands separators are joined. Grammar is in [`super::parse`].

use super::latex_tables::{
    DROPPED, FONTS, KNOWN, SIGNS, SPACES, greek, greek_command, plain_letter, subscript,
    superscript, vulgar_fraction,
};
use super::rational::Rational;

/// More tokens than this are no answer.
const MAX_TOKENS: usize = 6_000;
/// Fonts in fonts deeper than this are no answer.
const MAX_FONT_DEPTH: usize = 20;

/// What the text is made of.
#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// A numeral as written without separators; `exact` where it has no decimal point.
    Number {
        value: Rational,
        digits: String,
        exact: bool,
    },
    /// Letters in a row: a product of letters, a function, a unit or a word.
    Word(String),
    /// A name that stands for one thing: a Greek letter, a command nobody knows.
    Name(String),
    /// A command that the grammar knows, without its backslash.
    Command(String),
    /// What `\text{...}` holds, where it is words.
    Text(String),
    /// A sign.
    Sign(char),
    /// `\begin{...}` and `\end{...}`
    Begin(String),
    End(String),
    /// `\\` in a matrix
    RowEnd,
}

/// A token, and whether space stands before it.
#[derive(Debug, Clone, PartialEq)]
pub struct Lexeme {
    pub token: Token,
    pub spaced: bool,
}

/// How an ambiguous comma between digits is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commas {
    /// `1,234` is 1234
    Thousands,
    /// `1,234` are two numbers
    Separate,
    /// `1,22` is 1.22
    Decimal,
}

/// The tokens of `text` and the currencies in it; None where it is too long or its groups nest too deep.
pub fn tokenize(text: &str, commas: Commas) -> Option<(Vec<Lexeme>, Vec<String>)> {
    let mut lexer = Lexer {
        out: Vec::new(),
        spaced: false,
        commas,
        in_table: text.contains("matrix")
            || text.contains("\\begin{array")
            || text.contains("\\begin{cases"),
        brackets: 0,
        spaced_commas: text
            .match_indices(", ")
            .any(|(at, _)| text[..at].ends_with(|c: char| c.is_ascii_digit())),
        currencies: Vec::new(),
    };
    lexer.run(text, 0)?;
    Some((lexer.out, lexer.currencies))
}

pub(super) struct Lexer {
    pub(super) out: Vec<Lexeme>,
    pub(super) spaced: bool,
    pub(super) commas: Commas,
    in_table: bool,
    /// open parentheses, brackets and braces of sets: in them a comma parts two numbers
    pub(super) brackets: usize,
    /// numbers are parted by a comma and a space somewhere, so that commas without one are not
    pub(super) spaced_commas: bool,
    /// currencies and the like that stand before values
    currencies: Vec<String>,
}

impl Lexer {
    pub(super) fn push(&mut self, token: Token) -> Option<()> {
        if self.out.len() >= MAX_TOKENS {
            return None;
        }
        self.out.push(Lexeme {
            token,
            spaced: self.spaced,
        });
        self.spaced = false;
        Some(())
    }

    fn sign(&mut self, sign: char) -> Option<()> {
        match sign {
            '(' | '[' | '⦃' => self.brackets += 1,
            '{' if self.out.is_empty() => self.brackets += 1,
            ')' | ']' | '⦄' => self.brackets = self.brackets.saturating_sub(1),
            _ => {}
        }
        self.push(Token::Sign(sign))
    }

    fn run(&mut self, text: &str, depth: usize) -> Option<()> {
        if depth > MAX_FONT_DEPTH {
            return None;
        }
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            rest = match first {
                '\\' => self.command(&rest[1..], depth)?,
                '0'..='9' => self.number(rest)?,
                '.' if rest[1..].starts_with(|c: char| c.is_ascii_digit()) => self.number(rest)?,
                '.' if rest.starts_with("...") => {
                    self.sign('…')?;
                    rest.trim_start_matches('.')
                }
                'a'..='z' | 'A'..='Z' => {
                    let end = rest
                        .bytes()
                        .position(|b| !b.is_ascii_alphabetic())
                        .unwrap_or(rest.len());
                    // `x=1orW=2`
                    let end = if end == 3
                        && rest.starts_with("or")
                        && rest.as_bytes()[2].is_ascii_uppercase()
                    {
                        2
                    } else {
                        end
                    };
                    self.push(Token::Word(rest[..end].to_string()))?;
                    &rest[end..]
                }
                c => {
                    let after = &rest[c.len_utf8()..];
                    self.other(c, after)?
                }
            };
        }
        Some(())
    }

    /// One character that begins nothing longer, and the ASCII pairs `<=`, `>=`, `!=`, `==`, `->`, `**`.
    fn other<'a>(&mut self, c: char, after: &'a str) -> Option<&'a str> {
        let pair = after.chars().next().map(|next| (c, next));
        let joined = match pair {
            Some(('<', '=')) => Some('≤'),
            Some(('>', '=')) => Some('≥'),
            Some(('!', '=')) => Some('≠'),
            Some(('=', '=')) | Some((':', '=')) => Some('='),
            Some(('-', '>')) | Some(('=', '>')) => Some('→'),
            Some(('*', '*')) => Some('^'),
            Some(('~', '=')) => Some('≈'),
            _ => None,
        };
        if let Some(sign) = joined {
            self.sign(sign)?;
            return Some(&after[1..]);
        }
        if c.is_whitespace()
            || c == '~'
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}')
        {
            self.spaced = true;
            return Some(after);
        }
        let sign = match c {
            '$' | '€' | '£' | '¥' | '₹' | '₽' | '₩' | '`' | '"' | '“' | '”' => {
                if !c.is_ascii() && !matches!(c, '“' | '”') {
                    self.currencies.push(c.to_string());
                }
                self.spaced = true;
                return Some(after);
            }
            '−' | '–' | '﹣' | '\u{2010}'..='\u{2012}' => '-',
            '×' | '·' | '⋅' | '∙' | '•' | '∗' => '*',
            '÷' | '∕' | '⁄' => '/',
            '⩽' | '≦' => '≤',
            '⩾' | '≧' => '≥',
            '≃' | '≅' => '≈',
            '⟶' | '↦' => '→',
            '⟹' | '⇔' => '⇒',
            '⊆' => '⊂',
            '’' | '′' => '\'',
            '，' | '、' => ',',
            '；' => ';',
            '。' => '.',
            'º' | '˚' => '°',
            '⋯' | '⋮' => '…',
            'ℯ' => {
                self.push(Token::Word("e".into()))?;
                return Some(after);
            }
            _ => c,
        };
        if let Some(exponent) = superscript(c) {
            return self.scripts(c, after, exponent, '^');
        }
        if let Some(index) = subscript(c) {
            return self.scripts(c, after, index, '_');
        }
        if let Some((n, d)) = vulgar_fraction(c) {
            self.run(&format!("\\frac{{{n}}}{{{d}}}"), MAX_FONT_DEPTH)?;
            return Some(after);
        }
        if let Some(plain) = plain_letter(c) {
            let mut plain_text = plain.to_string();
            let mut after = after;
            while let Some(next) = after
                .chars()
                .next()
                .and_then(|n| plain_letter(n).map(|p| (n, p)))
            {
                plain_text.push(next.1);
                after = &after[next.0.len_utf8()..];
            }
            self.run(&plain_text, MAX_FONT_DEPTH)?;
            return Some(after);
        }
        if let Some(name) = greek(c) {
            self.push(Token::Name(name.to_string()))?;
            return Some(after);
        }
        if c.is_alphabetic() && !matches!(c, 'π' | 'ℝ' | 'ℤ' | 'ℕ' | 'ℚ' | 'ℂ' | 'ⅈ') {
            let end = after
                .char_indices()
                .find(|(_, n)| !n.is_alphabetic() || n.is_ascii())
                .map_or(after.len(), |(at, _)| at);
            let word = format!("{c}{}", &after[..end]);
            self.push(match word.as_str() {
                "或" | "或者" | "または" => Token::Word("or".into()),
                "和" | "与" | "及" => Token::Word("and".into()),
                // words that are no letters of formulas: units, counters, remarks
                _ if ('\u{2e80}'..='\u{d7ff}').contains(&c) => Token::Text(word),
                _ => Token::Name(word),
            })?;
            return Some(&after[end..]);
        }
        self.sign(sign)?;
        Some(after)
    }

    /// A run of raised or lowered characters, as a braced group after `^` or `_`.
    fn scripts<'a>(
        &mut self,
        _first: char,
        mut after: &'a str,
        first: char,
        mark: char,
    ) -> Option<&'a str> {
        let read = if mark == '^' { superscript } else { subscript };
        let mut inner = first.to_string();
        while let Some((c, plain)) = after.chars().next().and_then(|c| read(c).map(|p| (c, p))) {
            inner.push(plain);
            after = &after[c.len_utf8()..];
        }
        self.sign(mark)?;
        self.sign('{')?;
        self.run(&inner, MAX_FONT_DEPTH)?;
        self.sign('}')?;
        Some(after)
    }

    /// What follows a backslash, and the rest.
    fn command<'a>(&mut self, rest: &'a str, depth: usize) -> Option<&'a str> {
        let Some(first) = rest.chars().next() else {
            return Some(rest);
        };
        let after = &rest[first.len_utf8()..];
        if !first.is_ascii_alphabetic() {
            match first {
                '{' => self.sign('⦃')?,
                '}' => self.sign('⦄')?,
                '|' => self.sign('‖')?,
                '%' => self.sign('%')?,
                '&' | '#' | '_' => self.sign(first)?,
                '\\' if self.in_table => {
                    self.push(Token::RowEnd)?;
                    return Some(row_space(after).unwrap_or(after));
                }
                // somebody escaped the backslash of a command
                '\\' if after.starts_with(|c: char| {
                    c.is_ascii_alphabetic() || "{}[]()%$,;! ".contains(c)
                }) =>
                {
                    return self.command(after, depth);
                }
                // money after a number is a unit
                '$' if matches!(
                    self.out.last().map(|l| &l.token),
                    Some(Token::Number { .. } | Token::Sign('}'))
                ) =>
                {
                    self.push(Token::Text("dollar".into()))?;
                }
                '$' => {
                    self.currencies.push("dollar".into());
                    self.spaced = true;
                }
                // spaces, delimiters of mathematics
                _ => self.spaced = true,
            }
            return Some(after);
        }
        let end = rest
            .bytes()
            .position(|b| !b.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        let (mut name, mut after) = (&rest[..end], &rest[end..]);
        // `\quadx`, `\cdotp`: a name run into what follows it
        let exists = |name: &str| {
            SIGNS.iter().any(|(n, _)| *n == name)
                || DROPPED.contains(&name)
                || SPACES.contains(&name)
                || FONTS.contains(&name)
                || KNOWN.contains(&name)
                || greek_command(name).is_some()
        };
        let structural = matches!(
            name,
            "begin"
                | "end"
                | "not"
                | "pounds"
                | "textdollar"
                | "displaylines"
                | "color"
                | "textcolor"
        );
        if !structural && !exists(name) {
            let prefix = (2..name.len())
                .rev()
                .map(|end| &name[..end])
                .find(|prefix| {
                    matches!(*prefix, "quad" | "cdot" | "times" | "pi" | "pm" | "infty")
                        || greek_command(prefix).is_some()
                });
            if let Some(prefix) = prefix {
                name = prefix;
                after = &rest[prefix.len()..];
            }
        }
        if let Some((_, sign)) = SIGNS.iter().find(|(n, _)| *n == name) {
            self.sign(*sign)?;
        } else if SPACES.contains(&name) {
            self.spaced = true;
            if name == "hspace" {
                after = group(after).map_or(after, |(_, rest)| rest);
            }
        } else if name == "left" || name == "right" {
            // an invisible delimiter is written with a dot
            let next = after.trim_start();
            after = next.strip_prefix('.').unwrap_or(after);
            if let Some(next) = next.strip_prefix('|') {
                self.sign(if name == "left" { '⌜' } else { '⌝' })?;
                after = next;
            }
        } else if DROPPED.contains(&name) {
            self.spaced = self.spaced || name == "therefore";
        } else if FONTS.contains(&name) {
            let Some((inner, rest)) = group(after) else {
                return Some(after);
            };
            self.font(name, inner, depth)?;
            after = rest;
        } else if name == "begin" || name == "end" {
            let (inner, rest) = group(after)?;
            let environment = inner.trim_end_matches('*').to_string();
            after = rest;
            if name == "begin" {
                if environment == "array"
                    && let Some((_, rest)) = group(after)
                {
                    after = rest;
                }
                self.push(Token::Begin(environment))?;
            } else {
                self.push(Token::End(environment))?;
            }
        } else if name == "not" {
            let next = after.trim_start();
            let negated = [("=", '≠'), ("\\in", '∉'), ("\\equiv", '≢')];
            let (mark, sign) = negated
                .into_iter()
                .find(|(mark, _)| next.starts_with(mark))?;
            self.sign(sign)?;
            after = &next[mark.len()..];
        } else if name == "color" || name == "textcolor" {
            after = group(after).map_or(after, |(_, rest)| rest);
        } else if KNOWN.contains(&name) {
            self.push(Token::Command(name.to_string()))?;
        } else if name == "pounds" || name == "textdollar" {
            self.spaced = true;
        } else {
            let name = greek_command(name).unwrap_or(name).to_string();
            self.push(Token::Name(name))?;
        }
        Some(after)
    }

    /// The argument of a font command: words stay text, formulas are formulas.
    fn font(&mut self, font: &str, inner: &str, depth: usize) -> Option<()> {
        let content = inner.trim();
        let lower = content.to_ascii_lowercase();
        let words =
            lower.trim_matches(|c: char| c == ',' || c == ';' || c == '.' || c.is_whitespace());
        if content.is_empty() {
            self.spaced = true;
            return Some(());
        }
        if words == "and" || words == "or" {
            self.spaced = true;
            return self.push(Token::Word(words.to_string()));
        }
        let mut run = 0;
        let mut longest = 0;
        for c in content.chars() {
            run = if c.is_alphabetic() { run + 1 } else { 0 };
            longest = longest.max(run);
        }
        let spaced = inner.starts_with(|c: char| c.is_whitespace());
        self.spaced = self.spaced || spaced;
        // a letter after a number is a unit where it is set upright
        let after_value = matches!(
            self.out.last().map(|l| &l.token),
            Some(Token::Number { .. } | Token::Sign('}'))
        );
        if after_value
            && matches!(
                content,
                "m" | "g" | "s" | "h" | "L" | "l" | "N" | "J" | "W" | "V" | "A" | "K" | "F"
            )
        {
            return self.push(Token::Text(content.to_string()));
        }
        // `\text{3 hours}` is a value with its unit
        let valued = content
            .trim_start_matches(['-', '$', '\\'])
            .starts_with(|c: char| c.is_ascii_digit());
        if valued && !after_value {
            return self.run(content, depth + 1);
        }
        let formula = content.contains('\\') || content.contains(['=', '^', '_', '$']);
        let upright = matches!(font, "mathrm" | "operatorname" | "underline");
        let known = KNOWN.contains(&lower.as_str())
            || matches!(lower.as_str(), "percent" | "pct" | "percentage" | "th");
        let abbreviation = content.contains('.') && longest == 1;
        if longest <= 1
            && !abbreviation
            && content.chars().filter(|c| c.is_alphabetic()).count() <= 2
            || formula && !content.contains(' ')
        {
            // a single letter on its own is the name of something, not metres
            return self.run(content, depth + 1);
        }
        if known && lower == "th" {
            return Some(());
        }
        if known {
            return self.run(&lower, depth + 1);
        }
        if upright && formula {
            return self.run(content, depth + 1);
        }
        // `1\text{ million dollars}`
        if let Some((first, rest)) = content.split_once(' ')
            && super::units::is_multiplier(first)
        {
            self.push(Token::Text(first.to_string()))?;
            return self.push(Token::Text(rest.to_string()));
        }
        self.push(Token::Text(content.to_string()))
    }
}

/// What follows the space between rows, as in `\\[4pt]`.
fn row_space(text: &str) -> Option<&str> {
    let (length, rest) = text.strip_prefix('[')?.split_once(']')?;
    let unit =
        length.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | ' '));
    matches!(unit, "pt" | "em" | "ex" | "mm" | "cm" | "in" | "\\jot").then_some(rest)
}

/// The content of a braced group at the beginning of `text` (after spaces), and the rest.
pub fn group(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let inner = text.strip_prefix('{')?;
    let mut depth = 1usize;
    let bytes = inner.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return Some((&inner[..at], &inner[at + 1..]));
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}
