//! Where the answer stands in a text, by Math-Verify's priorities: boxes, "the final answer is", "answer:", and then the
//! last formula or number. Boxes near each other are one list; different boxes that are no list are no answer. Numbers in
//! running text are in [`super::find_numbers`].

use super::extract::answer_tags;
use super::find_numbers as numbers;
use super::latex::Commas;
use super::math::MathOptions;
use super::parse::parse;

/// Boxes so near each other belong together, whatever is between them.
const TOUCHING_BYTES: usize = 10;
/// Boxes with "and", "or" or a comma between them belong together up to here.
const JOINED_BYTES: usize = 70;
/// Different boxes nearer than this contradict each other; farther ones are steps on the way.
const CONTRADICTING_BYTES: usize = 150;
/// How much of the end of a text is searched for formulas and numbers.
const TAIL_BYTES: usize = 8_000;
/// How far from "answer" the answer may be.
const NEAR_BYTES: usize = 300;

/// What a search gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Answer(String),
    /// answers that contradict each other
    Several(String),
    Nothing(&'static str),
}

/// A box: where it stands, and what is in it.
#[derive(Debug, Clone, Copy)]
struct Boxed<'a> {
    start: usize,
    end: usize,
    content: &'a str,
}

/// The answer in a gold field: what follows `####`, the boxes, the whole field where it is a formula, else what a model's
/// text would give, else the whole field as words.
pub fn in_gold(gold: &str) -> Option<String> {
    let gold = gold.trim();
    let gold = gold.strip_prefix("# ").unwrap_or(gold).trim();
    if let Some(at) = gold.rfind("####") {
        let line = gold[at + 4..].trim().lines().next()?;
        return (!line.is_empty()).then(|| line.to_string());
    }
    let boxes = boxes(gold, true);
    if !boxes.is_empty() {
        return joined(gold, &boxes)
            .map(|(text, _)| text)
            .filter(|text| !text.trim().is_empty());
    }
    if gold.is_empty() {
        return None;
    }
    let short = gold.len() <= 2 * NEAR_BYTES;
    if short && !numbers::is_prose(gold) {
        return Some(gold.to_string());
    }
    let formulas = gold.contains(['$']) || gold.contains("\\(") || gold.contains("\\[");
    if (formulas && !is_worded(gold)) || !short {
        let options = MathOptions::default();
        if let Found::Answer(text) = in_text(gold, &options) {
            return Some(text);
        }
    }
    Some(gold.to_string())
}

/// Whether words beside the formulas of a gold answer say something, so that no formula stands for all of it.
pub fn is_worded(gold: &str) -> bool {
    gold.len() <= 2 * NEAR_BYTES
        && gold.contains(['$'])
        && numbers::is_prose(gold)
        && !only_introduces(gold)
}

/// Whether the words beside the formulas of a text only lead to them, as "the answer is" and "or" do.
fn only_introduces(text: &str) -> bool {
    #[rustfmt::skip]
    const LEADING: &[&str] = &[
        "the", "answer", "answers", "is", "are", "final", "so", "thus", "therefore", "hence", "and", "or", "we", "get",
        "have", "that", "it", "which", "value", "result", "solution", "solutions", "equals", "equal", "to", "be", "a",
        "an", "our", "i", "hope", "correct", "gives", "obtain", "this", "finally", "must", "desired", "total", "only",
        "possible", "values", "simplifies", "of", "required", "conclude", "by", "in",
    ];
    let mut at = 0;
    let mut outside = String::new();
    for formula in environments(text) {
        outside.push_str(&text[at..formula.start]);
        outside.push(' ');
        at = formula.end;
    }
    outside.push_str(&text[at..]);
    outside
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .all(|word| {
            let lower = word.to_lowercase();
            LEADING.contains(&lower.as_str()) || super::units::is_unit(word)
        })
}

