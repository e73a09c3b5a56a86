//! Parquet files to rows, one row group after the other, one row at a time.

use super::columns::Values;
use super::rows::{BadRow, Row};
use crate::{Error, Result};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::reader::{ReaderIter, TreeBuilder};
use ::parquet::record::{Field, Row as Record};
use serde_json::Value;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// The rows of a parquet file.
pub struct ParquetRows {
    reader: SerializedFileReader<File>,
    name: String,
    group: usize,
    /// Rows of the group being read.
    records: Option<ReaderIter>,
    row: u64,
    done: bool,
}

impl ParquetRows {
    /// Reads the footer.
    ///
    /// # Errors
    /// No parquet file, or one without its end.
    pub fn open(path: &Path, name: &str, file: File) -> Result<Self> {
        let reader = guard(|| SerializedFileReader::new(file)).map_err(|what| {
            Error::input(format!(
                "`{}`: no readable parquet file: {what}",
                path.display()
            ))
            .with_hint("the file is damaged or was not copied to its end: fetch it again")
        })?;
        if reader.metadata().file_metadata().num_rows() == 0 {
            return Err(Error::input(format!("`{}` has no rows", path.display())));
        }
        Ok(Self {
            reader,
            name: name.to_string(),
            group: 0,
            records: None,
            row: 0,
            done: false,
        })
    }

    fn record(&mut self) -> std::result::Result<Option<Record>, String> {
        loop {
            if let Some(records) = &mut self.records
                && let Some(record) = guard(|| records.next().transpose())?
            {
                return Ok(Some(record));
            }
            if self.group == self.reader.num_row_groups() {
                return Ok(None);
            }
            let reader = &self.reader;
            let index = self.group;
            self.records = Some(guard(|| {
                let group = reader.get_row_group(index)?;
                let schema = reader.metadata().file_metadata().schema_descr_ptr();
                // small batches: a row can be a megabyte
                TreeBuilder::new()
                    .with_batch_size(64)
                    .as_iter(schema, &*group)
            })?);
            self.group += 1;
        }
    }
}

/// The reader's errors as text; its panics, which damaged pages can cause, too.
fn guard<T>(
    read: impl FnOnce() -> std::result::Result<T, ParquetError>,
) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(value)) => Ok(value),
        // some messages hold all bytes of the value
        Ok(Err(error)) => Err(error.to_string().chars().take(200).collect()),
        Err(_) => Err("a page is damaged".into()),
    }
}

impl Iterator for ParquetRows {
    type Item = std::result::Result<Row, BadRow>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        self.row += 1;
        let place = format!("{} row {}", self.name, self.row);
        match self.record() {
            Ok(Some(record)) => Some(match values(record) {
                Ok(values) => Ok(Row { place, values }),
                Err(column) => Err(BadRow {
                    error: Box::new(Error::input(format!(
                        "`{place}`: column `{column}` is no UTF-8 text"
                    ))),
                    place,
                    fatal: false,
                }),
            }),
            Ok(None) => {
                self.done = true;
                None
            }
            Err(what) => {
                self.done = true;
                Some(Err(BadRow {
                    error: Box::new(Error::input(format!("`{place}`: {what}")).with_hint(
                        "the file is damaged or was not copied to its end: fetch it again",
                    )),
                    place,
                    fatal: true,
                }))
            }
        }
    }
}

/// Columns as JSON; the name of the column whose bytes are no text on failure.
fn values(record: Record) -> std::result::Result<Values, String> {
    record
        .into_columns()
        .into_iter()
        .map(|(name, field)| match value(&field) {
            Some(value) => Ok((name, value)),
            None => Err(name),
        })
        .collect()
}

/// As parquet's own conversion, but bytes without a type are text: some writers leave the annotation out.
fn value(field: &Field) -> Option<Value> {
    Some(match field {
        Field::Bytes(bytes) => Value::String(std::str::from_utf8(bytes.data()).ok()?.to_string()),
        Field::Group(row) => Value::Object(
            row.get_column_iter()
                .map(|(name, field)| Some((name.clone(), value(field)?)))
                .collect::<Option<Values>>()?,
        ),
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().map(value).collect::<Option<_>>()?)
        }
        other => other.to_json_value(),
    })
}
