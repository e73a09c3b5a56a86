//! What chat templates take from Python: `json.dumps`, the whitespace of `str.strip`, `strftime`.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use std::ffi::CString;
use std::fmt::Write;

/// `str.isspace`: Unicode white space and the four separators U+001C to U+001F.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// Options of `json.dumps` as transformers' `tojson` filter hands them on.
pub struct JsonStyle {
    ensure_ascii: bool,
    /// One level of indentation; `None` keeps everything on one line.
    indent: Option<String>,
    between_items: String,
    after_key: String,
    sort_keys: bool,
}

impl JsonStyle {
    /// Reads `tojson`'s arguments: `ensure_ascii`, `indent`, `separators`, `sort_keys`, in this order or by name.
    pub fn from_args(positional: &[Value], named: &Kwargs) -> Result<Self, Error> {
        let argument = |index: usize, name: &str| -> Result<Option<Value>, Error> {
            let value = match positional.get(index) {
                Some(value) => Some(value.clone()),
                None if named.has(name) => Some(named.get::<Value>(name)?),
                None => None,
            };
            Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
        };
        let indent = argument(1, "indent")?
            .map(|indent| match indent.as_str() {
                Some(text) => Ok(text.to_string()),
                None => i64::try_from(indent).map(|width| " ".repeat(width.clamp(0, 64) as usize)),
            })
            .transpose()?;
        let (between_items, after_key) = match argument(2, "separators")? {
            Some(pair) => (text_at(&pair, 0)?, text_at(&pair, 1)?),
            None => (
                if indent.is_some() { "," } else { ", " }.to_string(),
                ": ".to_string(),
            ),
        };
        let style = Self {
            ensure_ascii: argument(0, "ensure_ascii")?.is_some_and(|v| v.is_true()),
            indent,
            between_items,
            after_key,
            sort_keys: argument(3, "sort_keys")?.is_some_and(|v| v.is_true()),
        };
        named.assert_all_used()?;
        Ok(style)
    }

    /// `json.dumps(value)`.
    pub fn dumps(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(&mut out, value, 0)?;
        Ok(out)
    }

    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
            ValueKind::Number => out.push_str(&float(f64::try_from(value.clone())?)),
            ValueKind::String => self.write_text(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_group(out, ['[', ']'], items.len(), depth, |out, index| {
                    self.write(out, &items[index], depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_group(out, ['{', '}'], keys.len(), depth, |out, index| {
                    let key = &keys[index];
                    match key.as_str() {
                        Some(text) => self.write_text(out, text),
                        None => {
                            let mut text = String::new();
                            self.write(&mut text, key, 0)?;
                            self.write_text(out, &text);
                        }
                    }
                    out.push_str(&self.after_key);
                    self.write(out, &value.get_item(key)?, depth + 1)
                })?;
            }
            kind => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("a value of type {kind} is not JSON serializable"),
                ));
            }
        }
        Ok(())
    }

    fn write_group(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        len: usize,
        depth: usize,
        mut item: impl FnMut(&mut String, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let new_line = |out: &mut String, depth: usize| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(open);
        for index in 0..len {
            if index > 0 {
                out.push_str(&self.between_items);
            }
            new_line(out, depth + 1);
            item(out, index)?;
        }
        if len > 0 {
            new_line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn write_text(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // writing to a String cannot fail
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn text_at(pair: &Value, index: usize) -> Result<String, Error> {
    let item = pair.get_item_by_index(index)?;
    item.as_str().map(str::to_string).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidOperation,
            "`separators` is not a pair of strings",
        )
    })
}

/// `repr` of a float as `json.dumps` writes it.
fn float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    // the shortest digits, and the exponent from the same magnitudes on as in Python; only its form differs
    let text = format!("{x:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => {
            let (sign, size) = match exponent.strip_prefix('-') {
                Some(size) => ('-', size),
                None => ('+', exponent),
            };
            format!(
                "{}e{sign}{size:0>2}",
                digits.strip_suffix(".0").unwrap_or(digits)
            )
        }
    }
}