/// The answer in a model's text without its thinking.
pub fn in_text(text: &str, options: &MathOptions) -> Found {
    let text = text.trim();
    let text = match answer_tags(text) {
        Some(Ok(content)) => content.trim(),
        Some(Err(last)) => return Found::Several(last.trim().to_string()),
        None => text,
    };
    if text.is_empty() {
        return Found::Nothing("the answer is empty");
    }
    let boxes = boxes(text, false);
    if let Some(last) = boxes.last() {
        let sentence = options.boxed_first.then_some(last.end).map_or(0, |end| end);
        // a sentence after the last box, or anywhere where sentences come first
        if let Some(found) = final_answer(text, sentence, options) {
            return found;
        }
        if numbers::is_retracted(&text[last.end..]) {
            return Found::Nothing("the text says that the box is wrong");
        }
        return in_boxes(text, &boxes);
    }
    if text.contains("\\boxed") && !numbers::has_digit_after(text, "\\boxed") {
        return Found::Nothing("the box is empty or never closes");
    }
    let whole = text.len() <= NEAR_BYTES && !numbers::is_prose(text) && options.plain;
    if whole && readable(text) {
        return Found::Answer(text.to_string());
    }
    if let Some(found) = final_answer(text, 0, options) {
        return found;
    }
    let end = text.trim_end_matches([' ', '*']);
    if end.len() >= 7
        && end.is_char_boundary(end.len() - 7)
        && end[end.len() - 7..].eq_ignore_ascii_case("answer:")
    {
        return Found::Nothing("nothing follows the word \"answer\"");
    }
    for anchor in ["answer", "答案", "réponse", "Réponse"] {
        if let Some(at) = rfind_ignoring_case(text, anchor)
            && numbers::is_statement(&text[at + anchor.len()..])
            && let Some(found) = in_phrase(&text[at + anchor.len()..], options)
        {
            return found;
        }
    }
    let tail_at = floor_boundary(text, text.len().saturating_sub(TAIL_BYTES));
    let tail = &text[tail_at..];
    if numbers::is_refusal(tail) && tail.len() <= NEAR_BYTES {
        return Found::Nothing("the text says that it has no answer");
    }
    if let Some(found) = last_in(tail, options) {
        return found;
    }
    if let Some(letter) = numbers::letter(text, false) {
        return Found::Answer(letter);
    }
    if text.len() <= NEAR_BYTES && options.plain && !text.contains("boxed") {
        return Found::Answer(text.to_string());
    }
    Found::Nothing("no box, no formula and no number in the answer")
}

/// What the last boxes say together.
fn in_boxes(text: &str, boxes: &[Boxed]) -> Found {
    let Some((answer, used)) = joined(text, boxes) else {
        return Found::Nothing("the box is empty");
    };
    if answer.trim().trim_matches([',', ' ']).is_empty()
        || boxes.last().is_some_and(|b| b.content.trim().is_empty())
    {
        return Found::Nothing("the box is empty");
    }
    let first = boxes.len() - used;
    let mut next = boxes[first];
    for earlier in boxes[..first].iter().rev().take(20) {
        if next.start - earlier.end > CONTRADICTING_BYTES {
            break;
        }
        let same = boxes[first..]
            .iter()
            .any(|b| super::math::same(b.content, earlier.content));
        if !same && !earlier.content.trim().is_empty() {
            return Found::Several(answer);
        }
        next = *earlier;
    }
    Found::Answer(answer)
}

/// The contents of the last boxes that belong together, and how many they are.
fn joined(text: &str, boxes: &[Boxed]) -> Option<(String, usize)> {
    let mut used = 1;
    let mut contents = vec![boxes.last()?.content.trim()];
    let is_empty = |content: &str| content.trim().is_empty();
    for pair in boxes.windows(2).rev() {
        let [earlier, later] = pair else { break };
        let between = &text[earlier.end..later.start.max(earlier.end)];
        let lower = between.to_ascii_lowercase();
        let separated = lower.contains([',', ';'])
            || lower
                .split(|c: char| !c.is_alphanumeric())
                .any(|word| word == "and" || word == "or");
        let near = between.len() < TOUCHING_BYTES
            || (between.len() < JOINED_BYTES && separated && earlier.content != later.content);
        if !near {
            break;
        }
        used += 1;
        if contents.last() != Some(&earlier.content.trim()) && !is_empty(earlier.content) {
            contents.push(earlier.content.trim());
        }
        if contents.len() > 100 {
            break;
        }
    }
    contents.reverse();
    let mut answer = contents.join(", ");
    if contents.len() == 1 {
        let after = text[boxes.last()?.end..].trim_start_matches(['$', ' ', '\\', ')', ']']);
        let percent = ["%", "percent", "pct"]
            .iter()
            .any(|word| after.starts_with(word));
        if percent && !answer.ends_with('%') && !answer.contains("percent") {
            answer.push_str("\\%");
        }
    }
    Some((answer, used))
}

