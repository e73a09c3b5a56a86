//! JSON lines to parquet: the columns are found by reading all rows once, then written by row groups of bounded size, so that
//! memory does not grow with the file.
//!
//! Every value may be absent. A place that holds different kinds of values in different rows becomes text that holds JSON.

use crate::{Error, Result};
use ::parquet::basic::{Compression, LogicalType, Repetition, Type as Physical, ZstdLevel};
use ::parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type};
use ::parquet::errors::ParquetError;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::types::{Type, TypePtr};
use serde_json::{Map, Value};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Text of the rows that are held before they are written.
const GROUP_BYTES: usize = 32 << 20;
/// Text of the rows of a file.
const SHARD_BYTES: u64 = 1 << 30;

/// What a column holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Nothing but nulls.
    Null,
    Bool,
    Int,
    Float,
    Text,
    List(Box<Kind>),
    Struct(Vec<(String, Kind)>),
    /// Several kinds: JSON as text.
    Mixed,
}

/// Changes a row, or drops it by returning `None`.
pub type RowChange<'a> = dyn Fn(Map<String, Value>) -> Result<Option<Map<String, Value>>> + 'a;

/// What was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// The files, in order.
    pub files: Vec<PathBuf>,
    pub num_rows: u64,
    pub columns: Vec<(String, Kind)>,
}

impl Kind {
    fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Bool,
            Value::Number(number) if number.is_i64() => Self::Int,
            Value::Number(_) => Self::Float,
            Value::String(_) => Self::Text,
            Value::Array(items) => {
                let kinds = items.iter().map(Self::of);
                Self::List(Box::new(kinds.fold(Self::Null, Self::and)))
            }
            Value::Object(map) => Self::Struct(
                map.iter()
                    .map(|(key, value)| (key.clone(), Self::of(value)))
                    .collect(),
            ),
        }
    }

    /// What holds both.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Null, kind) | (kind, Self::Null) => kind,
            (Self::Int, Self::Float) | (Self::Float, Self::Int) => Self::Float,
            (Self::List(a), Self::List(b)) => Self::List(Box::new(a.and(*b))),
            (Self::Struct(mut a), Self::Struct(b)) => {
                for (key, kind) in b {
                    match a.iter_mut().find(|(name, _)| *name == key) {
                        Some((_, own)) => {
                            *own = std::mem::replace(own, Self::Null).and(kind);
                        }
                        None => a.push((key, kind)),
                    }
                }
                Self::Struct(a)
            }
            (a, b) if a == b => a,
            _ => Self::Mixed,
        }
    }

    /// An object without fields cannot be a group, a place of nulls has no type: both are text.
    fn settle(self) -> Self {
        match self {
            Self::Null => Self::Text,
            Self::Struct(fields) if fields.is_empty() => Self::Mixed,
            Self::Struct(fields) => Self::Struct(
                fields
                    .into_iter()
                    .map(|(name, kind)| (name, kind.settle()))
                    .collect(),
            ),
            Self::List(item) => Self::List(Box::new(item.settle())),
            other => other,
        }
    }

    /// As a card shows it.
    pub fn name(&self) -> String {
        match self {
            Self::Null | Self::Text => "string".into(),
            Self::Bool => "bool".into(),
            Self::Int => "int64".into(),
            Self::Float => "float64".into(),
            Self::Mixed => "string (JSON)".into(),
            Self::List(item) => format!("list of {}", item.name()),
            Self::Struct(fields) => {
                let parts: Vec<String> = fields
                    .iter()
                    .map(|(name, kind)| format!("{name}: {}", kind.name()))
                    .collect();
                format!("{{{}}}", parts.join(", "))
            }
        }
    }

    fn schema(&self, name: &str) -> std::result::Result<Type, ParquetError> {
        let leaf = |physical, logical| {
            Type::primitive_type_builder(name, physical)
                .with_repetition(Repetition::OPTIONAL)
                .with_logical_type(logical)
                .build()
        };
        match self {
            Self::Bool => leaf(Physical::BOOLEAN, None),
            Self::Int => leaf(Physical::INT64, None),
            Self::Float => leaf(Physical::DOUBLE, None),
            Self::Null | Self::Text | Self::Mixed => {
                leaf(Physical::BYTE_ARRAY, Some(LogicalType::String))
            }
            Self::List(item) => {
                let element = Arc::new(item.schema("element")?);
                let list = Type::group_type_builder("list")
                    .with_repetition(Repetition::REPEATED)
                    .with_fields(vec![element])
                    .build()?;
                Type::group_type_builder(name)
                    .with_repetition(Repetition::OPTIONAL)
                    .with_logical_type(Some(LogicalType::List))
                    .with_fields(vec![Arc::new(list)])
                    .build()
            }
            Self::Struct(fields) => Type::group_type_builder(name)
                .with_repetition(Repetition::OPTIONAL)
                .with_fields(members(fields)?)
                .build(),
        }
    }
}

