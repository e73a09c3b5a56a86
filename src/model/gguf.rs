//! GGUF, the file of llama.cpp: the writing of a model, a few rows of a tensor at a time. Version 3, little-endian:
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
//!
//! Which type each tensor gets is in [`super::gguf_types`], what tensors and settings are called in
//! `gguf_names`, the tokenizer in [`super::gguf_tokenizer`]. Reading is candle's business.

use super::gguf_names::{self, Rows};
use super::gguf_types::{Fallback, Quant, TypeChooser, block_bytes, name_of, type_id};
use super::weights::{self, Stored};
use super::{CausalLm, ModelConfig};
use crate::ops::{self, GgmlType, ParamId};
use crate::{Error, Result};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
/// Tensors begin at multiples of so many bytes.
const ALIGNMENT: u64 = 32;
/// So many values are converted at a time, by all threads together.
const CHUNK: usize = 1 << 22;

/// A setting of the file.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    Ints(Vec<i32>),
    Texts(Vec<String>),
}

/// Where the weights are read from.
pub enum Source<'a> {
    /// The files of a checkpoint; of them only what is being written is in memory.
    Folder(&'a Path),
    /// A model in memory; adapters are merged into their weights.
    Model(&'a CausalLm),
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub num_bytes: u64,
    pub num_tensors: usize,
    /// How many tensors are of each type, by llama.cpp's name of it.
    pub types: BTreeMap<&'static str, usize>,
    /// Tensors whose rows do not divide into the blocks of the type meant for them: that type, the type they have, and how
    /// many.
    pub fallbacks: BTreeMap<(&'static str, &'static str), usize>,
}

/// Writes `config`'s weights and `settings` to `path`: beside it, synced, then renamed. `progress` hears how many bytes of
/// weights are written, and may stop it all with an error.
///
/// # Errors
/// A model that llama.cpp has no file for, weights that cannot be read or do not fit the type, a disk that is full.
pub fn write(
    path: &Path,
    source: &Source<'_>,
    config: &ModelConfig,
    quant: Quant,
    settings: &[(String, Value)],
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Written> {
    let plan = Plan::new(config, quant)?;
    let mut file = Beside::create(path)?;
    file.put(&plan.header(config, quant, settings)?)?;
    match source {
        Source::Folder(folder) => weights::with_stored(folder, config, |all| {
            let weights = all.iter().map(|stored| Ok((stored.name.clone(), stored)));
            plan.write_tensors(weights, &mut file, progress)
        })?,
        Source::Model(model) => {
            let base = model.parameters()[..model.num_base()].iter().enumerate();
            let weights = base.map(|(i, p)| Ok((p.name.clone(), model.merged_weight(ParamId(i))?)));
            plan.write_tensors(weights, &mut file, progress)?;
        }
    }
    let num_bytes = file.num_bytes;
    file.finish()?;
    Ok(Written {
        num_bytes,
        ..plan.written
    })
}

/// Every tensor of the file, in order, and what is told of them afterwards.
struct Plan {
    tensors: Vec<Planned>,
    written: Written,
}

struct Planned {
    /// In the file, and in the checkpoint; made from the configuration where the checkpoint has none.
    name: String,
    from: Option<String>,
    shape: Vec<usize>,
    dtype: GgmlDType,
    rows: Rows,
    /// Of what the configuration gives.
    values: Vec<f32>,
}

impl Planned {
    fn num_bytes(&self) -> u64 {
        let num_values: usize = self.shape.iter().product();
        block_bytes(self.dtype, num_values) as u64
    }
}

impl Plan {
    fn new(config: &ModelConfig, quant: Quant) -> Result<Self> {
        let chooser = TypeChooser::new(config, quant);
        let mut tensors = Vec::new();
        let mut written = Written::default();
        for (from, shape) in config.weight_shapes() {
            let (name, rows) = gguf_names::tensor(config, &from)?;
            let (dtype, fallback) = chooser.choose(&name, &shape);
            if let Some(Fallback { meant, taken }) = fallback {
                let pair = (name_of(meant), name_of(taken));
                *written.fallbacks.entry(pair).or_default() += 1;
            }
            tensors.push(Planned {
                name,
                from: Some(from),
                shape,
                dtype,
                rows,
                values: Vec::new(),
            });
        }
        if let Some((name, values)) = gguf_names::rope_factors(config)? {
            tensors.push(Planned {
                name,
                from: None,
                shape: vec![values.len()],
                dtype: GgmlDType::F32,
                rows: Rows::InOrder,
                values,
            });
        }
        for tensor in &tensors {
            *written.types.entry(name_of(tensor.dtype)).or_default() += 1;
        }
        written.num_tensors = tensors.len();
        Ok(Self { tensors, written })
    }

    /// Everything before the tensors, padded.
    fn header(
        &self,
        config: &ModelConfig,
        quant: Quant,
        settings: &[(String, Value)],
    ) -> Result<Vec<u8>> {
        let mut all = gguf_names::settings(config, quant);
        all.extend_from_slice(settings);
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((all.len() as u64).to_le_bytes());
        for (key, value) in &all {
            put_text(&mut out, key);
            put_value(&mut out, value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            put_text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            // the innermost dimension first
            for size in tensor.shape.iter().rev() {
                out.extend((*size as u64).to_le_bytes());
            }
            out.extend(type_id(tensor.dtype).to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += tensor.num_bytes().next_multiple_of(ALIGNMENT);
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
        Ok(out)
    }

    /// Writes the tensors, those of the checkpoint in the order it gives them.
    fn write_tensors<W: Weight>(
        &self,
        mut weights: impl Iterator<Item = Result<(String, W)>>,
        file: &mut Beside,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let total: u64 = self.tensors.iter().map(Planned::num_bytes).sum();
        let mut done = 0;
        for tensor in &self.tensors {
            // a vector is a column: its rows may have an order too
            let num_rows = tensor.shape.first().copied().unwrap_or(0);
            let width: usize = tensor.shape.iter().skip(1).product();
            let mut write = |read: &(dyn Fn(&[usize]) -> Result<Vec<f32>> + Sync)| -> Result<()> {
                for chunk in chunks(num_rows, width) {
                    let bytes = encoded(tensor, chunk, width, read)?;
                    done += bytes.len() as u64;
                    file.put(&bytes)?;
                    progress(done, total)?;
                }
                Ok(())
            };
            match &tensor.from {
                None => write(&|rows| Ok(rows.iter().map(|&row| tensor.values[row]).collect()))?,
                Some(from) => {
                    let next = weights.next().transpose()?;
                    let Some((name, weight)) = next.filter(|(name, _)| name == from) else {
                        return Err(Error::input(format!("the model has no tensor `{from}`")));
                    };
                    let at = |e: Error| e.at(weight.place(&name));
                    write(&|rows| weight.rows(rows, width).map_err(at))?;
                    weight.forget();
                }
            }
            let padding = tensor.num_bytes().next_multiple_of(ALIGNMENT) - tensor.num_bytes();
            file.put(&[0; ALIGNMENT as usize][..padding as usize])?;
        }
        Ok(())
    }
}

/// Ranges of rows that together are all, of at most [`CHUNK`] values where a row is not longer.
fn chunks(num_rows: usize, width: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let step = (CHUNK / width.max(1)).max(1);
    (0..num_rows)
        .step_by(step)
        .map(move |start| start..(start + step).min(num_rows))
}

/// Some rows in the type of the file, converted by several threads.
fn encoded(
    tensor: &Planned,
    chunk: std::ops::Range<usize>,
    width: usize,
    read: &(dyn Fn(&[usize]) -> Result<Vec<f32>> + Sync),
) -> Result<Vec<u8>> {
    let sources: Vec<usize> = chunk.map(|row| tensor.rows.source(row)).collect();
    let per_thread = sources.len().div_ceil(4 * rayon::current_num_threads());
    let parts: Vec<Vec<u8>> = sources
        .par_chunks(per_thread.max(1))
        .map(|rows| {
            let at = |e: Error| e.at(format!("tensor `{}`", tensor.name));
            encode(read(rows)?, width, tensor.dtype).map_err(at)
        })
        .collect::<Result<_>>()?;
    Ok(parts.concat())
}

/// Whole rows of finite values in a type of the file.
fn encode(values: Vec<f32>, width: usize, dtype: GgmlDType) -> Result<Vec<u8>> {
    // the scale of a block is f16; none is larger than the block's largest value
    let (largest, wider) = match dtype {
        GgmlDType::F32 => return Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        GgmlDType::BF16 => (bf16::MAX.to_f32(), "f32"),
        _ => (f16::MAX.to_f32(), "f32 or bf16"),
    };
    if let Some(value) = values.iter().find(|v| v.abs() > largest) {
        return Err(
            Error::input(format!("value {value} is too large for {}", name_of(dtype)))
                .with_hint(format!("use `--quant` {wider}")),
        );
    }
    match dtype {
        GgmlDType::F16 => {
            return Ok(values
                .iter()
                .flat_map(|v| f16::from_f32(*v).to_le_bytes())
                .collect());
        }
        GgmlDType::BF16 => {
            return Ok(values
                .iter()
                .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
                .collect());
        }
        _ => {}
    }
    let own = match dtype {
        GgmlDType::Q8_0 => Some(GgmlType::Q8_0),
        GgmlDType::Q4K => Some(GgmlType::Q4_K),
        _ => None,
    };
    if let Some(of) = own {
        let mut bytes = vec![0; of.num_bytes(values.len())];
        ops::encode_ggml(&values, of, &mut bytes);
        return Ok(bytes);
    }
    let num_rows = values.len() / width.max(1);
    let tensor = Tensor::from_vec(values, (num_rows, width), &Device::Cpu)?;
    Ok(QTensor::quantize(&tensor, dtype)?.data()?.into_owned())
}

/// A weight that can be read row by row.
trait Weight: Sync {
    /// These rows end to end, in f32.
    fn rows(&self, rows: &[usize], width: usize) -> Result<Vec<f32>>;
    /// What messages call it.
    fn place(&self, name: &str) -> String;
    /// All of it has been read.
    fn forget(&self) {}
}

impl Weight for &Stored<'_> {
    fn rows(&self, rows: &[usize], width: usize) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(rows.len() * width);
        let data = self.view.data();
        let dtype = self.view.dtype();
        let size = match dtype {
            Dtype::F16 | Dtype::BF16 => 2,
            Dtype::F32 => 4,
            Dtype::F64 => 8,
            other => {
                return Err(Error::input(format!(
                    "dtype {other:?} is not supported, only F32, BF16, F16 and F64"
                )));
            }
        };
        for &row in rows {
            let bytes = &data[row * width * size..(row + 1) * width * size];
            match dtype {
                Dtype::F16 => values.extend(
                    bytes
                        .as_chunks()
                        .0
                        .iter()
                        .map(|b| f16::from_le_bytes(*b).to_f32()),
                ),
                Dtype::BF16 => values.extend(
                    bytes
                        .as_chunks()
                        .0
                        .iter()
                        .map(|b| bf16::from_le_bytes(*b).to_f32()),
                ),
                Dtype::F32 => {
                    values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)))
                }
                _ => values.extend(
                    bytes
                        .as_chunks()
                        .0
                        .iter()
                        .map(|b| f64::from_le_bytes(*b) as f32),
                ),
            }
        }
        finite(values)
    }

    fn place(&self, _: &str) -> String {
        Stored::place(self)
    }

    fn forget(&self) {
        Stored::forget(self);
    }
}