/// All boxes, innermost of nested ones, in order; one that never closes runs to the end where that is allowed.
fn boxes(text: &str, unclosed: bool) -> Vec<Boxed<'_>> {
    const COMMANDS: [&str; 2] = ["\\boxed", "\\fbox"];
    let bytes = text.as_bytes();
    let mut found: Vec<Boxed> = Vec::new();
    if !text.contains("box") {
        return found;
    }
    // one entry an open brace: where a box began, and its content
    let mut open: Vec<Option<(usize, usize)>> = Vec::new();
    let mut at = 0;
    let mut begun = false;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => {
                if let Some(command) = COMMANDS.iter().find(|c| text[at..].starts_with(**c)) {
                    let start = at;
                    at += command.len();
                    while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
                        at += 1;
                    }
                    if bytes.get(at) == Some(&b'{') {
                        at += 1;
                        if !begun {
                            open.clear();
                            begun = true;
                        }
                        open.push(Some((start, at)));
                    }
                } else if bytes
                    .get(at + 1)
                    .is_some_and(|b| b.is_ascii() && *b != b'\\')
                {
                    at += 2;
                } else {
                    at += 1;
                }
                continue;
            }
            b'{' if begun => open.push(None),
            b'}' => {
                if let Some(Some((start, content))) = open.pop() {
                    // a box around another one only repeats it
                    let outer = found.last().is_some_and(|inner| inner.start > start);
                    let outer_only = outer && found.last().is_some_and(|inner| inner.end == at);
                    if !outer_only {
                        while found.last().is_some_and(|inner| inner.start > start) {
                            found.pop();
                        }
                        found.push(Boxed {
                            start,
                            end: at + 1,
                            content: &text[content..at],
                        });
                    }
                }
            }
            _ => {}
        }
        at += 1;
    }
    if unclosed
        && found.is_empty()
        && let Some((start, content)) = open.iter().flatten().next()
    {
        found.push(Boxed {
            start: *start,
            end: text.len(),
            content: &text[*content..],
        });
    }
    found
}

/// "The final answer is ...", from `from` on.
fn final_answer(text: &str, from: usize, options: &MathOptions) -> Option<Found> {
    const ANCHOR: &str = "final answer";
    let at = from + rfind_ignoring_case(&text[from..], ANCHOR)?;
    let after = &text[at + ANCHOR.len()..];
    let near = &after[..floor_boundary(after, 100)];
    let said = rfind_is(near)?;
    in_phrase(&after[said..], options)
}

/// The end of the last " is" or ":" that a value follows.
fn rfind_is(near: &str) -> Option<usize> {
    let near = &near[..numbers::sentence_end(near)];
    near.find(" is ")
        .map(|at| at + 4)
        .or_else(|| near.find(" is:").map(|at| at + 4))
        .or_else(|| near.find(':').map(|at| at + 1))
}

/// The first formula or number of what follows "answer is".
fn in_phrase(phrase: &str, options: &MathOptions) -> Option<Found> {
    let phrase = phrase.trim_start_matches([':', '*', ' ', '"', '：', '\n', '_', '=']);
    let phrase = phrase.strip_prefix("\\\"").unwrap_or(phrase);
    let phrase = phrase
        .strip_prefix("is ")
        .or(phrase.strip_prefix("is:"))
        .unwrap_or(phrase);
    let phrase = phrase.trim_start_matches([':', '*', ' ', '"', '\n']);
    let phrase = &phrase[..floor_boundary(phrase, NEAR_BYTES)];
    let phrase = &phrase[..phrase
        .find("\n\n")
        .filter(|at| *at > 0)
        .unwrap_or(phrase.len())];
    let clause = &phrase[..numbers::sentence_end(phrase)];
    let clause = clause.trim().trim_matches(['*', '"', '.', '`']).trim();
    if !clause.is_empty() && options.plain && !numbers::is_prose(clause) && readable(clause) {
        return Some(Found::Answer(clause.to_string()));
    }
    let formulas = if options.latex {
        environments(phrase)
    } else {
        Vec::new()
    };
    let formula = formulas.first();
    let number = if options.plain {
        numbers::first_in(phrase)
    } else {
        None
    };
    match (formula, number) {
        (Some(formula), number)
            if number
                .as_ref()
                .is_none_or(|(start, ..)| formula.start <= *start) =>
        {
            let last = chained(phrase, &formulas, 0);
            Some(Found::Answer(
                phrase[formula.start..formulas[last].end].to_string(),
            ))
        }
        (_, Some((_, _, text))) => Some(Found::Answer(text)),
        _ => numbers::letter(clause, true).map(Found::Answer),
    }
}

