//! Files to rows, one at a time: JSON lines, JSON arrays, either of them in gzip or zstd; parquet is in [`super::parquet`].
//! Every error names the file and the row. What a row means is told in [`super::schema`].

use super::columns::{Values, kind};
use super::parquet::ParquetRows;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// A row and where it stands: `file.jsonl:17` or `file.parquet row 17`.
#[derive(Clone, Debug)]
pub struct Row {
    pub place: String,
    pub values: Values,
}

/// A row that cannot be read.
#[derive(Debug)]
pub struct BadRow {
    pub place: String,
    /// Names the place too.
    pub error: Box<Error>,
    /// Whether nothing more can be read from the file.
    pub fatal: bool,
}

/// The rows of a file; after a fatal one nothing comes.
pub type Rows = Box<dyn Iterator<Item = std::result::Result<Row, BadRow>> + Send>;

/// What a file holds, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Parquet,
    Lines,
    Json,
}

/// Opens a file of rows.
///
/// # Errors
/// A file that cannot be opened, is empty, or whose name does not say what it holds.
pub fn open(path: &Path) -> Result<Rows> {
    open_as(path, short_name(path))
}

/// The same where the places of the rows begin with `name`.
///
/// # Errors
/// As [`open`].
pub fn open_as(path: &Path, name: String) -> Result<Rows> {
    let (format, packed) = format(&short_name(path))?;
    let file = File::open(path).map_err(|e| Error::io("opening", path, e))?;
    let size = file
        .metadata()
        .map_err(|e| Error::io("reading", path, e))?
        .len();
    if size == 0 {
        return Err(Error::input(format!("`{}` is empty", path.display())));
    }
    let reader: Box<dyn Read + Send> = match packed {
        Packed::Not if format == Format::Parquet => {
            return Ok(Box::new(ParquetRows::open(path, &name, file)?));
        }
        Packed::Not => Box::new(file),
        Packed::Gzip => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file))),
        Packed::Zstd => {
            Box::new(zstd::Decoder::new(file).map_err(|e| Error::io("opening", path, e))?)
        }
    };
    let reader = BufReader::with_capacity(1 << 18, reader);
    Ok(match format {
        Format::Json => Box::new(Objects::new(reader, name)),
        _ => Box::new(Lines::new(reader, name)),
    })
}

/// The last part of a path, for naming rows.
pub fn short_name(path: &Path) -> String {
    match path.file_name() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => path.display().to_string(),
    }
}

