//! TensorBoard event files, written by hand: TFRecord framing around protobuf `Event` messages with scalars.
//!
//! A record is `length: u64 le, masked crc32c of it, data, masked crc32c of data`
//! (tensorflow/core/lib/io/record_writer.cc); the messages are those of tensorflow/core/util/event.proto and
//! framework/summary.proto. Only what a scalar needs is encoded.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

const PREFIX: &str = "events.out.tfevents.";

/// Writes one event file; every start of a run makes its own.
pub struct EventWriter {
    out: BufWriter<File>,
    path: PathBuf,
}

impl EventWriter {
    /// Begins a new file in `folder`. A run resumed after step `resume_step` says so in the file, and TensorBoard then
    /// drops the later points of earlier files; 0 for a new run, whose folder loses the event files of an abandoned one.
    pub fn create(folder: &Path, resume_step: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("creating", folder, e))?;
        let earlier = event_files(folder)?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        // TensorBoard reads a folder's files in the order of their names
        let second = earlier
            .iter()
            .filter_map(|path| second_of(path))
            .max()
            .map_or(now, |last| now.max(last + 1));
        if resume_step == 0 {
            for path in &earlier {
                std::fs::remove_file(path).map_err(|e| Error::io("removing", path, e))?;
            }
        }
        let path = folder.join(format!("{PREFIX}{second:010}.{}", host()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| Error::io("creating", &path, e))?;
        let mut writer = Self {
            out: BufWriter::new(file),
            path,
        };
        let mut version = header(0);
        put_bytes(&mut version, 3, b"brain.Event:2");
        writer.record(&version)?;
        if resume_step > 0 {
            // SessionLog { status: START }: points at or after this step are orphans
            let mut start = header(resume_step + 1);
            put_bytes(&mut start, 7, &[1 << 3, 1]);
            writer.record(&start)?;
        }
        writer.flush()?;
        Ok(writer)
    }

    /// Adds one point to each named curve.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut point = Vec::new();
            put_bytes(&mut point, 1, tag.as_bytes());
            put_key(&mut point, 2, 5);
            point.extend_from_slice(&(*value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &point);
        }
        let mut event = header(step);
        put_bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    /// Hands everything to the operating system, for a TensorBoard that watches.
    pub fn flush(&mut self) -> Result<()> {
        self.out
            .flush()
            .map_err(|e| Error::io("writing", &self.path, e))
    }

    /// The file being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend_from_slice(&length);
        record.extend_from_slice(&masked_crc(&length).to_le_bytes());
        record.extend_from_slice(data);
        record.extend_from_slice(&masked_crc(data).to_le_bytes());
        self.out
            .write_all(&record)
            .map_err(|e| Error::io("writing", &self.path, e))
    }
}

/// The event files of a folder, unordered.
fn event_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io("reading", folder, e))?;
    Ok(entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| second_of(path).is_some())
        .collect())
}

fn second_of(path: &Path) -> Option<u64> {
    path.file_name()?
        .to_str()?
        .strip_prefix(PREFIX)?
        .split('.')
        .next()?
        .parse()
        .ok()
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_default();
    let name: String = name
        .trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c))
        .collect();
    if name.is_empty() {
        "localhost".into()
    } else {
        name
    }
}

/// crc32c, rotated and offset so that a checksum of data that holds checksums stays strong.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// `Event { wall_time: now, step }`, the fields all events share.
fn header(step: u64) -> Vec<u8> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64());
    let mut event = Vec::with_capacity(64);
    put_key(&mut event, 1, 1);
    event.extend_from_slice(&now.to_le_bytes());
    put_key(&mut event, 2, 0);
    put_varint(&mut event, step);
    event
}

fn put_key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    put_varint(out, field << 3 | wire_type);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_and_checksums_as_published() {
        let mut out = Vec::new();
        put_varint(&mut out, 300); // protobuf's own example
        assert_eq!(out, [0xac, 0x02]);
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa); // RFC 3720, B.4
        // first bytes of every event file: a record of 24 bytes
        assert_eq!(masked_crc(&24u64.to_le_bytes()), 0x224b_7fa3);
    }

    #[test]
    fn a_file_is_a_version_record_then_scalars() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path(), 0).unwrap();
        writer.scalars(7, &[("train/loss", 0.5)]).unwrap();
        writer.flush().unwrap();
        let bytes = std::fs::read(writer.path()).unwrap();
        assert_eq!(bytes[..8], 26u64.to_le_bytes());
        assert_eq!(&bytes[12 + 11..12 + 26], b"\x1a\x0dbrain.Event:2");
        let second = &bytes[12 + 26 + 4..];
        let data = &second[12..12 + second[0] as usize];
        assert_eq!(data[9..11], [0x10, 7]);
        // Event.summary, Summary.value, Value.tag, Value.simple_value
        assert_eq!(
            &data[11..],
            b"\x2a\x13\x0a\x11\x0a\x0atrain/loss\x15\x00\x00\x00\x3f"
        );
    }

    #[test]
    fn files_of_one_run_sort_by_age_and_a_new_run_starts_clean() {
        let folder = tempfile::tempdir().unwrap();
        let first = EventWriter::create(folder.path(), 0)
            .unwrap()
            .path()
            .to_path_buf();
        let second = EventWriter::create(folder.path(), 3)
            .unwrap()
            .path()
            .to_path_buf();
        assert!(first.exists() && second.file_name() > first.file_name());
        let third = EventWriter::create(folder.path(), 0).unwrap();
        assert!(!first.exists() && !second.exists() && third.path().exists());
    }
}
