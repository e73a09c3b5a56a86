//! Access tokens in what goes up: in text as it is, in gzip, zstd and parquet in the text that they hold, all of it, a piece
//! at a time. Of weights only the beginning is looked at: their headers.

use crate::{Error, Result};
use ::parquet::basic::{Encoding, Type as Physical};
use ::parquet::column::reader::ColumnReader;
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// Of weights so much is searched: more than the header, and in GGUF the tokenizer.
const SEARCHED: u64 = 64 << 20;
/// Tokens have 34 characters behind their prefix, and stand as words: in long runs of base64 anything occurs.
const TOKEN_LENGTH: usize = 24;
const TOKEN_PREFIXES: [&[u8]; 2] = [b"hf_", b"api_org_"];
/// Longer than any token with its prefix.
const OVERLAP: usize = 256;
/// Read at once.
const PIECE: usize = 1 << 18;
/// Values of a column that are decoded at once.
const NUM_VALUES: usize = 1024;

/// Where an access token stands in a text, as a word of its own.
pub fn find_token(text: &[u8], known: &[String]) -> Option<usize> {
    find(text, known, true)
}

/// The same where `is_text` is false in bytes that hold one value right after the other.
fn find(text: &[u8], known: &[String], is_text: bool) -> Option<usize> {
    let by_prefix = TOKEN_PREFIXES.iter().filter_map(|prefix| {
        first(text, prefix, |at| {
            let rest = text[at + prefix.len()..].iter();
            let is_long = rest.take_while(|b| b.is_ascii_alphanumeric()).count() >= TOKEN_LENGTH;
            let before = at.checked_sub(1).map(|before| text[before]);
            let in_word = before.is_some_and(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
            is_long && !(is_text && in_word)
        })
    });
    let by_name = known
        .iter()
        .filter(|token| token.len() >= 8)
        .filter_map(|token| first(text, token.as_bytes(), |_| true));
    by_prefix.chain(by_name).min()
}

/// The first place of `needle` in a text that is accepted.
fn first(text: &[u8], needle: &[u8], accept: impl Fn(usize) -> bool) -> Option<usize> {
    const WIDTH: usize = 64;
    // what is rare in prose
    let pivot = needle.iter().rposition(|b| *b == b'_').unwrap_or(0);
    let byte = *needle.get(pivot)?;
    for (number, chunk) in text.chunks(WIDTH).enumerate() {
        // without an early exit, so that a register is compared at once
        if !chunk.iter().fold(false, |found, b| found | (*b == byte)) {
            continue;
        }
        for (i, _) in chunk.iter().enumerate().filter(|(_, b)| **b == byte) {
            let Some(at) = (number * WIDTH + i).checked_sub(pivot) else {
                continue;
            };
            if text[at..].starts_with(needle) && accept(at) {
                return Some(at);
            }
        }
    }
    None
}

/// A search through a text that comes in pieces.
pub struct Search<'a> {
    known: &'a [String],
    /// The end of what has been searched.
    tail: Vec<u8>,
    num_bytes: u64,
}

impl<'a> Search<'a> {
    pub fn new(known: &'a [String]) -> Self {
        Self {
            known,
            tail: Vec::new(),
            num_bytes: 0,
        }
    }

    /// The place of a token in the whole text, where one ends in this piece.
    pub fn next(&mut self, piece: &[u8]) -> Option<u64> {
        let seen = self.tail.len();
        self.tail.extend_from_slice(piece);
        if let Some(at) = find_token(&self.tail, self.known) {
            return Some((self.num_bytes + at as u64).saturating_sub(seen as u64));
        }
        let keep = self.tail.len().saturating_sub(OVERLAP);
        self.tail.drain(..keep);
        self.num_bytes += piece.len() as u64;
        None
    }
}

/// How a file is searched, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Gzip,
    Zstd,
    Parquet,
    Weights,
}

impl Kind {
    pub fn of(path: &str) -> Self {
        let path = path.to_ascii_lowercase();
        let ends = |ending: &str| path.ends_with(ending);
        match () {
            () if ends(".gz") => Self::Gzip,
            () if ends(".zst") => Self::Zstd,
            () if ends(".parquet") => Self::Parquet,
            () if [".safetensors", ".gguf", ".bin"].iter().any(|e| ends(e)) => Self::Weights,
            () => Self::Text,
        }
    }

