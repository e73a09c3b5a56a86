//! JSON lines in and out: rows with their line numbers, and rows with fields added.
//!
//! A row is kept as it was written: what is added goes in before its closing brace, so that numbers, the order of fields
//! and fields nobody knows come out as they went in.

use crate::tokenize::Message;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// One line of a file.
#[derive(Clone, Debug)]
pub struct Row {
    /// Counted from 1, blank lines included.
    pub line: usize,
    /// The object as it was written.
    pub raw: String,
    pub fields: Map<String, Value>,
}

impl Row {
    /// Parses one line; `place` names the file.
    pub fn parse(bytes: &[u8], line: usize, place: &Path) -> Result<Self> {
        let at = || format!("`{}` line {line}", place.display());
        let text = std::str::from_utf8(bytes).map_err(|e| {
            Error::input(format!(
                "{} is not valid UTF-8 at byte {}",
                at(),
                e.valid_up_to() + 1
            ))
        })?;
        let value: Value = serde_json::from_str(text).map_err(|e| {
            // serde_json counts lines within the row, which is always the first
            let why = e.to_string();
            let why = why.split(" at line ").next().unwrap_or_default();
            Error::input(format!("{} column {}: {why}", at(), e.column()))
                .with_hint("every line must hold one JSON object")
        })?;
        match value {
            Value::Object(fields) => Ok(Self {
                line,
                raw: text.trim().to_string(),
                fields,
            }),
            _ => Err(Error::input(format!("{} is no JSON object", at()))
                .with_hint("every line must hold one JSON object")),
        }
    }

    /// The line of the row with `added` (names and JSON) at its end, in place of fields of those names.
    pub fn with(&self, added: &[(&str, String)]) -> String {
        let is_added = |name: &str| added.iter().any(|(other, _)| *other == name);
        let mut line = if self.fields.keys().any(|name| is_added(name)) {
            self.without(&is_added)
        } else {
            self.raw.clone()
        };
        line.pop();
        let mut is_empty = line.trim_end().ends_with('{') && line.trim_end().len() == 1;
        for (name, json) in added {
            if !is_empty {
                line.push(',');
            }
            is_empty = false;
            line += &format!("\"{name}\":{json}");
        }
        line.push('}');
        line
    }

    /// The row as it was written, without some of its fields.
    fn without(&self, is_left_out: &impl Fn(&str) -> bool) -> String {
        let kept: Vec<&str> = fields(&self.raw)
            .into_iter()
            .filter(|(name, _)| !is_left_out(name))
            .map(|(_, text)| text)
            .collect();
        format!("{{{}}}", kept.join(","))
    }

    /// Whether the field is there; null is as good as absent, as tables write it.
    pub fn has(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(|value| !value.is_null())
    }

    /// The field `name` as `T`; none where it is absent or null.
    ///
    /// # Errors
    /// It is something else; the message names `place`, line and field.
    pub fn get<T: for<'a> Deserialize<'a>>(&self, name: &str, place: &Path) -> Result<Option<T>> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value)
                .map(Some)
                .map_err(|e| self.error(place, &format!("`{name}`: {e}"))),
        }
    }

    /// The field `messages`.
    pub fn messages(&self, place: &Path) -> Result<Option<Vec<Message>>> {
        self.get("messages", place)
    }

    /// None of the fields that a command reads is there.
    pub fn no_field_of(&self, wanted: &str, place: &Path) -> Error {
        let name = |(name, value): (&String, &Value)| match value.is_null() {
            true => format!("`{name}` (null)"),
            false => format!("`{name}`"),
        };
        let names: Vec<_> = self.fields.iter().map(name).collect();
        let found = match names.is_empty() {
            true => "nothing".to_string(),
            false => names.join(", "),
        };
        self.error(place, &format!("no {wanted}; the row has {found}"))
    }

    /// What is wrong with this row.
    pub fn error(&self, place: &Path, what: &str) -> Error {
        Error::input(format!("`{}` line {}: {what}", place.display(), self.line))
    }
}