/// Names that tell the files of a source apart: the last parts of their paths, as few as that takes.
pub fn names(paths: &[PathBuf]) -> Vec<String> {
    let parts: Vec<Vec<String>> = paths
        .iter()
        .map(|path| {
            let parts = path.components();
            parts.map(|part| part.as_os_str().to_string_lossy().into_owned())
        })
        .map(Iterator::collect)
        .collect();
    let deepest = parts.iter().map(Vec::len).max().unwrap_or(0);
    let named = |depth: usize| -> Vec<String> {
        parts
            .iter()
            .map(|parts| parts[parts.len().saturating_sub(depth)..].join("/"))
            .collect()
    };
    let distinct = |names: &[String]| names.iter().collect::<HashSet<_>>().len() == names.len();
    (1..=deepest)
        .map(named)
        .find(|names| distinct(names))
        .unwrap_or_else(|| paths.iter().map(|path| short_name(path)).collect())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packed {
    Not,
    Gzip,
    Zstd,
}

fn format(name: &str) -> Result<(Format, Packed)> {
    let lower = name.to_ascii_lowercase();
    let (stem, packed) = if let Some(stem) = lower.strip_suffix(".gz") {
        (stem, Packed::Gzip)
    } else if let Some(stem) = lower.strip_suffix(".zst") {
        (stem, Packed::Zstd)
    } else {
        (lower.as_str(), Packed::Not)
    };
    let format = match stem.rsplit_once('.').map(|(_, ending)| ending) {
        Some("parquet") if packed == Packed::Not => Format::Parquet,
        Some("jsonl" | "ndjson") => Format::Lines,
        Some("json") => Format::Json,
        _ => {
            return Err(Error::input(format!(
                "`{name}`: the name does not say what the file holds"
            ))
            .with_hint(
                "files of rows end in .parquet, .jsonl, .ndjson or .json, the last three also with .gz or .zst",
            ));
        }
    };
    Ok((format, packed))
}

/// One object a line; empty lines are passed over.
struct Lines<R> {
    reader: R,
    name: String,
    line: u64,
    buffer: Vec<u8>,
    done: bool,
}

impl<R: BufRead> Lines<R> {
    fn new(reader: R, name: String) -> Self {
        Self {
            reader,
            name,
            line: 0,
            buffer: Vec::new(),
            done: false,
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = std::result::Result<Row, BadRow>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            self.buffer.clear();
            self.line += 1;
            let place = || format!("{}:{}", self.name, self.line);
            match self.reader.read_until(b'\n', &mut self.buffer) {
                Ok(0) => self.done = true,
                Ok(_) => {
                    let bytes = match self.line {
                        1 => without_mark(&self.buffer),
                        _ => &self.buffer,
                    };
                    if !bytes.trim_ascii().is_empty() {
                        return Some(object(bytes, place()));
                    }
                }
                Err(error) => {
                    self.done = true;
                    return Some(Err(cut_short(&error, place())));
                }
            }
        }
        None
    }
}

/// The objects of an array, or objects one after the other, over any number of lines.
struct Objects<R> {
    reader: R,
    name: String,
    line: u64,
    buffer: Vec<u8>,
    /// Whether the file is one array; unknown before the first byte.
    array: Option<bool>,
    done: bool,
}

impl<R: BufRead> Objects<R> {
    fn new(reader: R, name: String) -> Self {
        Self {
            reader,
            name,
            line: 1,
            buffer: Vec::new(),
            array: None,
            done: false,
        }
    }

    fn byte(&mut self) -> io::Result<Option<u8>> {
        let byte = self.reader.fill_buf()?.first().copied();
        if let Some(byte) = byte {
            self.reader.consume(1);
            self.line += u64::from(byte == b'\n');
        }
        Ok(byte)
    }

    /// The bytes of the next value into the buffer and the line where it begins; None at the end.
    fn value(&mut self) -> io::Result<Option<u64>> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_string());
        self.buffer.clear();
        let first = loop {
            match self.byte()? {
                None if self.array == Some(true) => {
                    return Err(bad("the array does not end: the file is cut short"));
                }
                None => return Ok(None),
                Some(b' ' | b'\t' | b'\r' | b'\n' | b',' | 0xEF | 0xBB | 0xBF) => {}
                Some(b'[') if self.array.is_none() => self.array = Some(true),
                Some(b']') if self.array == Some(true) => return Ok(None),
                Some(byte) => break byte,
            }
        };
        self.array.get_or_insert(false);
        let start = self.line;
        if first != b'{' {
            return Err(bad("expected an object"));
        }
        self.buffer.push(first);
        let (mut depth, mut in_text, mut escaped) = (1usize, false, false);
        while depth > 0 {
            let Some(byte) = self.byte()? else {
                return Err(bad("the object does not end: the file is cut short"));
            };
            self.buffer.push(byte);
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_text => escaped = true,
                b'"' => in_text = !in_text,
                b'{' | b'[' if !in_text => depth += 1,
                b'}' | b']' if !in_text => depth -= 1,
                _ => {}
            }
        }
        Ok(Some(start))
    }
}

impl<R: BufRead> Iterator for Objects<R> {
    type Item = std::result::Result<Row, BadRow>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.value() {
            Ok(Some(line)) => Some(object(&self.buffer, format!("{}:{line}", self.name))),
            Ok(None) => {
                self.done = true;
                None
            }
            Err(error) => {
                self.done = true;
                Some(Err(cut_short(
                    &error,
                    format!("{}:{}", self.name, self.line),
                )))
            }
        }
    }
}

fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes)
}

fn object(bytes: &[u8], place: String) -> std::result::Result<Row, BadRow> {
    let bad = |error: Error, place: String| BadRow {
        error: Box::new(error.at(format!("`{place}`"))),
        place,
        fatal: false,
    };
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let at = error.valid_up_to() + 1;
            let error = Error::input(format!("broken UTF-8 at byte {at} of the line"));
            return Err(bad(error, place));
        }
    };
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(values)) => Ok(Row { place, values }),
        Ok(other) => {
            let error = Error::input(format!("expected an object, found {}", kind(&other)));
            Err(bad(error, place))
        }
        Err(error) => {
            // serde_json counts lines within the row; the place already names the line
            let what = error.to_string();
            let what = what.split(" at line ").next().unwrap_or(&what);
            let column = error.column();
            let error = Error::input(format!("invalid JSON at column {column}: {what}"));
            Err(bad(error, place))
        }
    }
}

fn cut_short(error: &io::Error, place: String) -> BadRow {
    BadRow {
        error: Box::new(
            Error::input(format!("`{place}`: {error}"))
                .with_hint("the file is damaged or was not copied to its end: fetch it again"),
        ),
        place,
        fatal: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Vec<std::result::Result<String, String>> {
        shown(Lines::new(bytes, "f.jsonl".into()))
    }

    fn objects(bytes: &[u8]) -> Vec<std::result::Result<String, String>> {
        shown(Objects::new(bytes, "f.json".into()))
    }

    fn shown(
        rows: impl Iterator<Item = std::result::Result<Row, BadRow>>,
    ) -> Vec<std::result::Result<String, String>> {
        rows.map(|row| match row {
            Ok(row) => Ok(format!("{} {}", row.place, Value::Object(row.values))),
            Err(bad) => Err(bad.error.to_string()),
        })
        .collect()
    }

    #[test]
    fn lines_are_counted_and_bad_ones_named() {
        let rows = lines(b"\xEF\xBB\xBF{\"a\":1}\n\n{\"a\":\n[1]\n{\"a\":\"\xff\"}\r\n{\"a\":2}");
        assert_eq!(
            rows,
            [
                Ok("f.jsonl:1 {\"a\":1}".to_string()),
                Err("`f.jsonl:3`: invalid JSON at column 0: EOF while parsing a value".to_string()),
                Err("`f.jsonl:4`: expected an object, found a list".to_string()),
                Err("`f.jsonl:5`: broken UTF-8 at byte 7 of the line".to_string()),
                Ok("f.jsonl:6 {\"a\":2}".to_string()),
            ]
        );
    }

    #[test]
    fn arrays_and_bare_objects_stream() {
        let expected = [
            Ok("f.json:2 {\"a\":\"}]\\\"\"}".to_string()),
            Ok("f.json:3 {\"b\":{\"c\":[1]}}".to_string()),
        ];
        let array = objects(b"[\n{\"a\":\"}]\\\"\"},\n{\"b\":\n{\"c\":[1]}}]\n");
        assert_eq!(array, expected);
        let bare = objects(b"\n{\"a\":\"}]\\\"\"}\n{\"b\":{\"c\":[1]}}\n");
        assert_eq!(bare, expected);
        assert_eq!(
            objects(b"[{\"a\":1},\n{\"a\""),
            [
                Ok("f.json:1 {\"a\":1}".to_string()),
                Err("`f.json:2`: the object does not end: the file is cut short".to_string()),
            ]
        );
    }

    #[test]
    fn names_say_what_a_file_holds() {
        assert!(format("a.jsonl.gz").is_ok() && format("A.JSON.zst").is_ok());
        let error = format("a.csv").unwrap_err();
        assert_eq!(
            error.to_string(),
            "`a.csv`: the name does not say what the file holds"
        );
    }
}