    /// How many of the file's own bytes are searched.
    pub fn num_searched(self) -> u64 {
        match self {
            Self::Text => u64::MAX,
            Self::Weights => SEARCHED,
            // what they hold is
            Self::Gzip | Self::Zstd | Self::Parquet => 0,
        }
    }
}

/// That what a packed file holds has no token in it.
///
/// # Errors
/// A token; a file that cannot be unpacked.
pub fn search_packed(name: &str, file: &Path, known: &[String]) -> Result<()> {
    let open = || File::open(file).map_err(|e| Error::io("reading", file, e));
    let damaged = |why: String| {
        Error::input(format!("`{name}` cannot be unpacked: {why}"))
            .with_hint("the file is damaged, or is not what its name says: write it anew")
    };
    let found = match Kind::of(name) {
        Kind::Text | Kind::Weights => None,
        Kind::Gzip => {
            let text = flate2::read::MultiGzDecoder::new(BufReader::new(open()?));
            search_all(text, known).map_err(|e| damaged(e.to_string()))?
        }
        Kind::Zstd => {
            let text = zstd::Decoder::new(open()?).map_err(|e| damaged(e.to_string()))?;
            search_all(text, known).map_err(|e| damaged(e.to_string()))?
        }
        Kind::Parquet => search_parquet(open()?, known).map_err(|e| damaged(e.to_string()))?,
    };
    match found {
        None => Ok(()),
        Some(place) => Err(refused(name, &place)),
    }
}

/// The error of a file with a token in it, which is not shown.
pub fn refused(name: &str, place: &str) -> Error {
    Error::input(format!("`{name}` holds an access token {place}"))
        .with_hint("take it out of the file, and revoke the token if others have seen it")
}

fn search_all(mut text: impl Read, known: &[String]) -> std::io::Result<Option<String>> {
    let mut search = Search::new(known);
    let mut piece = vec![0; PIECE];
    loop {
        match text.read(&mut piece)? {
            0 => return Ok(None),
            n => {
                if let Some(at) = search.next(&piece[..n]) {
                    return Ok(Some(format!("near byte {at} of its text")));
                }
            }
        }
    }
}

