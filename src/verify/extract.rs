//! Where the answer stands in a text: after the thinking, in the last box, after `####`; and LaTeX made comparable.
//! Everything here is one pass over the text, whatever a model wrote. Comparing numbers is in [`super::number`].

/// What follows the thinking: the text after the last `</think>`, or the whole text where nobody thought. None where the
/// thinking was begun and never ended: such a text has no answer, whatever boxes it holds.
pub fn answer_part(text: &str) -> Option<&str> {
    let (mut after, mut open) = (0, false);
    for (at, _) in text.match_indices('<') {
        match think_tag(&text[at..]) {
            Some((length, true)) => (after, open) = (at + length, false),
            Some((_, false)) => open = true,
            None => {}
        }
    }
    (!open).then_some(&text[after..])
}

/// The length of a `<think>` or `</think>` that `text` begins with, in either case and with spaces, and whether it closes.
fn think_tag(text: &str) -> Option<(usize, bool)> {
    let name = text.strip_prefix('<')?.trim_start_matches(' ');
    let (name, closes) = match name.strip_prefix('/') {
        Some(name) => (name.trim_start_matches(' '), true),
        None => (name, false),
    };
    let word = name.get(..5).filter(|w| w.eq_ignore_ascii_case("think"))?;
    let rest = name[word.len()..]
        .trim_start_matches(' ')
        .strip_prefix('>')?;
    Some((text.len() - rest.len(), closes))
}

/// The content of the last `<answer>` that is not empty, up to its end tag or the end. Err where two of them differ; None
/// without one.
pub fn answer_tags(text: &str) -> Option<std::result::Result<&str, &str>> {
    const OPEN: &str = "<answer>";
    let mut found: Option<&str> = None;
    let mut differ = false;
    let mut rest = text;
    let mut closes = true;
    while let Some(at) = rest.find(OPEN) {
        rest = &rest[at + OPEN.len()..];
        let next = rest.find(OPEN).unwrap_or(rest.len());
        let end = if closes { rest.find("</answer>") } else { None };
        closes = end.is_some();
        let end = end.unwrap_or(rest.len());
        let content = rest[..end.min(next)].trim();
        if !content.is_empty() {
            differ |= found.is_some_and(|earlier| earlier != content);
            found = Some(content);
        }
        rest = &rest[end.min(next)..];
    }
    found.map(|content| if differ { Err(content) } else { Ok(content) })
}

/// The content of the last `\boxed{...}` whose braces close. Of a box in a box it is the inner one.
pub fn extract_boxed(text: &str) -> Option<&str> {
    const COMMAND: &str = "\\boxed";
    let bytes = text.as_bytes();
    // one entry an open brace: where the content begins, and whether the brace belongs to a box
    let mut open: Vec<(usize, bool)> = Vec::new();
    let mut best: Option<(usize, usize)> = None;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if text[at..].starts_with(COMMAND) => {
                at += COMMAND.len();
                while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
                    at += 1;
                }
                if bytes.get(at) == Some(&b'{') {
                    at += 1;
                    open.push((at, true));
                }
            }
            // `\{` and `\}` are characters, and so is whatever else follows a backslash; stay on character boundaries
            // (but a doubled backslash before a box is somebody's escaping)
            b'\\' if bytes.get(at + 1).is_some_and(u8::is_ascii) => {
                at += if text[at + 1..].starts_with(COMMAND) {
                    1
                } else {
                    2
                };
            }
            b'{' => {
                at += 1;
                open.push((at, false));
            }
            b'}' => {
                if let Some((start, true)) = open.pop()
                    && best.is_none_or(|(earlier, _)| start > earlier)
                {
                    best = Some((start, at));
                }
                at += 1;
            }
            _ => at += 1,
        }
    }
    best.map(|(start, end)| &text[start..end])
}

/// The answer in a gold field: what follows `####` (GSM8K), the last box of a worked solution, or the field itself.
pub fn gold_answer(gold: &str) -> &str {
    let gold = match gold.rfind("####") {
        Some(at) => &gold[at + 4..],
        None => extract_boxed(gold).unwrap_or(gold),
    };
    gold.trim()
}

/// LaTeX without what does not change its meaning: spaces, `\left` and `\right`, display fractions, fonts, dollar, degree
/// and percent signs, braces around a single character, and a full stop at the end.
pub fn normalise(text: &str) -> String {
    /// What to write instead; a font command also loses the braces of its argument.
    const REPLACED: [(&str, &str); 16] = [
        ("\\left", ""),
        ("\\right", ""),
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("{,}", ","),
        ("\\%", ""),
        ("\\$", ""),
        ("\\!", ""),
        ("\\,", ""),
        ("\\;", ""),
        ("\\:", ""),
        ("\\ ", ""),
        ("%", ""),
        ("$", ""),
    ];
    const FONTS: [&str; 6] = [
        "\\text",
        "\\textbf",
        "\\mathrm",
        "\\mathbf",
        "\\mbox",
        "\\operatorname",
    ];
    let mut out = String::with_capacity(text.len());
    // one entry an open brace: whether it is written
    let mut open: Vec<bool> = Vec::new();
    let mut rest = text.trim();
    'scan: while let Some(first) = rest.chars().next() {
        if first == '\\' || first == '^' || first == '{' || first == '%' || first == '$' {
            for (from, to) in REPLACED {
                if let Some(after) = strip_command(rest, from) {
                    out.push_str(to);
                    rest = after;
                    continue 'scan;
                }
            }
            for font in FONTS {
                if let Some(after) = strip_command(rest, font)
                    && let Some(after) = after.trim_start().strip_prefix('{')
                {
                    open.push(false);
                    rest = after;
                    continue 'scan;
                }
            }
        }
        rest = &rest[first.len_utf8()..];
        match first {
            '\\' if rest.starts_with(['{', '}']) => {
                out.push('\\');
                out.push_str(&rest[..1]);
                rest = &rest[1..];
            }
            '{' => {
                open.push(true);
                out.push('{');
            }
            '}' if open.pop().unwrap_or(true) => close_brace(&mut out),
            '}' => {}
            '−' => out.push('-'),
            c if c.is_whitespace() => {}
            c => out.push(c),
        }
    }
    out.trim_end_matches('.').to_string()
}

