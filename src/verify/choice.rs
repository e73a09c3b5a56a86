//! Multiple choice: which letter an answer chooses.
//!
//! Only what follows the thinking counts. In order of strength: letters in boxes, in `<answer>` tags and in statements
//! ("Answer: B", "the correct option is (B)", "B is correct"), all together; a letter at the beginning ("B. Paris"); the
//! only letter that is mentioned and not ruled out. Whoever claims two letters has chosen none, wherever they stand: such an
//! answer is wrong. A letter in running prose is easily an article, a vitamin or a point; the weaker the place, the less
//! counts as one. What makes a claim of a letter is in
//! `choice_claims.rs`, the words of the text in `choice_words.rs`.

use super::choice_claims::{
    MAX_FILLERS, is_anchor, is_called_right, is_denied, is_formula, is_ruled_out, says_none,
    says_nothing,
};
use super::choice_words::{Sense, Token, is_retraction, sense, tokens};
use super::{Outcome, Verdict, answer_part};
use std::borrow::Cow;

/// Letters that choices have unless their number is known.
const LAST_LETTER: char = 'J';

/// A text without any claim is searched for mentions only up to this length: what long texts mention they do not choose.
const MAX_MENTION_BYTES: usize = 400;

/// The verdict on `prediction` where `gold` is a letter, or a text that begins with one such as `(D) Alina`.
pub fn check(prediction: &str, gold: &str) -> Verdict {
    check_among(prediction, gold, &[])
}

/// The same where the texts of the options are known, in order: then only their letters count, and the text of an option
/// stands for its letter.
pub fn check_among(prediction: &str, gold: &str, options: &[String]) -> Verdict {
    let all_right = gold_letters(gold);
    let Some(wanted) = all_right
        .first()
        .copied()
        .or_else(|| gold_letter(gold, options))
    else {
        return Verdict::bad_gold("the gold answer names no letter");
    };
    let Some(answer) = answer_part(prediction) else {
        return Verdict::unparsable("the thinking never ends");
    };
    let answer = &*half_width(answer);
    let letters = Letters {
        last: match options.len() {
            0 => LAST_LETTER,
            n => char::from(b'A' + u8::try_from(n.min(26) - 1).unwrap_or(25)),
        },
        gold: wanted,
    };
    match letters.chosen(answer, options) {
        Chosen::Several(found) if found == all_right => {
            let shown: String = found.iter().collect();
            Verdict::new(Outcome::Correct, Some(&shown), "same letters")
        }
        Chosen::One(letter) if letter == wanted && all_right.is_empty() => {
            Verdict::new(Outcome::Correct, Some(&letter.to_string()), "same letter")
        }
        Chosen::One(letter) => {
            Verdict::new(Outcome::Wrong, Some(&letter.to_string()), "other letter")
        }
        Chosen::Several(found) => {
            let shown: Vec<String> = found.iter().map(char::to_string).collect();
            let reason = match all_right.is_empty() {
                true => "several letters are claimed",
                false => "other letters",
            };
            Verdict::new(Outcome::Wrong, Some(&shown.join(", ")), reason)
        }
        Chosen::None => Verdict::unparsable("no letter is chosen"),
    }
}

/// The letters of a question with several right options, `ABD` or `A, B, D`, in order; none where there is one.
fn gold_letters(gold: &str) -> Vec<char> {
    let gold = super::extract::gold_answer(gold);
    let letters: Vec<char> = gold
        .chars()
        .filter(|c| !matches!(c, ' ' | ',' | ';'))
        .collect();
    let rises = letters.windows(2).all(|pair| pair[0] < pair[1]);
    let are_letters = letters.iter().all(|c| ('A'..=LAST_LETTER).contains(c));
    match are_letters && rises && letters.len() > 1 {
        true => letters,
        false => Vec::new(),
    }
}