/// The fields of a JSON object: name, and the text `"name": value` as it was written.
fn fields(object: &str) -> Vec<(String, &str)> {
    let inside = object.trim();
    let inside = inside.strip_prefix('{').unwrap_or(inside);
    let inside = inside.strip_suffix('}').unwrap_or(inside);
    let (mut fields, mut start, mut colon) = (Vec::new(), 0, None);
    let (mut depth, mut in_string, mut is_escaped) = (0, false, false);
    let ends = inside.bytes().map(Some).chain([None]).enumerate();
    for (at, byte) in ends {
        match byte {
            _ if is_escaped => is_escaped = false,
            Some(b'\\') if in_string => is_escaped = true,
            Some(b'"') => in_string = !in_string,
            Some(_) if in_string => {}
            Some(b'{' | b'[') => depth += 1,
            Some(b'}' | b']') => depth -= 1,
            Some(b':') if depth == 0 => colon = colon.or(Some(at)),
            Some(b',') | None if depth == 0 => {
                if let Some(colon) = colon.take()
                    && let Ok(name) = serde_json::from_str(&inside[start..colon])
                {
                    fields.push((name, inside[start..at].trim()));
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    fields
}

/// The rows of a file, one after the other; blank lines are passed over.
pub struct Rows {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    line: usize,
    buffer: Vec<u8>,
}

impl Rows {
    /// Opens a JSON lines file; `-` is stdin.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let reader: Box<dyn BufRead> = if is_standard(path) {
            Box::new(std::io::stdin().lock())
        } else {
            let file = File::open(path).map_err(|e| Error::io("opening", path, e))?;
            Box::new(BufReader::with_capacity(1 << 20, file))
        };
        Ok(Self {
            path: place(path).to_path_buf(),
            reader,
            line: 0,
            buffer: Vec::new(),
        })
    }

    /// All rows of a file.
    ///
    /// # Errors
    /// As [`Rows::open`], and the first row that cannot be read.
    pub fn read_all(path: &Path) -> Result<Vec<Row>> {
        Self::open(path)?.collect()
    }

    /// What messages call the file.
    pub fn place(&self) -> &Path {
        &self.path
    }

    /// The next line that is not blank, with its number.
    pub fn line(&mut self) -> Result<Option<(usize, &[u8])>> {
        loop {
            self.buffer.clear();
            let n = self
                .reader
                .read_until(b'\n', &mut self.buffer)
                .map_err(|e| Error::io("reading", &self.path, e))?;
            if n == 0 {
                return Ok(None);
            }
            self.line += 1;
            let mut bytes = self.buffer.as_slice();
            if self.line == 1 {
                bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            }
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let start = self.buffer.len() - bytes.len();
            return Ok(Some((self.line, &self.buffer[start..])));
        }
    }

    fn read(&mut self) -> Result<Option<Row>> {
        let path = self.path.clone();
        match self.line()? {
            Some((line, bytes)) => Row::parse(bytes, line, &path).map(Some),
            None => Ok(None),
        }
    }
}

impl Iterator for Rows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        self.read().transpose()
    }
}

/// Whether `path` stands for stdin or stdout.
pub fn is_standard(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// What messages call an input.
fn place(path: &Path) -> &Path {
    if is_standard(path) {
        Path::new("stdin")
    } else {
        path
    }
}

/// A file of lines that appears under its name only once it is complete.
pub struct Beside {
    path: PathBuf,
    /// Where it is written meanwhile; none for what is no regular file, such as `/dev/stdout`.
    partial: Option<PathBuf>,
    file: BufWriter<Sink>,
}

enum Sink {
    File(File),
    Stdout(std::io::Stdout),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Stdout(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Stdout(out) => out.flush(),
        }
    }
}