fn members(fields: &[(String, Kind)]) -> std::result::Result<Vec<TypePtr>, ParquetError> {
    let one = |(name, kind): &(String, Kind)| kind.schema(name).map(Arc::new);
    fields.iter().map(one).collect()
}

/// Values of a column, with the levels that say where they stand (Dremel, as the format has it).
enum Column {
    Bool(Vec<bool>, Levels),
    Int(Vec<i64>, Levels),
    Float(Vec<f64>, Levels),
    Text(Vec<ByteArray>, Levels),
}

#[derive(Default)]
struct Levels {
    /// How many of the places on the way to a value are there.
    definition: Vec<i16>,
    /// In which list a value is one more.
    repetition: Vec<i16>,
}

impl Column {
    fn levels(&mut self) -> &mut Levels {
        match self {
            Self::Bool(_, levels)
            | Self::Int(_, levels)
            | Self::Float(_, levels)
            | Self::Text(_, levels) => levels,
        }
    }

    fn mark(&mut self, definition: i16, repetition: i16) {
        let levels = self.levels();
        levels.definition.push(definition);
        levels.repetition.push(repetition);
    }
}

fn empty_columns(kind: &Kind, out: &mut Vec<Column>) {
    match kind {
        Kind::Bool => out.push(Column::Bool(Vec::new(), Levels::default())),
        Kind::Int => out.push(Column::Int(Vec::new(), Levels::default())),
        Kind::Float => out.push(Column::Float(Vec::new(), Levels::default())),
        Kind::Null | Kind::Text | Kind::Mixed => {
            out.push(Column::Text(Vec::new(), Levels::default()));
        }
        Kind::List(item) => empty_columns(item, out),
        Kind::Struct(fields) => fields.iter().for_each(|(_, kind)| empty_columns(kind, out)),
    }
}

/// Puts a value into the columns of its kind; returns how many columns that are.
fn shred(
    kind: &Kind,
    value: &Value,
    columns: &mut [Column],
    at: usize,
    definition: i16,
    repetition: i16,
    depth: i16,
) -> usize {
    let is_absent = value.is_null();
    match kind {
        Kind::Struct(fields) => {
            let map = value.as_object();
            let definition = definition + i16::from(map.is_some());
            let mut used = 0;
            for (name, kind) in fields {
                let inner = map.and_then(|map| map.get(name)).unwrap_or(&Value::Null);
                used += shred(
                    kind,
                    inner,
                    columns,
                    at + used,
                    definition,
                    repetition,
                    depth,
                );
            }
            used
        }
        Kind::List(item) => {
            let Some(items) = value.as_array() else {
                return shred(
                    item,
                    &Value::Null,
                    columns,
                    at,
                    definition,
                    repetition,
                    depth + 1,
                );
            };
            if items.is_empty() {
                return shred(
                    item,
                    &Value::Null,
                    columns,
                    at,
                    definition + 1,
                    repetition,
                    depth + 1,
                );
            }
            let mut used = 0;
            for (i, inner) in items.iter().enumerate() {
                let repetition = if i == 0 { repetition } else { depth + 1 };
                used = shred(
                    item,
                    inner,
                    columns,
                    at,
                    definition + 2,
                    repetition,
                    depth + 1,
                );
            }
            used
        }
        _ => {
            let Some(column) = columns.get_mut(at) else {
                return 1;
            };
            let present = match column {
                Column::Bool(values, _) => value.as_bool().map(|v| values.push(v)),
                Column::Int(values, _) => value.as_i64().map(|v| values.push(v)),
                Column::Float(values, _) => value.as_f64().map(|v| values.push(v)),
                Column::Text(values, _) => (!is_absent).then(|| {
                    let text = match (kind, value) {
                        (Kind::Mixed, value) => value.to_string(),
                        (_, Value::String(text)) => text.clone(),
                        (_, value) => value.to_string(),
                    };
                    values.push(ByteArray::from(text.into_bytes()));
                }),
            };
            column.mark(definition + i16::from(present.is_some()), repetition);
            1
        }
    }
}

