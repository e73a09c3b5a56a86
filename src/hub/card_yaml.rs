//! YAML as cards need it: JSON values in block style, so that every reader takes strings for strings and numbers for numbers.

use serde_json::Value;

/// Words that YAML 1.1 takes for something else than text.
const RESERVED: [&str; 10] = [
    "true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan",
];

/// A mapping or list in block style; nulls and empty parts of a mapping are left out.
pub fn to_yaml(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

fn block(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter().filter(|(_, value)| !is_empty(value)) {
                pad(indent, out);
                out.push_str(&string(key));
                out.push(':');
                child(value, indent, out);
            }
        }
        Value::Array(items) => {
            for item in items {
                pad(indent, out);
                out.push('-');
                match item {
                    Value::Object(_) | Value::Array(_) if !is_empty(item) => {
                        // the first line of a nested block stands beside the dash
                        let mut nested = String::new();
                        block(item, indent + 2, &mut nested);
                        out.push(' ');
                        out.push_str(nested.trim_start_matches(' '));
                    }
                    other => {
                        out.push(' ');
                        out.push_str(&scalar(other));
                        out.push('\n');
                    }
                }
            }
        }
        other => {
            out.push_str(&scalar(other));
            out.push('\n');
        }
    }
}

/// What follows `key:`.
fn child(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(_) => {
            out.push('\n');
            block(value, indent + 2, out);
        }
        Value::Array(_) => {
            out.push('\n');
            block(value, indent, out);
        }
        other => {
            out.push(' ');
            out.push_str(&scalar(other));
            out.push('\n');
        }
    }
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
        _ => false,
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        Value::Number(number) => {
            // serde_json writes small numbers in one of two ways, depending on how it was compiled
            let text = match number.as_f64() {
                Some(value) if number.is_f64() => format!("{value:?}"),
                _ => number.to_string(),
            };
            // without a point and a sign, readers of YAML 1.1 take an exponent for text
            match text.split_once('e') {
                Some((mantissa, exponent)) => {
                    let point = if mantissa.contains('.') { "" } else { ".0" };
                    let sign = if exponent.starts_with('-') { "" } else { "+" };
                    format!(
                        "{mantissa}{point}e{sign}{}",
                        exponent.trim_start_matches('+')
                    )
                }
                None => text,
            }
        }
        Value::Object(_) => "{}".into(),
        Value::Array(_) => "[]".into(),
        other => other.to_string(),
    }
}

/// Plain where nothing can be misread, else in double quotes, whose escapes are those of JSON.
fn string(text: &str) -> String {
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && !RESERVED.contains(&text.to_ascii_lowercase().as_str());
    if is_plain {
        return text.to_string();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            // what YAML does not let stand as it is
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                quoted.push_str(&format!("\\u{:04x}", c as u32));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn blocks_lists_and_strings_that_could_be_misread() {
        let value = json!({
            "license": "llama3.1",
            "language": ["en", "no", "zh"],
            "base_model": "Qwen/Qwen2.5-Math-7B",
            "nothing": null,
            "empty": [],
            "model-index": [{"name": "a: b", "results": [
                {"task": {"type": "text-generation"}, "metrics": [{"value": 55.5, "verified": false}, {"value": 1e-7}]},
            ]}],
            "words": ["1e3", "", "- x", "#", "a\"b\\c", "two\nlines", "3.1", "数", "\u{1}"],
        });
        assert_eq!(
            to_yaml(&value),
            r##"license: llama3.1
language:
- en
- "no"
- zh
base_model: Qwen/Qwen2.5-Math-7B
model-index:
- name: "a: b"
  results:
  - task:
      type: text-generation
    metrics:
    - value: 55.5
      verified: false
    - value: 1.0e-7
words:
- "1e3"
- ""
- "- x"
- "#"
- "a\"b\\c"
- "two\nlines"
- "3.1"
- "数"
- "\u0001"
"##
        );
    }

    #[test]
    fn a_list_of_mappings_at_the_top() {
        let value = json!([{"dataset": {"id": "a/b", "task_id": "default"}, "value": 3}]);
        assert_eq!(
            to_yaml(&value),
            "- dataset:\n    id: a/b\n    task_id: default\n  value: 3\n"
        );
    }
}