impl Beside {
    /// Begins to write `path`; `-` is stdout.
    ///
    /// # Errors
    /// Its folder does not exist or cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        if is_standard(path) {
            return Ok(Self {
                path: PathBuf::from(super::stdout::NAME),
                partial: None,
                file: BufWriter::new(Sink::Stdout(std::io::stdout())),
            });
        }
        let is_special = std::fs::metadata(path).is_ok_and(|m| !m.is_file());
        let partial = (!is_special).then(|| {
            let mut name = path.as_os_str().to_os_string();
            name.push(".partial");
            PathBuf::from(name)
        });
        let file = match &partial {
            Some(partial) => File::create(partial),
            None => File::options().write(true).open(path),
        };
        Ok(Self {
            path: path.to_path_buf(),
            partial,
            file: BufWriter::new(Sink::File(
                file.map_err(|e| Error::io("creating", path, e))?,
            )),
        })
    }

    /// Appends a line.
    pub fn line(&mut self, line: &str) -> Result<()> {
        writeln!(self.file, "{line}").map_err(|e| Error::io("writing", &self.path, e))
    }

    /// Puts the file in its place.
    pub fn finish(mut self) -> Result<()> {
        let mut write = || {
            self.file.flush()?;
            if let (Some(partial), Sink::File(file)) = (&self.partial, self.file.get_ref()) {
                file.sync_all()?;
                std::fs::rename(partial, &self.path)?;
            }
            Ok(())
        };
        let done = write().map_err(|e| Error::io("writing", &self.path, e));
        self.partial = self.partial.take().filter(|_| done.is_err());
        done
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            // half a file is of no use to anybody
            let _ = std::fs::remove_file(partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(bytes: &[u8]) -> Result<Vec<Row>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.jsonl");
        std::fs::write(&path, bytes).unwrap();
        Rows::read_all(&path).map_err(|e| {
            let text = e
                .to_string()
                .replace(&format!("{}/", dir.path().display()), "");
            Error::input(text)
        })
    }

    #[test]
    fn rows_keep_their_lines_and_their_text() {
        let rows = rows(b"\xef\xbb\xbf{\"a\": 1e400000000000000000000e}\n").unwrap_err();
        assert!(
            rows.to_string().starts_with("`r.jsonl` line 1 column"),
            "{rows}"
        );
        let rows = self::rows(b"{\"a\": 1.50}\r\n\n  {\"b\":\"\xc3\xa9\"}").unwrap();
        assert_eq!(
            rows[0].with(&[("x", "[1]".into())]),
            "{\"a\": 1.50,\"x\":[1]}"
        );
        assert_eq!((rows[1].line, rows[1].raw.as_str()), (3, "{\"b\":\"é\"}"));
    }

    #[test]
    fn added_fields_replace_those_of_their_name() {
        let rows = rows(b"{ }\n{\"x\":0,\"o\":{\"k\":{}}}\n").unwrap();
        let added = [("x", "1".to_string()), ("y", "null".to_string())];
        assert_eq!(rows[0].with(&added), "{ \"x\":1,\"y\":null}");
        assert_eq!(
            rows[1].with(&added),
            "{\"o\":{\"k\":{}},\"x\":1,\"y\":null}"
        );
    }

    #[test]
    fn fields_are_cut_as_they_were_written() {
        let row = r#"{"a" : 1.50, "b\"\u00e9,{": [1,{"c":","}] ,"d":"}\\","e":{"f":[]},"g":12345678901234567890123}"#;
        let found = fields(row);
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b\"é,{", "d", "e", "g"]);
        assert_eq!(found[0].1, r#""a" : 1.50"#);
        assert_eq!(found[2].1, r#""d":"}\\""#);
        assert_eq!(found[4].1, r#""g":12345678901234567890123"#);
        assert!(fields("{ }").is_empty());
    }

    #[test]
    fn a_bad_row_names_its_line() {
        for (bytes, want) in [
            (
                &b"{}\n{\"a\":}\n"[..],
                "`r.jsonl` line 2 column 6: expected value",
            ),
            (b"{}\n[1]\n", "`r.jsonl` line 2 is no JSON object"),
            (
                b"{}\n\n{\"a\":\"\xff\"}",
                "`r.jsonl` line 3 is not valid UTF-8 at byte 7",
            ),
            (
                b"{\"a\":\"b",
                "`r.jsonl` line 1 column 7: EOF while parsing a string",
            ),
        ] {
            assert_eq!(rows(bytes).unwrap_err().to_string(), want);
        }
        let e = Rows::read_all(Path::new("/no/rows"))
            .unwrap_err()
            .to_string();
        assert!(e.starts_with("opening `/no/rows`: No such file"), "{e}");
    }

    #[test]
    fn wrong_types_name_line_and_field() {
        let rows = rows(b"\n{\"text\":3,\"b\":1}").unwrap();
        let place = Path::new("r");
        let e = rows[0].get::<String>("text", place).unwrap_err();
        assert_eq!(
            e.to_string(),
            "`r` line 2: `text`: invalid type: integer `3`, expected a string"
        );
        assert_eq!(rows[0].get::<String>("c", place).unwrap(), None);
        let e = rows[0].no_field_of("`prompt`", place);
        assert_eq!(
            e.to_string(),
            "`r` line 2: no `prompt`; the row has `text`, `b`"
        );
    }

    #[test]
    fn a_file_appears_once_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o.jsonl");
        let mut half = Beside::create(&path).unwrap();
        half.line("{}").unwrap();
        assert!(!path.exists());
        drop(half);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut whole = Beside::create(&path).unwrap();
        whole.line("{}").unwrap();
        whole.finish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let mut full = Beside::create(Path::new("/dev/full")).unwrap();
        full.line("{}").unwrap();
        let e = full.finish().unwrap_err().to_string();
        assert!(e.starts_with("writing `/dev/full`: No space left"), "{e}");
    }
}
