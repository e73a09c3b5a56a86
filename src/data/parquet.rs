//! Parquet files to rows, one row group after the other, one row at a time.

use super::columns::NO_TEXT;
use super::rows::{BadRow, Row};
use crate::{Error, Result};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::reader::{ReaderIter, TreeBuilder};
use ::parquet::record::{Field, Row as Record};
use serde_json::{Value, json};
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
            Ok(Some(record)) => {
                let columns = record.into_columns().into_iter();
                let values = columns.map(|(name, field)| (name, value(&field))).collect();
                Some(Ok(Row { place, values }))
            }
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

/// As parquet's own conversion, but bytes without a type are text: some writers leave the annotation out.
fn value(field: &Field) -> Value {
    match field {
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_string()),
            Err(_) => json!({NO_TEXT: bytes.len()}),
        },
        Field::Group(row) => Value::Object(
            row.get_column_iter()
                .map(|(name, field)| (name.clone(), value(field)))
                .collect(),
        ),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect()),
        other => other.to_json_value(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::columns::{Values, text};
    use ::parquet::data_type::ByteArray;

    #[test]
    fn bytes_that_are_no_text_are_an_error_only_where_they_are_used() {
        let bytes = |bytes: &[u8]| value(&Field::Bytes(ByteArray::from(bytes.to_vec())));
        let row: Values = [("a", bytes(b"ab")), ("image", bytes(b"\xff\xd8"))]
            .map(|(name, value)| (name.to_string(), value))
            .into_iter()
            .collect();
        assert_eq!(text(&row, "a").unwrap().as_deref(), Some("ab"));
        assert_eq!(
            text(&row, "image").unwrap_err().to_string(),
            "column `image` holds bytes that are no UTF-8 text, expected text"
        );
    }
}
