//! The metadata at the top of a card, read as far as cards go: maps, lists, scalars, texts over several lines. What is not
//! understood is an error, so that a card with odd YAML is noticed.

use serde_json::{Map, Value, json};

/// What stands between the two `---` at the top; null where there is nothing.
pub fn front_matter(card: &str) -> Result<Value, String> {
    let Some(rest) = card.strip_prefix("---\n") else {
        return Ok(Value::Null);
    };
    let end = rest.find("\n---").ok_or("the metadata has no end")?;
    let after = &rest[end + 4..];
    if !(after.is_empty() || after.starts_with('\n')) {
        return Err("the metadata has no end".into());
    }
    parse(&rest[..end])
}

pub fn parse(text: &str) -> Result<Value, String> {
    let lines: Vec<Line> = text
        .lines()
        .map(|line| Line {
            indent: line.len() - line.trim_start_matches(' ').len(),
            text: line.trim(),
            raw: line,
        })
        .collect();
    let mut reader = Reader { lines, at: 0 };
    let value = reader.block(0)?;
    match reader.next() {
        Some(line) => Err(format!("`{}` is not where it should be", line.text)),
        None => Ok(value),
    }
}

#[derive(Clone, Copy)]
struct Line<'a> {
    indent: usize,
    text: &'a str,
    raw: &'a str,
}

struct Reader<'a> {
    lines: Vec<Line<'a>>,
    at: usize,
}

impl<'a> Reader<'a> {
    /// The next line that says something.
    fn next(&mut self) -> Option<Line<'a>> {
        while let Some(line) = self.lines.get(self.at) {
            if !line.text.is_empty() && !line.text.starts_with('#') {
                return Some(*line);
            }
            self.at += 1;
        }
        None
    }

    /// A map, list or scalar whose lines begin at `indent` or deeper.
    fn block(&mut self, indent: usize) -> Result<Value, String> {
        match self.next() {
            Some(line) if line.indent >= indent => {
                if line.text.starts_with('\t') {
                    Err("a tab where spaces should be".into())
                } else if is_item(line.text) {
                    self.list(line.indent)
                } else if split_key(line.text)?.is_some() {
                    self.map(line.indent)
                } else {
                    self.at += 1;
                    scalar(line.text)
                }
            }
            _ => Ok(Value::Null),
        }
    }

    fn list(&mut self, indent: usize) -> Result<Value, String> {
        let mut items = Vec::new();
        while let Some(line) = self.next() {
            if line.indent != indent || !is_item(line.text) {
                break;
            }
            let rest = line.text[1..].trim_start();
            if rest.is_empty() {
                self.at += 1;
                items.push(self.block(indent + 1)?);
                continue;
            }
            // what follows the dash is a block of its own, as deep as it begins
            let inner = indent + line.text.len() - rest.len();
            self.lines[self.at] = Line {
                indent: inner,
                text: rest,
                raw: line.raw,
            };
            items.push(self.block(inner)?);
        }
        Ok(items.into())
    }

    fn map(&mut self, indent: usize) -> Result<Value, String> {
        let mut map = Map::new();
        while let Some(line) = self.next() {
            if line.indent < indent || is_item(line.text) && line.indent == indent {
                break;
            }
            if line.indent > indent {
                return Err(format!("`{}` is too deep", line.text));
            }
            let Some((key, rest)) = split_key(line.text)? else {
                return Err(format!("`{}` has no key", line.text));
            };
            self.at += 1;
            let value = if rest.is_empty() {
                match self.next() {
                    // a list may begin as far left as its key
                    Some(next) if next.indent == indent && is_item(next.text) => {
                        self.list(indent)?
                    }
                    _ => self.block(indent + 1)?,
                }
            } else if matches!(rest, "|" | "|-" | ">" | ">-") {
                self.long_text(indent, rest)
            } else {
                scalar(rest)?
            };
            if map.insert(key.clone(), value).is_some() {
                return Err(format!("duplicated mapping key `{key}`"));
            }
        }
        Ok(map.into())
    }

    fn long_text(&mut self, indent: usize, style: &str) -> Value {
        let mut lines = Vec::new();
        let mut depth = None;
        while let Some(line) = self.lines.get(self.at) {
            if !line.text.is_empty() && line.indent <= indent {
                break;
            }
            let depth = *depth.get_or_insert(line.indent);
            lines.push(line.raw.get(depth..).unwrap_or_default());
            self.at += 1;
        }
        let joint = if style.starts_with('|') { "\n" } else { " " };
        let text = lines.join(joint).trim_end().to_string();
        json!(if style.ends_with('-') {
            text
        } else {
            text + "\n"
        })
    }
}

fn is_item(text: &str) -> bool {
    text == "-" || text.starts_with("- ")
}

/// `key: rest`; `None` where the line is no entry of a map.
fn split_key(text: &str) -> Result<Option<(String, &str)>, String> {
    if let Some(quote) = text.chars().next().filter(|c| matches!(c, '"' | '\'')) {
        let Some(end) = text[1..].find(quote) else {
            return Err(format!("`{text}` has no closing quote"));
        };
        let (key, rest) = text[1..].split_at(end);
        let rest = rest[1..].strip_prefix(':');
        return Ok(rest.map(|rest| (key.into(), rest.trim())));
    }
    if text.starts_with(['[', '{']) {
        return Ok(None);
    }
    let at = text.find(": ").or(text.strip_suffix(':').map(str::len));
    Ok(at.map(|at| (text[..at].trim().to_string(), text[at + 1..].trim())))
}

fn scalar(text: &str) -> Result<Value, String> {
    let bad = || format!("`{text}` cannot be read");
    if let Some(rest) = text.strip_prefix('"') {
        let end = rest.find(" #").map_or(text.len(), |i| i + 1);
        return serde_json::from_str(text[..end].trim()).map_err(|_| bad());
    }
    if let Some(rest) = text.strip_prefix('\'') {
        let inner = rest.strip_suffix('\'').ok_or_else(bad)?;
        return Ok(inner.replace("''", "'").into());
    }
    if let Some(rest) = text.strip_prefix('[') {
        let inner = rest.strip_suffix(']').ok_or_else(bad)?.trim();
        let items = inner.split(',').map(str::trim);
        return items.filter(|item| !item.is_empty()).map(scalar).collect();
    }
    if text == "{}" {
        return Ok(json!({}));
    }
    let text = text.split(" #").next().unwrap_or_default().trim();
    if text.starts_with(['@', '`', '%', '&', '*', '!', '{', '|', '>', '?']) || text.contains(": ") {
        return Err(bad());
    }
    Ok(match text {
        "true" | "True" => true.into(),
        "false" | "False" => false.into(),
        "null" | "~" | "" => Value::Null,
        _ => match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(n), _) => n.into(),
            (_, Ok(x)) if text.contains(|c: char| c.is_ascii_digit()) => json!(x),
            _ => text.into(),
        },
    })
}