/// The last formula or number of a text.
fn last_in(tail: &str, options: &MathOptions) -> Option<Found> {
    let formulas = if options.latex {
        environments(tail)
    } else {
        Vec::new()
    };
    let number = if options.plain {
        numbers::last_in(tail)
    } else {
        None
    };
    let number_end = number.as_ref().map_or(0, |(_, end, _)| *end);
    for at in (0..formulas.len()).rev().take(5) {
        if formulas[at].end < number_end {
            break;
        }
        if !readable(formulas[at].content) {
            continue;
        }
        let mut first = at;
        while first > 0 && chained(tail, &formulas, first - 1) >= at {
            first -= 1;
        }
        let mut answer = tail[formulas[first].start..formulas[at].end].to_string();
        let after = tail[formulas[at].end..].trim_start_matches([' ', '\\']);
        if ["%", "percent", "pct"]
            .iter()
            .any(|word| after.starts_with(word))
        {
            answer.push_str(" \\%");
        }
        return Some(Found::Answer(answer));
    }
    number.map(|(_, _, text)| Found::Answer(text))
}

/// The index of the last of the formulas that follow one another with "and", "or" or a comma between them.
fn chained(text: &str, formulas: &[Environment], from: usize) -> usize {
    let mut last = from;
    while last + 1 < formulas.len() && last - from < 40 {
        let between = text[formulas[last].end..formulas[last + 1].start].trim();
        let word = between.trim_matches(',').trim();
        if between != "," && word != "and" && word != "or" {
            break;
        }
        last += 1;
    }
    last
}

/// A formula between dollars, `\(...\)` or `\[...\]`, or a bare `\frac{}{}`.
#[derive(Debug, Clone, Copy)]
struct Environment<'a> {
    start: usize,
    end: usize,
    content: &'a str,
}

fn environments(text: &str) -> Vec<Environment<'_>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    // a delimiter that was once not closed is not searched for again
    let mut hopeless = [false; 4];
    while at < bytes.len() {
        let rest = &text[at..];
        let (which, open, close) = match bytes[at] {
            b'$' if rest.starts_with("$$") => (0, 2, "$$"),
            b'$' => (1, 1, "$"),
            b'\\' if rest.starts_with("\\(") => (2, 2, "\\)"),
            b'\\' if rest.starts_with("\\[") => (3, 2, "\\]"),
            b'\\' if rest.starts_with("\\frac") || rest.starts_with("\\dfrac") => {
                if let Some(end) = bare_fraction(rest) {
                    let sign = at > 0 && bytes[at - 1] == b'-';
                    let start = at - usize::from(sign);
                    found.push(Environment {
                        start,
                        end: at + end,
                        content: &text[start..at + end],
                    });
                    at += end;
                } else {
                    at += 1;
                }
                continue;
            }
            b'\\' => {
                // `\$` is money
                at += 1 + bytes.get(at + 1).map_or(0, |b| usize::from(b.is_ascii()));
                continue;
            }
            _ => {
                at += 1;
                while !text.is_char_boundary(at) {
                    at += 1;
                }
                continue;
            }
        };
        let closes = if hopeless[which] {
            None
        } else {
            closing(&rest[open..], close)
        };
        let Some(length) = closes else {
            hopeless[which] = which != 1;
            at += open;
            continue;
        };
        let content = &rest[open..open + length];
        let inline = which == 1 || which == 2;
        if content.trim().is_empty()
            || (inline && content.contains('\n'))
            || (which == 1 && numbers::is_money(content))
        {
            at += open;
            continue;
        }
        let end = at + open + length + close.len();
        found.push(Environment {
            start: at,
            end,
            content,
        });
        at = end;
    }
    found
}

/// The distance to the closing delimiter that is not escaped.
fn closing(text: &str, close: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + text[from..].find(close)?;
        if close.starts_with('$') && text[..at].ends_with('\\') {
            from = at + close.len();
            continue;
        }
        return Some(at);
    }
}

/// The length of `\frac{..}{..}` at the beginning of `text`.
fn bare_fraction(text: &str) -> Option<usize> {
    let after = &text[text.find('{')?..];
    let (above, rest) = super::latex::group(&after[..floor_boundary(after, 200)])?;
    let (below, rest) = super::latex::group(rest)?;
    let _ = (above, below);
    let tail = after.len().min(floor_boundary(after, 200)) - rest.len();
    Some(text.len() - after.len() + tail)
}

fn readable(text: &str) -> bool {
    parse(text, Commas::Thousands).is_some() || parse(text, Commas::Separate).is_some()
}

/// The last place of an ASCII-lowercase word in either case.
fn rfind_ignoring_case(text: &str, word: &str) -> Option<usize> {
    let (bytes, word) = (text.as_bytes(), word.as_bytes());
    let last = bytes.len().checked_sub(word.len())?;
    (0..=last)
        .rev()
        .find(|at| bytes[*at..*at + word.len()].eq_ignore_ascii_case(word))
}

/// The largest character boundary that is not above `at`.
pub fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
