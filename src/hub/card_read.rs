//! `configs` of a data set's card, which say what files belong to which config and split, read from a cached README.md: the
//! Hub gives them as JSON, and without network nobody does. Of YAML as much as such a list takes; what is beyond it is no
//! list at all, and the files are chosen by their names.

use serde_json::{Map, Value, json};

/// Deeper nesting is no card.
const MAX_DEPTH: usize = 16;

/// `{"configs": [...]}` as the Hub has it; `None` where the card has none that can be read.
pub fn configs(card: &str) -> Option<Value> {
    let text = card.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let rest = text.strip_prefix("---\n")?;
    let metadata = &rest[..rest.find("\n---")? + 1];
    // only these lines: what the others hold need not be understood
    let mut lines = metadata.lines().skip_while(|line| {
        let key = line.strip_prefix("configs:");
        !key.is_some_and(|rest| without_comment(rest).trim().is_empty())
    });
    lines.next()?;
    let is_inside = |line: &&str| {
        line.starts_with([' ', '-', '#']) && !line.starts_with("---") || line.trim().is_empty()
    };
    let lines = lines.take_while(is_inside).map(without_comment);
    let lines = lines
        .filter(|line| !line.trim().is_empty())
        .map(|line| Line {
            indent: line.len() - line.trim_start_matches(' ').len(),
            text: line.trim(),
        });
    let mut reader = Reader {
        lines: lines.collect(),
        at: 0,
    };
    let first = reader.peek()?;
    let list = reader.list(first.indent, 0)?;
    (reader.peek().is_none() && list.is_array()).then(|| json!({ "configs": list }))
}

/// A comment begins with ` #` or stands alone; within quotes there is none in any card.
fn without_comment(line: &str) -> &str {
    match line.find(" #") {
        _ if line.starts_with('#') => "",
        Some(at) => &line[..at],
        None => line,
    }
}

#[derive(Clone, Copy)]
struct Line<'a> {
    indent: usize,
    text: &'a str,
}

struct Reader<'a> {
    lines: Vec<Line<'a>>,
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<Line<'a>> {
        self.lines.get(self.at).copied()
    }

    /// What begins on the next line.
    fn block(&mut self, depth: usize) -> Option<Value> {
        let line = self.peek()?;
        if depth > MAX_DEPTH {
            return None;
        }
        if is_item(line.text) {
            self.list(line.indent, depth)
        } else if entry(line.text).is_some() {
            self.map(line.indent, depth)
        } else {
            self.at += 1;
            scalar(line.text)
        }
    }

    fn list(&mut self, indent: usize, depth: usize) -> Option<Value> {
        let mut items = Vec::new();
        while let Some(line) = self.peek() {
            if line.indent != indent || !is_item(line.text) {
                break;
            }
            let rest = line.text[1..].trim_start();
            if rest.is_empty() {
                self.at += 1;
            } else {
                // what follows the dash is a block of its own, as deep as it begins
                let indent = indent + line.text.len() - rest.len();
                self.lines[self.at] = Line { indent, text: rest };
            }
            items.push(self.block(depth + 1)?);
        }
        Some(items.into())
    }

    fn map(&mut self, indent: usize, depth: usize) -> Option<Value> {
        let mut map = Map::new();
        while let Some(line) = self.peek() {
            if line.indent < indent || is_item(line.text) && line.indent == indent {
                break;
            }
            let (key, rest) = entry(line.text).filter(|_| line.indent == indent)?;
            self.at += 1;
            let value = match (rest, self.peek()) {
                // a list may begin as far left as its key
                ("", Some(next)) if next.indent > indent => self.block(depth + 1)?,
                ("", Some(next)) if next.indent == indent && is_item(next.text) => {
                    self.list(indent, depth + 1)?
                }
                (rest, _) => scalar(rest)?,
            };
            map.insert(key, value);
        }
        Some(map.into())
    }
}

fn is_item(text: &str) -> bool {
    text == "-" || text.starts_with("- ")
}

/// `key: rest` or `key:`.
fn entry(text: &str) -> Option<(String, &str)> {
    let at = text.find(": ").or(text.strip_suffix(':').map(str::len))?;
    let key = text[..at].trim_matches(['"', '\'']);
    let is_key = key
        .chars()
        .all(|c| c.is_alphanumeric() || "_-. ".contains(c));
    is_key.then(|| (key.to_string(), text[at + 1..].trim()))
}

fn scalar(text: &str) -> Option<Value> {
    if let Some(inner) = text.strip_prefix('[') {
        let items = inner.strip_suffix(']')?.split(',').map(str::trim);
        return items.filter(|item| !item.is_empty()).map(scalar).collect();
    }
    if text.starts_with('"') {
        return serde_json::from_str(text).ok();
    }
    if let Some(inner) = text.strip_prefix('\'') {
        return Some(inner.strip_suffix('\'')?.replace("''", "'").into());
    }
    // anchors, references, maps in one line, texts over several
    if text.starts_with(['&', '*', '!', '{', '|', '>', '@', '`', '%']) && !text.starts_with("**") {
        return (text.starts_with('*') && text.contains(['.', '/'])).then(|| text.into());
    }
    Some(match text {
        "true" | "True" => true.into(),
        "false" | "False" => false.into(),
        "null" | "~" | "" => Value::Null,
        text => text.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configs_as_cards_write_them() {
        let card = "---\nlicense: &x\n  - {a: b}\nconfigs:  # of files\n- config_name: all\n  default: true\n  data_files:\n  - split: train\n    path: all/train-*\n  - split: test\n    path:\n    - \"all/a b-*\"\n    - 'it''s'\n- config_name: v1.0\n  data_files: [a.jsonl, b/**]\n  data_dir: x # here\ntags:\n- a\n---\ntext";
        let want = json!({"configs": [
            {"config_name": "all", "default": true, "data_files": [
                {"split": "train", "path": "all/train-*"},
                {"split": "test", "path": ["all/a b-*", "it's"]},
            ]},
            {"config_name": "v1.0", "data_files": ["a.jsonl", "b/**"], "data_dir": "x"},
        ]});
        assert_eq!(configs(card).unwrap(), want);
        assert_eq!(configs(&card.replace('\n', "\r\n")).unwrap(), want);
        let indented = "---\nconfigs:\n  - config_name: a\n    data_files:\n      - split: train\n        path: \"*.parquet\"\n---\n";
        assert_eq!(
            configs(indented).unwrap()["configs"][0]["data_files"][0]["path"],
            "*.parquet"
        );
    }

    #[test]
    fn what_is_no_list_of_configs_is_none() {
        for card in [
            "",
            "# no metadata",
            "---\nlicense: mit\n---\n",
            "---\nconfigs: all\n---\n",
            "---\nconfigs:\n---\n",
            "---\nconfigs:\n- config_name: a\n",
            "---\nconfigs:\n- config_name: |\n    a\n---\n",
            "---\nconfigs:\n  a: b\n---\n",
            "---\nconfigs:\n- a: [\n---\n",
        ] {
            let found = configs(card);
            assert!(
                found.is_none() || found == Some(json!({"configs": []})),
                "{card:?}: {found:?}"
            );
        }
        // nested beyond any card
        let deep = format!("---\nconfigs:\n{}x\n---\n", "- ".repeat(5000));
        assert_eq!(configs(&deep), None);
    }
}
