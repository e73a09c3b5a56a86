//! The words of an answer to a multiple choice question: how the text is cut, and which words announce, join, deny or fill.

/// A word, a punctuation mark or a line end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'a> {
    pub text: &'a str,
    /// Nothing stands between it and the token before.
    pub is_glued: bool,
}

impl Token<'_> {
    pub fn is_word(&self) -> bool {
        self.text.starts_with(char::is_alphanumeric)
    }
}

/// What a word does for a letter near it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sense {
    /// Announces the letter: "answer", "choose".
    Anchor,
    /// "option", "choice": announce it together with "correct".
    Option,
    Right,
    /// Denies: "not", "isn't".
    Not,
    Wrong,
    /// Joins two letters: "and", "or".
    Joins,
    /// Begins another thought: ",", ".", "but".
    Clause,
    /// Says nothing of its own.
    Filler,
    /// Follows a letter, and not an article.
    AfterLetter,
    Other,
}

/// Takes back what was said before.
pub(super) fn is_retraction(text: &str) -> bool {
    ["wait", "actually", "sorry", "oops"].contains(&text.to_lowercase().as_str())
}

/// The words and marks of `text`, without emphasis, dollars and font commands.
pub(super) fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut out: Vec<Token<'_>> = Vec::new();
    let mut rest = text;
    let mut is_glued = false;
    while let Some(first) = rest.chars().next() {
        if first == '\\' {
            // `\text{B}`, `\boxed{B}`: the command goes, its argument stays
            let name = rest[1..]
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(rest.len() - 1);
            let font = [
                "text", "textbf", "mathrm", "mathbf", "mathit", "boxed", "mbox", "textit", "bf",
                "rm",
            ];
            if font.contains(&&rest[1..1 + name]) || name == 0 {
                rest = &rest[1 + name..];
                continue;
            }
        }
        if matches!(first, '*' | '$' | '`' | '{' | '}' | '\r')
            || (first.is_whitespace() && first != '\n')
        {
            // emphasis ends a word, but what it stands around is still glued
            is_glued &= !first.is_whitespace();
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let length = if first.is_alphanumeric() {
            let is_ascii = first.is_ascii();
            rest.char_indices()
                .find(|(at, c)| {
                    let in_word = c.is_alphanumeric()
                        && (c.is_ascii() == is_ascii || !is_cjk(*c) && !is_cjk(first));
                    // `isn't`
                    let is_apostrophe = matches!(c, '\'' | '’')
                        && *at > 1
                        && rest[at + c.len_utf8()..].starts_with(|c: char| c.is_ascii_lowercase());
                    !in_word && !is_apostrophe
                })
                .map_or(rest.len(), |(at, _)| at)
        } else {
            first.len_utf8()
        };
        // one line end is enough
        if first != '\n' || out.last().is_none_or(|t| t.text != "\n") {
            out.push(Token {
                text: &rest[..length],
                is_glued,
            });
        }
        is_glued = true;
        rest = &rest[length..];
    }
    while out.last().is_some_and(|t| t.text == "\n") {
        out.pop();
    }
    out
}

fn is_cjk(c: char) -> bool {
    matches!(u32::from(c), 0x2e80..=0x9fff | 0xac00..=0xd7ff | 0xf900..=0xfaff)
}

pub(super) fn sense(text: &str) -> Sense {
    const ANCHORS: &[&str] = &[
        "answer",
        "answers",
        "choose",
        "select",
        "pick",
        "choosing",
        "selecting",
        "réponse",
        "respuesta",
        "antwort",
        "risposta",
        "resposta",
        "antwoord",
        "ответ",
        "cevap",
        "svar",
        "going",
        "go",
        "correction",
    ];
    const FILLERS: &[&str] = &[
        "be",
        "the",
        "a",
        "for",
        "sure",
        "definitely",
        "clearly",
        "certainly",
        "probably",
        "likely",
        "indeed",
        "simply",
        "just",
        "letter",
        "final",
        "most",
        "with",
        "final_answer",
        "number",
        "est",
        "es",
        "ist",
        "è",
        "é",
        "la",
        "le",
        "i",
        "think",
        "believe",
        "it's",
        "that's",
        "me",
        "my",
        "this",
        "question",
    ];
    const NEGATIONS: &[&str] = &[
        "not",
        "no",
        "never",
        "cannot",
        "neither",
        "nor",
        "non",
        "pas",
        "nicht",
        "kein",
        "except",
        "excluding",
        "unlike",
        "instead",
        "rather",
        "eliminate",
        "eliminated",
        "reject",
        "rejected",
        "ruled",
        "rule",
        "than",
        "none",
        "exclude",
        "excluded",
        "excludes",
        "discard",
        "discarded",
        "dismiss",
        "avoid",
    ];
    const CLAUSES: &[&str] = &[
        ",",
        ".",
        ";",
        "\n",
        "!",
        "?",
        "，",
        "。",
        "；",
        "but",
        "however",
        "therefore",
        "because",
        "so",
        "thus",
        "hence",
    ];
    let lower = text.to_lowercase();
    let word = lower.as_str();
    if ANCHORS.contains(&word) {
        return Sense::Anchor;
    }
    if !text.is_ascii() && is_cjk_text(text) {
        return sense_of_cjk(text);
    }
    match word {
        "option" | "choice" | "options" | "alternative" => Sense::Option,
        "correct" | "right" | "true" | "best" => Sense::Right,
        "wrong" | "incorrect" | "false" | "invalid" | "out" => Sense::Wrong,
        "and" | "or" | "maybe" | "perhaps" | "possibly" | "also" | "alternatively" | "und"
        | "oder" | "et" | "ou" | "y" | "o" | "/" | "&" => Sense::Joins,
        _ if NEGATIONS.contains(&word) || word.ends_with("n't") || word.ends_with("n’t") => {
            Sense::Not
        }
        _ if CLAUSES.contains(&word) => Sense::Clause,
        "is" | "was" | "seems" | "since" | "as" | "which" | "it" | "if" | "due" | "must"
        | "can" | "would" | "represents" | "describes" | "has" | "will" | "should" => {
            Sense::AfterLetter
        }
        _ if FILLERS.contains(&word) => Sense::Filler,
        _ if !text.starts_with(char::is_alphanumeric) => Sense::Filler,
        _ => Sense::Other,
    }
}

fn is_cjk_text(text: &str) -> bool {
    text.chars().all(|c| !c.is_ascii() && is_cjk(c))
}

fn sense_of_cjk(text: &str) -> Sense {
    const DENIALS: [&str; 7] = ["不是", "不选", "不能", "而非", "排除", "错", "ではな"];
    const ANCHORS: [&str; 7] = ["答案", "选", "選", "应为", "正解", "答え", "정답"];
    if DENIALS.iter().any(|denial| text.contains(denial)) {
        Sense::Not
    } else if ANCHORS.iter().any(|anchor| text.contains(anchor)) {
        Sense::Anchor
    } else if matches!(text, "和" | "或" | "与" | "及" | "と" | "か") {
        Sense::Joins
    } else if matches!(text, "是" | "为" | "：" | "は") {
        Sense::Filler
    } else {
        Sense::Other
    }
}