impl Weight for Tensor {
    fn rows(&self, rows: &[usize], width: usize) -> Result<Vec<f32>> {
        let all = self.reshape(((), width))?;
        let index: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        let some = all.index_select(&Tensor::new(index, self.device())?, 0)?;
        let values = some.to_dtype(candle_core::DType::F32)?.flatten_all()?;
        finite(values.to_vec1()?)
    }

    fn place(&self, name: &str) -> String {
        format!("tensor `{name}`")
    }
}

fn finite(values: Vec<f32>) -> Result<Vec<f32>> {
    match values.iter().find(|v| !v.is_finite()) {
        None => Ok(values),
        Some(value) => Err(Error::input(format!("a value is {value}"))
            .with_hint("the checkpoint is damaged or training it had diverged")),
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    const LIST: u32 = 9;
    let id: u32 = match value {
        Value::U32(_) => 4,
        Value::I32(_) | Value::Ints(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::Text(_) | Value::Texts(_) => 8,
    };
    let num_values = match value {
        Value::Ints(list) => Some(list.len()),
        Value::Texts(list) => Some(list.len()),
        _ => None,
    };
    if num_values.is_some() {
        out.extend(LIST.to_le_bytes());
    }
    out.extend(id.to_le_bytes());
    if let Some(n) = num_values {
        out.extend((n as u64).to_le_bytes());
    }
    match value {
        Value::U32(n) => out.extend(n.to_le_bytes()),
        Value::I32(n) => out.extend(n.to_le_bytes()),
        Value::F32(n) => out.extend(n.to_le_bytes()),
        Value::Bool(b) => out.push(u8::from(*b)),
        Value::Text(text) => put_text(out, text),
        Value::Ints(list) => list.iter().for_each(|n| out.extend(n.to_le_bytes())),
        Value::Texts(list) => list.iter().for_each(|text| put_text(out, text)),
    }
}

/// A file that takes its place when it is whole.
struct Beside {
    path: PathBuf,
    /// Gone when it has taken its place.
    partial: Option<PathBuf>,
    file: BufWriter<File>,
    num_bytes: u64,
}

impl Beside {
    fn create(path: &Path) -> Result<Self> {
        let mut partial = path.as_os_str().to_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial).map_err(|e| Error::io("creating", path, e))?;
        Ok(Self {
            path: path.to_path_buf(),
            partial: Some(partial),
            file: BufWriter::with_capacity(1 << 20, file),
            num_bytes: 0,
        })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.num_bytes += bytes.len() as u64;
        let written = self.file.write_all(bytes);
        written.map_err(|e| Error::io("writing", &self.path, e))
    }

    fn finish(mut self) -> Result<()> {
        let mut write = || {
            self.file.flush()?;
            self.file.get_ref().sync_all()?;
            if let Some(partial) = &self.partial {
                fs::rename(partial, &self.path)?;
            }
            Ok(())
        };
        write().map_err(|e| Error::io("writing", &self.path, e))?;
        self.partial = None;
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            // half a file is of no use to anybody
            let _ = fs::remove_file(partial);
        }
    }
}
