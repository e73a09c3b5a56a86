//! Tensors to a safetensors file (<https://github.com/huggingface/safetensors>): one at a time on the host, where none is
//! there twice; the same tensors give the same bytes, and the file can be read by whom the user lets.

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Values that are copied at a time.
const PIECE: usize = 1 << 20;

/// What a file says of a tensor.
pub struct Entry<'a> {
    pub name: &'a str,
    pub dtype: DType,
    pub shape: &'a [usize],
}

/// Writes `tensors` to `path`; see [`write_each`].
///
/// # Errors
/// As there.
pub fn write<S: AsRef<str>>(
    path: &Path,
    tensors: &[(S, Tensor)],
    facts: &[(&str, &str)],
) -> Result<()> {
    fn entry<S: AsRef<str>>((name, tensor): &(S, Tensor)) -> Entry<'_> {
        Entry {
            name: name.as_ref(),
            dtype: tensor.dtype(),
            shape: tensor.dims(),
        }
    }
    let entries: Vec<Entry> = tensors.iter().map(entry).collect();
    write_each(path, &entries, facts, &|i| Ok(tensors[i].1.clone()))
}

/// Writes a tensor for each of `entries` to `path`, those of the widest numbers first and then by name, with `facts` as its
/// metadata; what was there before is written over in place. `get` is asked for one after the other, and each is let go
/// before the next.
///
/// # Errors
/// The disk refuses; a dtype that the format does not have; a tensor that is not as its entry says; those of `get`.
pub fn write_each(
    path: &Path,
    entries: &[Entry],
    facts: &[(&str, &str)],
    get: &dyn Fn(usize) -> Result<Tensor>,
) -> Result<()> {
    let at = |i: usize, e: Error| {
        let name = entries[i].name;
        e.at(format!("`{}`: tensor `{name}`", path.display()))
    };
    let mut sorted: Vec<(usize, Dtype)> = entries
        .iter()
        .enumerate()
        .map(|(i, entry)| Ok((i, stored(entry.dtype).map_err(|e| at(i, e))?)))
        .collect::<Result<_>>()?;
    sorted.sort_by(|a, b| b.1.cmp(&a.1).then(entries[a.0].name.cmp(entries[b.0].name)));
    let mut header = Map::new();
    if !facts.is_empty() {
        let mut facts = facts.to_vec();
        facts.sort_unstable();
        let facts: Map<String, Value> = facts
            .iter()
            .map(|(key, value)| (key.to_string(), json!(value)))
            .collect();
        header.insert("__metadata__".to_string(), Value::Object(facts));
    }
    let mut end = 0;
    for (i, dtype) in &sorted {
        let Entry { name, shape, .. } = &entries[*i];
        let start = end;
        end += shape.iter().product::<usize>() * entries[*i].dtype.size_in_bytes();
        let place = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        header.insert(name.to_string(), place);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // the numbers begin at a multiple of 8
    header.resize(header.len().next_multiple_of(8), b' ');
    let failed = |e| Error::io("writing", path, e);
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(failed)?);
    file.write_all(&(header.len() as u64).to_le_bytes())
        .and_then(|()| file.write_all(&header))
        .map_err(failed)?;
    for (i, _) in sorted {
        let entry = &entries[i];
        let at = |e: Error| at(i, e);
        let tensor = get(i).map_err(at)?;
        if (tensor.dtype(), tensor.dims()) != (entry.dtype, entry.shape) {
            return Err(at(Error::input(format!(
                "{:?} {:?} in place of {:?} {:?}",
                tensor.dtype(),
                tensor.dims(),
                entry.dtype,
                entry.shape
            ))));
        }
        write_values(&tensor, &mut |bytes| file.write_all(bytes))
            .map_err(at)?
            .map_err(failed)?;
    }
    file.flush().map_err(failed)
}