/// Writes the rows of JSON lines files as `train-00000-of-0000N.parquet` into `folder`, which is made anew.
///
/// # Errors
/// A line that is no JSON object, no rows at all, a disk that refuses.
pub fn write(inputs: &[PathBuf], folder: &Path, row: &RowChange) -> Result<Written> {
    let mut kind = Kind::Struct(Vec::new());
    let mut num_rows = 0;
    for_rows(inputs, row, &mut |value, _| {
        num_rows += 1;
        kind = std::mem::replace(&mut kind, Kind::Null).and(Kind::of(value));
        Ok(())
    })?;
    let (Kind::Struct(columns), true) = (kind.settle(), num_rows > 0) else {
        return Err(Error::input("there are no rows to publish"));
    };
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(|e| Error::io("deleting", folder, e))?;
    }
    fs::create_dir_all(folder).map_err(|e| Error::io("creating", folder, e))?;
    let mut writer = Writer::new(folder, columns.clone())?;
    for_rows(inputs, row, &mut |value, bytes| writer.row(value, bytes))?;
    Ok(Written {
        files: writer.finish()?,
        num_rows,
        columns,
    })
}

fn for_rows(
    inputs: &[PathBuf],
    row: &RowChange,
    each: &mut dyn FnMut(&Value, usize) -> Result<()>,
) -> Result<()> {
    for path in inputs {
        let file = File::open(path).map_err(|e| Error::io("opening", path, e))?;
        for (i, line) in BufReader::with_capacity(1 << 20, file)
            .split(b'\n')
            .enumerate()
        {
            let line = line.map_err(|e| Error::io("reading", path, e))?;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let place = || format!("`{}` line {}", path.display(), i + 1);
            let map = serde_json::from_slice(&line).map_err(|e| {
                Error::input(format!("{} is no JSON object: {e}", place()))
                    .with_hint("run the recipe again: the stage is made anew")
            })?;
            if let Some(map) = row(map).map_err(|e| e.at(place()))? {
                each(&Value::Object(map), line.len())?;
            }
        }
    }
    Ok(())
}

struct Writer {
    folder: PathBuf,
    schema: TypePtr,
    kind: Kind,
    properties: Arc<WriterProperties>,
    columns: Vec<Column>,
    file: Option<SerializedFileWriter<File>>,
    /// Under names of their own until it is known how many there are.
    shards: Vec<PathBuf>,
    group_bytes: usize,
    shard_bytes: u64,
}

impl Writer {
    fn new(folder: &Path, columns: Vec<(String, Kind)>) -> Result<Self> {
        let schema = members(&columns)
            .and_then(|fields| {
                Type::group_type_builder("schema")
                    .with_fields(fields)
                    .build()
            })
            .map_err(|e| Error::input(format!("the rows cannot be parquet: {e}")))?;
        let level = ZstdLevel::try_new(3)
            .map_err(|e| Error::input(format!("the rows cannot be compressed: {e}")))?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            .set_created_by(concat!("distill ", env!("CARGO_PKG_VERSION")).into())
            .build();
        let mut writer = Self {
            folder: folder.to_path_buf(),
            schema: Arc::new(schema),
            kind: Kind::Struct(columns),
            properties: Arc::new(properties),
            columns: Vec::new(),
            file: None,
            shards: Vec::new(),
            group_bytes: 0,
            shard_bytes: 0,
        };
        empty_columns(&writer.kind, &mut writer.columns);
        Ok(writer)
    }