/// A page at a time: values stand in it whole and one behind the other, but where each leaves out what it begins with like
/// the one before.
fn search_parquet(
    file: File,
    known: &[String],
) -> std::result::Result<Option<String>, ParquetError> {
    let reader = SerializedFileReader::new(file)?;
    let about = reader.metadata().file_metadata();
    for entry in about.key_value_metadata().into_iter().flatten() {
        let value = entry.value.as_deref().unwrap_or_default();
        if find_token(value.as_bytes(), known).is_some() {
            return Ok(Some("in its metadata".into()));
        }
    }
    for number in 0..reader.num_row_groups() {
        let group = reader.get_row_group(number)?;
        for column in 0..group.num_columns() {
            let metadata = group.metadata().column(column);
            let place = || Some(format!("in column `{}`", metadata.column_path().string()));
            let is_text = matches!(
                metadata.column_type(),
                Physical::BYTE_ARRAY | Physical::FIXED_LEN_BYTE_ARRAY
            );
            if !is_text {
                continue;
            }
            let mut shares_beginnings = false;
            let mut pages = group.get_column_page_reader(column)?;
            while let Some(page) = pages.get_next_page()? {
                shares_beginnings |= page.encoding() == Encoding::DELTA_BYTE_ARRAY;
                if find(page.buffer(), known, false).is_some() {
                    return Ok(place());
                }
            }
            if shares_beginnings
                && let ColumnReader::ByteArrayColumnReader(mut values) =
                    group.get_column_reader(column)?
            {
                loop {
                    let (mut of_def, mut of_rep, mut read) = (Vec::new(), Vec::new(), Vec::new());
                    let (num_records, _, _) = values.read_records(
                        NUM_VALUES,
                        Some(&mut of_def),
                        Some(&mut of_rep),
                        &mut read,
                    )?;
                    if num_records == 0 {
                        break;
                    }
                    if read.iter().any(|v| find_token(v.data(), known).is_some()) {
                        return Ok(place());
                    }
                }
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::parquet::data_type::{ByteArray, ByteArrayType};
    use ::parquet::file::properties::WriterProperties;
    use ::parquet::file::writer::SerializedFileWriter;
    use ::parquet::schema::parser::parse_message_type;
    use std::io::Write;
    use std::sync::Arc;

    fn token() -> String {
        format!("hf_{}", "aB3".repeat(11))
    }

    #[test]
    fn tokens_are_found_whole_and_in_pieces() {
        assert_eq!(find_token(b"the hf_hub crate, hf_ and hf_short", &[]), None);
        let known = ["marker-token-1".to_string()];
        assert_eq!(find_token(b"x marker-token-1", &known), Some(2));
        assert_eq!(find_token(b"x marker-token-2", &known), None);
        for before in [0, 1, 60, 63, 64, 65, 200] {
            let text = format!("{}{}", " ".repeat(before), token());
            assert_eq!(find_token(text.as_bytes(), &[]), Some(before));
            for size in [1, 7, 64, 1000] {
                let mut search = Search::new(&[]);
                let found = text.as_bytes().chunks(size).find_map(|c| search.next(c));
                assert_eq!(found, Some(before as u64), "{before} {size}");
            }
        }
    }

    /// What the search says of a file of this name with these bytes.
    fn said(name: &str, bytes: &[u8]) -> std::result::Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        search_packed(name, &path, &[]).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_packed_is_searched_to_its_end() {
        // far behind what one piece holds
        let line = "{\"messages\": \"nothing of the kind\"}\n";
        let clean = line.repeat((9 << 20) / line.len());
        let text = format!("{clean}{}\n", token());
        let gzip = |text: &str| {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(text.as_bytes()).unwrap();
            out.finish().unwrap()
        };
        let zstd = |text: &str| zstd::encode_all(text.as_bytes(), 1).unwrap();
        for (name, bytes, good) in [
            ("a.jsonl.gz", gzip(&text), gzip(&clean)),
            ("a.jsonl.zst", zstd(&text), zstd(&clean)),
        ] {
            let error = said(name, &bytes).unwrap_err();
            let want = format!(
                "`{name}` holds an access token near byte {} of its text",
                clean.len()
            );
            assert_eq!(error, want);
            said(name, &good).unwrap();
            let error = said(name, &good[..good.len() / 2]).unwrap_err();
            assert!(
                error.starts_with(&format!("`{name}` cannot be unpacked")),
                "{error}"
            );
        }
    }

    #[test]
    fn every_encoding_of_parquet_is_searched() {
        let schema =
            Arc::new(parse_message_type("message m { optional binary text (UTF8); }").unwrap());
        let written = |values: &[String], encoding: Encoding, dictionary: bool| {
            let properties = WriterProperties::builder()
                .set_compression(::parquet::basic::Compression::SNAPPY)
                .set_dictionary_enabled(dictionary)
                .set_encoding(encoding)
                .build();
            let mut writer =
                SerializedFileWriter::new(Vec::new(), schema.clone(), Arc::new(properties))
                    .unwrap();
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let values: Vec<ByteArray> = values.iter().map(|v| v.as_str().into()).collect();
            let levels = vec![1; values.len()];
            column
                .typed::<ByteArrayType>()
                .write_batch(&values, Some(&levels), None)
                .unwrap();
            column.close().unwrap();
            group.close().unwrap();
            writer.into_inner().unwrap()
        };
        let token = token();
        // the second value shares the token's beginning with the first
        let values = [token[..12].to_string(), token.clone(), "other".into()];
        for (encoding, dictionary) in [
            (Encoding::PLAIN, false),
            (Encoding::PLAIN, true),
            (Encoding::DELTA_LENGTH_BYTE_ARRAY, false),
            (Encoding::DELTA_BYTE_ARRAY, false),
        ] {
            let error = said("a.parquet", &written(&values, encoding, dictionary)).unwrap_err();
            assert_eq!(error, "`a.parquet` holds an access token in column `text`");
            said("a.parquet", &written(&values[..1], encoding, dictionary)).unwrap();
        }
        let error = said("a.parquet", b"PAR1").unwrap_err();
        assert!(
            error.starts_with("`a.parquet` cannot be unpacked"),
            "{error}"
        );
    }
}