/// `datetime.now().strftime(format)`: the local time of this moment.
pub fn strftime_now(format: &str) -> Result<String, Error> {
    let unusable =
        |why: &str| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {why}"));
    if format.is_empty() {
        return Ok(String::new());
    }
    let format = CString::new(format).map_err(|_| unusable("the format holds a zero byte"))?;
    let mut buffer = vec![0u8; 1024];
    // SAFETY: `tm` is plain data that localtime_r fills; strftime writes at most `buffer.len()` bytes and `format` ends
    // with a zero byte.
    let len = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut parts: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&now, &mut parts).is_null() {
            return Err(unusable("the system has no local time"));
        }
        libc::strftime(
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            format.as_ptr(),
            &parts,
        )
    };
    buffer.truncate(len);
    String::from_utf8(buffer).map_err(|_| unusable("the locale's text is no UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dumps(json: &str, named: Vec<(&str, Value)>) -> String {
        let value = super::super::template::json_value(&serde_json::from_str(json).unwrap());
        JsonStyle::from_args(&[], &named.into_iter().collect())
            .unwrap()
            .dumps(&value)
            .unwrap()
    }

    /// Expected strings from CPython 3.11's `json.dumps(..., ensure_ascii=False)`.
    #[test]
    fn dumps_as_python() {
        let json = r#"{"b":[1,-2.5,true,null,"<a href=\"x\">&'é😀\u0001\n"],"a":{},"c":[]}"#;
        assert_eq!(
            dumps(json, vec![]),
            r#"{"b": [1, -2.5, true, null, "<a href=\"x\">&'é😀\u0001\n"], "a": {}, "c": []}"#
        );
        assert_eq!(
            dumps(
                r#"{"b":[1,{"x":2}],"a":{},"c":[]}"#,
                vec![("indent", Value::from(2))]
            ),
            "{\n  \"b\": [\n    1,\n    {\n      \"x\": 2\n    }\n  ],\n  \"a\": {},\n  \"c\": []\n}"
        );
        assert_eq!(
            dumps(
                r#"{"b":"é😀","a":1}"#,
                vec![
                    ("ensure_ascii", Value::from(true)),
                    ("sort_keys", Value::from(true))
                ]
            ),
            r#"{"a": 1, "b": "\u00e9\ud83d\ude00"}"#
        );
        let separators = Value::from(vec![Value::from(","), Value::from(":")]);
        assert_eq!(
            dumps(r#"{"a":[1,2]}"#, vec![("separators", separators)]),
            r#"{"a":[1,2]}"#
        );
        let numbers = "[1e16,1.5e-7,123456789012345.0,0.0001,0.00001,-0.0,1e100,9007199254740993,18446744073709551615]";
        assert_eq!(
            dumps(numbers, vec![]),
            "[1e+16, 1.5e-07, 123456789012345.0, 0.0001, 1e-05, -0.0, 1e+100, 9007199254740993, 18446744073709551615]"
        );
    }

    #[test]
    fn undefined_is_an_error() {
        let style =
            JsonStyle::from_args(&[], &Kwargs::from_iter(Vec::<(&str, Value)>::new())).unwrap();
        assert!(
            style
                .dumps(&Value::UNDEFINED)
                .unwrap_err()
                .to_string()
                .contains("not JSON serializable")
        );
    }

    #[test]
    fn the_year_has_four_digits() {
        let year = strftime_now("%Y").unwrap();
        assert!(year.len() == 4 && year.as_str() > "2024", "{year}");
        assert_eq!(strftime_now("100%%").unwrap(), "100%");
        assert_eq!(strftime_now("").unwrap(), "");
    }

    #[test]
    fn spaces_of_python() {
        assert!(
            "\u{1c}\u{1f}\u{85}\u{a0}\u{3000} \t\n"
                .chars()
                .all(is_space)
        );
        assert!(!"\u{200b}\u{feff}a\u{1b}".chars().any(is_space));
    }
}