/// What follows `command` where `text` begins with it. A name ends where its letters end: `\leftarrow` is not `\left`.
fn strip_command<'a>(text: &'a str, command: &str) -> Option<&'a str> {
    let after = text.strip_prefix(command)?;
    let is_name = command.ends_with(|c: char| c.is_ascii_alphabetic());
    (!is_name || !after.starts_with(|c: char| c.is_ascii_alphabetic())).then_some(after)
}

/// Ends a group; around one character the braces go: `x^{2}` and `x^2`, `\frac{1}{2}` and `\frac12` are the same.
fn close_brace(out: &mut String) {
    let mut last = out.char_indices().rev();
    if let (Some((_, content)), Some((at, '{'))) = (last.next(), last.next())
        && !matches!(content, '{' | '}' | '\\')
        && last.next().is_none_or(|(_, before)| before != '\\')
    {
        out.truncate(at);
        out.push(content);
    } else {
        out.push('}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_stand_after_the_thinking() {
        let cases = [
            ("the answer is 4", Some("the answer is 4")),
            ("<think>\n2+2\n</think>\n4", Some("\n4")),
            // the template opened the thinking, the text only closes it
            ("2+2\n</think>\n4", Some("\n4")),
            ("<think>a</think>b<think>c</think>d", Some("d")),
            ("<think>it is \\boxed{4}", None),
            ("<think>a</think>b<think>c", None),
            ("<THINK>4", None),
            ("< think >4", None),
            ("<Think>a</ THINK >4", Some("4")),
            ("", Some("")),
        ];
        for (text, expected) in cases {
            assert_eq!(answer_part(text), expected, "{text:?}");
        }
    }

    #[test]
    fn boxes_are_found_by_their_braces() {
        let cases = [
            (r"\boxed{5}", Some("5")),
            (r"so \boxed{1} or rather \boxed{2}.", Some("2")),
            (r"$\boxed{\frac{1}{2}}$", Some(r"\frac{1}{2}")),
            (r"\boxed{\{1,2\}}", Some(r"\{1,2\}")),
            (r"\boxed {7}", Some("7")),
            (r"\boxed{\boxed{3}}", Some("3")),
            // the last one never closes: the one before it counts
            (r"\boxed{8} no, \boxed{9", Some("8")),
            (r"} {{ \boxed{4} {", Some("4")),
            (r"\boxed{é—数}", Some("é—数")),
            (r"\é \boxed{1}", Some("1")),
            (r"\\boxed{6}", Some("6")),
            (r"\boxed5", None),
            (r"\boxed", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(extract_boxed(text), expected, "{text:?}");
        }
    }

    #[test]
    fn hostile_nesting_takes_one_pass() {
        let text = r"\boxed{".repeat(300_000);
        assert_eq!(extract_boxed(&text), None);
        assert_eq!(normalise(&text).len(), text.len());
    }

    #[test]
    fn latex_is_made_comparable() {
        let same = [
            (r"\left(3, \frac{\pi}{2}\right)", r"(3,\frac{\pi}{2})"),
            (r"\dfrac{1}{2}", r"\frac12"),
            (r"\text{Evelyn}", "Evelyn"),
            (r"90^\circ", "90"),
            (r"x^{2} + 1.", "x^2+1"),
            (r"11\sqrt{2}", r"11\sqrt2"),
            (r"1{,}000", "1,000"),
            (r"\$12 \%", "12"),
        ];
        for (a, b) in same {
            assert_eq!(normalise(a), normalise(b), "{a:?} {b:?}");
        }
        let other = [
            (r"\frac{1}{23}", r"\frac{12}{3}"),
            (r"\leftarrow", "arrow"),
            (r"\{1\}", "1"),
            ("x^{21}", "x^21"),
        ];
        for (a, b) in other {
            assert_ne!(normalise(a), normalise(b), "{a:?} {b:?}");
        }
    }

    #[test]
    fn gold_fields_come_in_three_forms() {
        let cases = [
            ("18", "18"),
            ("9 * 2 = $<<9*2=18>>18 every day.\n#### 18", "18"),
            (r"We get $\boxed{\frac{1}{3}}$.", r"\frac{1}{3}"),
        ];
        for (gold, expected) in cases {
            assert_eq!(gold_answer(gold), expected);
        }
    }
}