/// Letters and signs of twice the width as the usual ones.
fn half_width(text: &str) -> Cow<'_, str> {
    let is_wide = |c: char| ('\u{ff21}'..='\u{ff5a}').contains(&c);
    if !text.contains(is_wide) {
        return Cow::Borrowed(text);
    }
    let narrow = |c: char| match is_wide(c) {
        true => char::from_u32(u32::from(c) - 0xfee0).unwrap_or(c),
        false => c,
    };
    Cow::Owned(text.chars().map(narrow).collect())
}

/// The letter that a gold field names.
fn gold_letter(gold: &str, options: &[String]) -> Option<char> {
    let gold = super::extract::gold_answer(gold);
    let mut chars = gold.chars();
    if let (Some(letter), None) = (chars.next(), chars.next())
        && letter.is_ascii_alphabetic()
    {
        return Some(letter.to_ascii_uppercase());
    }
    let letters = Letters {
        last: LAST_LETTER,
        gold: LAST_LETTER,
    };
    if let Some(at) = option_named(gold, options) {
        return Some(at);
    }
    let words = tokens(gold);
    match letters.leading(&words, true) {
        Chosen::One(letter) => Some(letter),
        _ => match of_set(letters.stated(&words)) {
            Chosen::One(letter) => Some(letter),
            _ => None,
        },
    }
}

/// The letter of the only option whose text is `text`.
fn option_named(text: &str, options: &[String]) -> Option<char> {
    if options.is_empty() {
        return None;
    }
    let words = |text: &str| -> Vec<String> {
        let mut words: Vec<String> = tokens(text).iter().map(|t| t.text.to_lowercase()).collect();
        while words.last().is_some_and(|word| word == ".") {
            words.pop();
        }
        words
    };
    let wanted = words(text);
    let mut found = options
        .iter()
        .zip('A'..='Z')
        .filter(|(option, _)| words(option) == wanted);
    let letter = found.next()?.1;
    found.next().is_none().then_some(letter)
}

/// What an answer, or a part of it, chooses.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Chosen {
    None,
    One(char),
    Several(Vec<char>),
}

fn of_set(mut found: Vec<char>) -> Chosen {
    found.sort_unstable();
    found.dedup();
    match found[..] {
        [] => Chosen::None,
        [letter] => Chosen::One(letter),
        _ => Chosen::Several(found),
    }
}

/// Which letters are choices.
struct Letters {
    last: char,
    /// Counts as a choice whatever the last one is.
    gold: char,
}

impl Letters {
    fn chosen(&self, answer: &str, options: &[String]) -> Chosen {
        let mut claims = Vec::new();
        for content in boxes(answer).into_iter().chain(answer_tag(answer)) {
            match option_named(content, options) {
                Some(letter) => claims.push(letter),
                None => {
                    claims.extend(self.of_content(&tokens(content)));
                    // `B) red` where red is another option
                    let text = content.trim_start().get(1..).unwrap_or_default();
                    let text = text.trim_start_matches([')', '.', ':', ' ']);
                    claims.extend(option_named(text, options));
                }
            }
        }
        let words = tokens(answer);
        claims.extend(self.stated(&words));
        claims.extend(stated_option(answer, options));
        match of_set(claims) {
            Chosen::None if says_none(&words) => return Chosen::None,
            Chosen::None => {}
            chosen => return chosen,
        }
        match self.leading(&words, false) {
            Chosen::None => {}
            chosen => return chosen,
        }
        if let Some(letter) = option_named(answer, options) {
            return Chosen::One(letter);
        }
        if answer.len() > MAX_MENTION_BYTES {
            let mut start = answer.len() - MAX_MENTION_BYTES;
            while !answer.is_char_boundary(start) {
                start += 1;
            }
            return of_set(self.concluded(&tokens(&answer[start..])));
        }
        of_set(self.mentioned(&words))
    }