/// What the format calls a dtype.
fn stored(dtype: DType) -> Result<Dtype> {
    Ok(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::U32 => Dtype::U32,
        DType::I16 => Dtype::I16,
        DType::U8 => Dtype::U8,
        other => {
            return Err(Error::input(format!(
                "numbers of dtype {} are not written to files",
                other.as_str()
            )));
        }
    })
}

/// The bytes of all values in order, piece by piece. The outer result is the device's, the inner one the writer's.
fn write_values(
    tensor: &Tensor,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<io::Result<()>> {
    // whole: candle brings the whole of a view's storage to the host
    let flat = tensor.flatten_all()?.to_device(&Device::Cpu)?;
    let len = flat.elem_count();
    for start in (0..len).step_by(PIECE) {
        let piece = flat.narrow(0, start, PIECE.min(len - start))?;
        let taken = match tensor.dtype() {
            DType::F64 => bytes_of::<f64>(&piece, take)?,
            DType::F32 => bytes_of::<f32>(&piece, take)?,
            DType::F16 => bytes_of::<f16>(&piece, take)?,
            DType::BF16 => bytes_of::<bf16>(&piece, take)?,
            DType::I64 => bytes_of::<i64>(&piece, take)?,
            DType::U32 => bytes_of::<u32>(&piece, take)?,
            DType::I16 => bytes_of::<i16>(&piece, take)?,
            _ => bytes_of::<u8>(&piece, take)?,
        };
        if taken.is_err() {
            return Ok(taken);
        }
    }
    Ok(Ok(()))
}

fn bytes_of<T: WithDType + bytemuck::Pod>(
    piece: &Tensor,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<io::Result<()>> {
    let piece = piece.to_vec1::<T>()?;
    // as the format has them on every machine that candle runs on: the lowest byte first
    Ok(take(bytemuck::cast_slice(&piece)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_by_the_format_s_own_library() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("some.safetensors");
        let cpu = Device::Cpu;
        let long = Tensor::arange(0f32, (PIECE + 5) as f32, &cpu).unwrap();
        let tensors = [
            ("b", long.clone()),
            (
                "turned",
                Tensor::new(&[[1u8, 2, 3], [4, 5, 6]], &cpu)
                    .unwrap()
                    .t()
                    .unwrap(),
            ),
            (
                "a",
                Tensor::new(&[bf16::ONE, bf16::INFINITY], &cpu).unwrap(),
            ),
            ("rest", Tensor::new(&[-3i16, 7], &cpu).unwrap()),
            ("step", Tensor::new(&[9i64], &cpu).unwrap()),
            ("none", Tensor::zeros((0, 4), DType::F32, &cpu).unwrap()),
        ];
        let facts = [("format", "pt"), ("base", "x \"y\"")];
        write(&path, &tensors, &facts).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let facts = metadata.metadata().as_ref().unwrap();
        assert_eq!(
            (facts["format"].as_str(), facts["base"].as_str()),
            ("pt", "x \"y\"")
        );
        let read = candle_core::safetensors::load(&path, &cpu).unwrap();
        assert_eq!(read.len(), tensors.len());
        assert_eq!(
            read["b"].to_vec1::<f32>().unwrap(),
            long.to_vec1::<f32>().unwrap()
        );
        let turned: Vec<Vec<u8>> = read["turned"].to_vec2().unwrap();
        assert_eq!(turned, [[1, 4], [2, 5], [3, 6]]);
        assert_eq!(
            read["a"].to_vec1::<bf16>().unwrap(),
            [bf16::ONE, bf16::INFINITY]
        );
        assert_eq!(read["rest"].to_vec1::<i16>().unwrap(), [-3, 7]);
        assert_eq!(read["step"].to_vec1::<i64>().unwrap(), [9]);
        assert_eq!(read["none"].dims(), [0, 4]);
        // the same again, and what else the user's files allow
        write(&path, &tensors, &[("base", "x \"y\""), ("format", "pt")]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let other = dir.path().join("other");
            std::fs::write(&other, "").unwrap();
            let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode(&path), mode(&other));
        }
    }
}