    fn row(&mut self, value: &Value, bytes: usize) -> Result<()> {
        // the row itself is no place that can be absent
        shred(&self.kind, value, &mut self.columns, 0, -1, 0, 0);
        self.group_bytes += bytes;
        match self.group_bytes >= GROUP_BYTES {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Writes the rows that are held as a row group.
    fn flush(&mut self) -> Result<()> {
        if self.group_bytes == 0 {
            return Ok(());
        }
        let path = self
            .folder
            .join(format!("{:05}.partial", self.shards.len()));
        let failed = |e: ParquetError| Error::input(format!("writing `{}`: {e}", path.display()));
        if self.file.is_none() {
            let file = File::create(&path).map_err(|e| Error::io("creating", &path, e))?;
            let properties = self.properties.clone();
            let opened = SerializedFileWriter::new(file, self.schema.clone(), properties);
            self.file = Some(opened.map_err(failed)?);
        }
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let mut full = Vec::new();
        empty_columns(&self.kind, &mut full);
        std::mem::swap(&mut full, &mut self.columns);
        let mut group = file.next_row_group().map_err(failed)?;
        for column in &full {
            let Some(mut writer) = group.next_column().map_err(failed)? else {
                break;
            };
            macro_rules! put {
                ($kind:ty, $values:expr, $levels:expr) => {
                    writer
                        .typed::<$kind>()
                        .write_batch(
                            $values,
                            Some(&$levels.definition),
                            Some(&$levels.repetition),
                        )
                        .map_err(failed)?
                };
            }
            match column {
                Column::Bool(values, levels) => put!(BoolType, values, levels),
                Column::Int(values, levels) => put!(Int64Type, values, levels),
                Column::Float(values, levels) => put!(DoubleType, values, levels),
                Column::Text(values, levels) => put!(ByteArrayType, values, levels),
            };
            writer.close().map_err(failed)?;
        }
        group.close().map_err(failed)?;
        self.shard_bytes += self.group_bytes as u64;
        self.group_bytes = 0;
        match self.shard_bytes >= SHARD_BYTES {
            true => self.close(),
            false => Ok(()),
        }
    }

    /// Ends a file.
    fn close(&mut self) -> Result<()> {
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        let path = self
            .folder
            .join(format!("{:05}.partial", self.shards.len()));
        file.close()
            .map_err(|e| Error::input(format!("writing `{}`: {e}", path.display())))?;
        self.shards.push(path);
        self.shard_bytes = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<PathBuf>> {
        self.flush()?;
        self.close()?;
        let num = self.shards.len();
        let rename = |(i, path): (usize, &PathBuf)| {
            let name = self
                .folder
                .join(format!("train-{i:05}-of-{num:05}.parquet"));
            fs::rename(path, &name).map_err(|e| Error::io("renaming", path, e))?;
            Ok(name)
        };
        self.shards.iter().enumerate().map(rename).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::parquet::ParquetRows;
    use serde_json::json;

    fn round_trip(rows: &[Value]) -> (Vec<Value>, Vec<(String, Kind)>) {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("in.jsonl");
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        fs::write(&input, lines).unwrap();
        let written = write(&[input], &dir.path().join("out"), &|row| Ok(Some(row))).unwrap();
        assert_eq!(written.num_rows, rows.len() as u64);
        assert_eq!(written.files.len(), 1);
        let path = &written.files[0];
        assert!(path.ends_with("train-00000-of-00001.parquet"));
        let rows = ParquetRows::open(path, "t", File::open(path).unwrap()).unwrap();
        let values =
            rows.map(|row| Value::Object(row.unwrap_or_else(|e| panic!("{}", e.error)).values));
        (values.collect(), written.columns)
    }

    #[test]
    fn nested_rows_come_back() {
        let rows = [
            json!({"id": "1", "messages": [{"role": "user", "content": "数"}, {"role": "assistant", "content": "b"}], "n": 3, "ok": true, "tokens": [[1, 2], [], [3]]}),
            json!({"id": "2", "messages": [], "n": null, "ok": false, "tokens": [[4]]}),
            json!({"id": "3", "messages": [{"role": "user", "content": null}], "n": 5, "ok": null, "tokens": []}),
        ];
        let (back, columns) = round_trip(&rows);
        assert_eq!(back, rows);
        let names: Vec<String> = columns
            .iter()
            .map(|(name, kind)| format!("{name} {}", kind.name()))
            .collect();
        assert_eq!(
            names,
            [
                "id string",
                "messages list of {role: string, content: string}",
                "n int64",
                "ok bool",
                "tokens list of list of int64"
            ]
        );
    }

    #[test]
    fn kinds_that_differ_become_what_holds_both() {
        let rows = [
            json!({"a": 1, "b": 1, "c": {}, "e": null}),
            json!({"a": 1.5, "b": "x", "c": {}, "d": {"x": [null, {"y": 1}]}}),
            json!({"a": 2, "b": [1], "c": {}, "d": {"x": null}}),
        ];
        let (back, columns) = round_trip(&rows);
        assert_eq!(
            back[0],
            json!({"a": 1.0, "b": "1", "c": "{}", "e": null, "d": null})
        );
        assert_eq!(
            back[1],
            json!({"a": 1.5, "b": "\"x\"", "c": "{}", "e": null, "d": {"x": [null, {"y": 1}]}})
        );
        assert_eq!(
            back[2],
            json!({"a": 2.0, "b": "[1]", "c": "{}", "e": null, "d": {"x": null}})
        );
        assert_eq!(columns[1].1, Kind::Mixed);
    }

    #[test]
    fn a_bad_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("in.jsonl");
        fs::write(&input, "{}\n\n[1]\n").unwrap();
        let error = write(
            std::slice::from_ref(&input),
            &dir.path().join("out"),
            &|row| Ok(Some(row)),
        )
        .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with(&format!("`{}` line 3 is no JSON object", input.display()))
        );
    }
}