    /// The letters of "is (B)" and "is: B. Paris" near the end of a long text.
    fn concluded(&self, words: &[Token<'_>]) -> Vec<char> {
        let mut found = Vec::new();
        for at in 0..words.len() {
            if !matches!(words[at].text, "is" | "be" | "are") || is_ruled_out(words, at) {
                continue;
            }
            let mut next = at + 1;
            while words
                .get(next)
                .is_some_and(|t| matches!(t.text, ":" | "\n" | "(" | "option"))
            {
                next += 1;
            }
            let is_marked = words[next - 1].text == "("
                || words
                    .get(next + 1)
                    .is_some_and(|t| matches!(t.text, "." | ")" | ":"));
            if let Some(letter) = self.letter_at(words, next).filter(|_| is_marked) {
                found.push(letter);
                found.extend(self.listed(words, next + 1));
            }
        }
        found
    }

    /// The letters that begin the lines right behind the one of `at`, as options and parts of a question do.
    fn following_lines(&self, words: &[Token<'_>], at: usize) -> Vec<char> {
        let mut found = Vec::new();
        let mut lines = words[at..].split(|t| t.text == "\n");
        lines.next();
        for line in lines {
            let first = line.iter().take_while(|t| !t.is_word()).count();
            let marked = line.get(first + 1).is_some_and(|t| !t.is_word());
            match line
                .get(first)
                .filter(|_| marked)
                .and_then(|t| self.any_case(t))
            {
                Some(letter) => found.push(letter),
                None => return found,
            }
        }
        found
    }

    /// The letter that a token is, written as a capital.
    fn letter(&self, token: &Token<'_>) -> Option<char> {
        let mut chars = token.text.chars();
        let (Some(c), None) = (chars.next(), chars.next()) else {
            return None;
        };
        ((c.is_ascii_uppercase() && c <= self.last) || c == self.gold).then_some(c)
    }

    /// As [`Self::letter`], small ones too.
    fn any_case(&self, token: &Token<'_>) -> Option<char> {
        let upper = token.text.to_ascii_uppercase();
        self.letter(&Token {
            text: &upper,
            ..*token
        })
    }

    /// The letter at `at`, unless it is a word there: `A good choice`, `I think`, `C++`, `B-trees`.
    fn letter_at(&self, words: &[Token<'_>], at: usize) -> Option<char> {
        let letter = self.letter(words.get(at)?)?;
        let next = words.get(at + 1);
        if next.is_some_and(|t| {
            t.text == "="
                || (t.is_glued && matches!(t.text, "-" | "+" | "#" | "'" | "’" | "^" | "_"))
        }) {
            return None;
        }
        let is_word = matches!(letter, 'A' | 'I')
            && next.is_some_and(|t| {
                t.text.starts_with(char::is_lowercase)
                    && matches!(
                        sense(t.text),
                        Sense::Other | Sense::Filler | Sense::Option | Sense::Anchor
                    )
            });
        (!is_word).then_some(letter)
    }

    /// The letters of a list that goes on at `at`, right behind a letter: `or C`, `, B and C`, `/D`.
    fn listed(&self, words: &[Token<'_>], mut at: usize) -> Vec<char> {
        let mut found = Vec::new();
        loop {
            let mut next = at;
            let mut joins = false;
            let mut only_commas = true;
            let mut crosses = false;
            while let Some(token) = words.get(next) {
                match token.text {
                    "\n" => crosses = true,
                    "—" | "–" => {}
                    "," | "/" | "&" | ";" | "|" | "、" | "，" => joins = true,
                    ")" | "]" | "(" | "[" | "." | "\"" | "'" | "\\" => {}
                    // a new sentence begins with `Also,` as well
                    text if matches!(sense(text), Sense::Joins)
                        && (joins || !(crosses || words[next - 1].text == "."))
                        || text == "or" =>
                    {
                        joins = true;
                        only_commas = false;
                    }
                    "option" | "choice" => {}
                    _ => break,
                }
                next += 1;
            }
            // `B C`: nothing between them
            if next == at {
                let another = words.get(next + 1).is_none_or(|t| {
                    !t.is_word() || self.letter(t).is_some() || sense(t.text) == Sense::Joins
                });
                joins = another;
                only_commas = false;
            }
            // `D, A is wrong` goes on with a sentence, `D, A` with a list
            let ends = words.get(next + 1).is_none_or(|t| !t.is_word());
            let small = || {
                words
                    .get(next)
                    .filter(|_| ends)
                    .and_then(|t| self.any_case(t))
            };
            let letter = self.letter_at(words, next).or_else(small);
            let Some(letter) = letter.filter(|_| joins) else {
                return found;
            };
            let joined = words
                .get(next + 1)
                .is_some_and(|t| sense(t.text) == Sense::Joins);
            if only_commas && !ends && !joined {
                return found;
            }
            found.push(letter);
            at = next + 1;
        }
    }

    /// The letters of a box or a tag: one letter, alone or before the text of its option.
    fn of_content(&self, words: &[Token<'_>]) -> Vec<char> {
        let all: Vec<char> = words
            .iter()
            .filter(|t| t.is_word())
            .map_while(|t| self.any_case(t))
            .collect();
        if all.len() == words.iter().filter(|t| t.is_word()).count() && !is_formula(words) {
            return all;
        }
        let skip = words
            .iter()
            .take_while(|t| says_nothing(t, true) && self.any_case(t).is_none())
            .count();
        let words = &words[skip..];
        let Some(first) = words.first() else {
            return Vec::new();
        };
        // `AB`: letters and nothing else
        let text = first.text;
        if words.len() == 1
            && (2..=6).contains(&text.len())
            && text
                .chars()
                .all(|c| c.is_ascii_uppercase() && c <= self.last)
        {
            return text.chars().collect();
        }
        let Some(letter) = self.any_case(first) else {
            return Vec::new();
        };
        if !words
            .get(1)
            .is_none_or(|t| !t.is_word() || sense(t.text) == Sense::Joins)
        {
            return Vec::new();
        }
        if is_formula(words) {
            return Vec::new();
        }
        let mut found = vec![letter];
        // another letter where an option could begin
        for at in 1..words.len() {
            let opens = !words[at - 1].is_word() || sense(words[at - 1].text) == Sense::Joins;
            let closes = words
                .get(at + 1)
                .is_none_or(|t| !t.is_word() || sense(t.text) == Sense::Joins);
            if opens && closes {
                found.extend(self.any_case(&words[at]));
            }
        }
        found
    }

    /// The letters that are said to be the answer.
    fn stated(&self, words: &[Token<'_>]) -> Vec<char> {
        let mut found = Vec::new();
        for at in 0..words.len() {
            if is_anchor(words, at) || is_retraction(words[at].text) {
                found.extend(self.after_anchor(words, at + 1));
            }
            if let Some(letter) = self.letter_at(words, at)
                && is_called_right(words, at + 1)
                && !is_ruled_out(words, at)
            {
                found.push(letter);
            }
        }
        found
    }

    /// The letters behind a statement, over words that say nothing.
    fn after_anchor(&self, words: &[Token<'_>], start: usize) -> Vec<char> {
        let mut is_said = false;
        for at in start..words.len() {
            let token = &words[at];
            let claimed = |letter| {
                if is_denied(words, at) {
                    return Vec::new();
                }
                let mut found = vec![letter];
                found.extend(self.listed(words, at + 1));
                let begins = words[..at].iter().rev().find(|t| t.text != "(");
                if begins.is_some_and(|t| t.text == "\n") {
                    found.extend(self.following_lines(words, at));
                }
                found
            };
            if let Some(letter) = self.letter_at(words, at) {
                return claimed(letter);
            }
            let ends = words
                .get(at + 1)
                .is_none_or(|t| matches!(t.text, "." | ")" | "\n" | "," | "]" | "\"" | "}"));
            if is_said
                && ends
                && let Some(letter) = self.any_case(token)
            {
                return claimed(letter);
            }
            // `AB` right after it claims both
            if is_said
                && (2..=6).contains(&token.text.len())
                && token
                    .text
                    .chars()
                    .all(|c| c.is_ascii_uppercase() && c <= self.last)
                && words.get(at + 1).is_none_or(|t| !t.is_word())
            {
                return token.text.chars().collect();
            }
            if !says_nothing(token, is_said) || at - start == MAX_FILLERS {
                return Vec::new();
            }
            is_said |= matches!(token.text, ":" | "is" | "=" | "：");
        }
        Vec::new()
    }

    /// The letter that the text begins with: `B`, `B. Paris`, `(B) Paris`, `B不是`. A list of the options begins so too.
    fn leading(&self, words: &[Token<'_>], is_gold: bool) -> Chosen {
        let first = words.iter().take_while(|t| !t.is_word()).count();
        let Some(letter) = self.letter_at(words, first).or_else(|| {
            // a small letter only where there is nothing else
            let is_alone = words.iter().filter(|t| t.is_word()).count() == 1;
            words
                .get(first)
                .filter(|_| is_alone)
                .and_then(|t| self.any_case(t))
        }) else {
            return Chosen::None;
        };
        let next = words.get(first + 1);
        let is_marked = next.is_none_or(|t| !t.is_word() || !t.text.is_ascii());
        if !is_marked && !is_gold {
            return of_set(match sense(words[first + 1].text) {
                Sense::Joins => {
                    let mut found = vec![letter];
                    found.extend(self.listed(words, first + 1));
                    found
                }
                _ => Vec::new(),
            });
        }
        let mut found = vec![letter];
        found.extend(self.listed(words, first + 1));
        if !is_gold {
            found.extend(self.following_lines(words, first));
            // `A. B. C. D.`: letters and nothing else
            if words
                .iter()
                .filter(|t| t.is_word())
                .all(|t| self.any_case(t).is_some())
            {
                found.extend(words.iter().filter_map(|t| self.any_case(t)));
            }
        }
        of_set(found)
    }

    /// Letters that are mentioned and not ruled out.
    fn mentioned(&self, words: &[Token<'_>]) -> Vec<char> {
        (0..words.len())
            .filter(|at| !is_ruled_out(words, *at))
            .filter_map(|at| self.letter_at(words, at))
            .collect()
    }
}

/// The option whose text is said to be the answer: "Answer: blue."
fn stated_option(answer: &str, options: &[String]) -> Option<char> {
    if options.is_empty() {
        return None;
    }
    let lower = answer.to_lowercase();
    // lower case may move what follows
    let (at, text) = [lower.rfind("answer:"), lower.rfind("answer is")]
        .into_iter()
        .flatten()
        .max()
        .and_then(|at| Some((at, lower.get(at..)?)))?;
    let skip = ["answer is:", "answer is", "answer:"]
        .iter()
        .find(|start| text.starts_with(**start))?
        .len();
    let line = lower[at + skip..].trim_start().lines().next()?;
    option_named(line, options)
}

/// The contents of all boxes that close, outermost ones only.
fn boxes(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("\\boxed") {
        rest = &rest[at + "\\boxed".len()..];
        let inner = rest.trim_start();
        let Some(inner) = inner.strip_prefix('{') else {
            continue;
        };
        let mut depth = 1_usize;
        let mut end = None;
        for (i, b) in inner.bytes().enumerate() {
            match b {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                end = Some(i);
                break;
            }
        }
        // one that never closes: nor does any before the end
        let Some(end) = end else { break };
        found.push(&inner[..end]);
        rest = &inner[end + 1..];
    }
    found
}

/// What stands in the last pair of answer tags.
fn answer_tag(text: &str) -> Option<&str> {
    let (before, _) = text.rsplit_once("</answer>")?;
    before.rsplit_once("<answer>").map(|(_, content)| content)
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
