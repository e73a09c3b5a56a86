//! safetensors in, in the layout and with the names of Hugging Face. Files are read through mmap; they are written in
//! `weights_save`.

use super::{ModelConfig, Parameter};
use crate::ops::staging::HostBytes;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor, WithDType};
use memmap2::Mmap;
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorView};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;
use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Reads the weights of `config` from `folder`, in the order of [`ModelConfig::weight_shapes`].
///
/// # Errors
/// A missing, unexpected, wrong-shaped or non-finite tensor, a damaged file: each names file and tensor.
pub fn load(
    folder: &Path,
    config: &ModelConfig,
    device: &Device,
    dtype: DType,
) -> Result<Vec<Tensor>> {
    load_each(folder, config, dtype, &mut |_, tensor, _| {
        Ok(tensor.to_device(device)?)
    })
}

/// The same where `keep` decides what is kept of each, which is given to it on the CPU with its place in that order, and as
/// it lies in its file.
///
/// # Errors
/// As [`load`], and those of `keep`.
pub(super) fn load_each(
    folder: &Path,
    config: &ModelConfig,
    dtype: DType,
    keep: &mut dyn FnMut(usize, Tensor, &Stored<'_>) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    with_stored(folder, config, |all| {
        let kept = |(place, stored): (usize, &Stored<'_>)| {
            convert(&stored.view, dtype, &|bytes| forget(stored.mmap, bytes))
                .and_then(|tensor| keep(place, tensor, stored))
                .map_err(|e| e.at(stored.place()))
        };
        all.iter().enumerate().map(kept).collect()
    })
}

/// A weight as it lies in its file, not read yet.
pub(super) struct Stored<'a> {
    pub name: String,
    pub view: TensorView<'a>,
    path: &'a Path,
    mmap: &'a Arc<Mmap>,
}

impl Stored<'_> {
    /// What messages call it.
    pub fn place(&self) -> String {
        format!("`{}`: tensor `{}`", self.path.display(), self.name)
    }

    /// It has been read; see [`forget`].
    pub fn forget(&self) {
        forget(self.mmap, self.view.data());
    }

    /// The same to be kept.
    pub fn in_file(&self) -> Result<InFile> {
        let start = self.view.data().as_ptr() as usize - self.mmap.as_ptr() as usize;
        Ok(InFile {
            mmap: self.mmap.clone(),
            bytes: start..start + self.view.data().len(),
            stored: stored_dtype(&self.view)?,
            shape: self.view.shape().to_vec(),
        })
    }
}

/// A weight that stays in its file; its values were looked at when it was found.
pub(super) struct InFile {
    mmap: Arc<Mmap>,
    bytes: Range<usize>,
    stored: DType,
    shape: Vec<usize>,
}

impl InFile {
    /// Its values on a device; the pages of the file are let go again.
    pub fn read(&self, device: &Device, dtype: DType) -> Result<Tensor> {
        let data = &self.mmap[self.bytes.clone()];
        let tensor = Tensor::from_raw_buffer(data, self.stored, &self.shape, device)?;
        forget(&self.mmap, data);
        Ok(tensor.to_dtype(dtype)?)
    }

    /// The dtype that it has there.
    pub fn stored(&self) -> DType {
        self.stored
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// It will be read soon.
    pub fn expect(&self) {
        // that it did not work costs time
        #[cfg(unix)]
        let _ = self.mmap.advise_range(
            memmap2::Advice::WillNeed,
            self.bytes.start,
            self.bytes.len(),
        );
    }
}

impl HostBytes for InFile {
    fn with(&self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let data = &self.mmap[self.bytes.clone()];
        let taken = take(data);
        forget(&self.mmap, data);
        taken
    }
}

/// Finds the weights of `config` in `folder` and hands them to `take`, in the order of [`ModelConfig::weight_shapes`].
///
/// # Errors
/// A missing, unexpected or wrong-shaped tensor, a damaged file; what `take` gives.
pub(super) fn with_stored<T>(
    folder: &Path,
    config: &ModelConfig,
    take: impl FnOnce(&[Stored<'_>]) -> Result<T>,
) -> Result<T> {
    let Files {
        paths,
        listed,
        list,
    } = files(folder)?;
    let maps: Vec<(PathBuf, Arc<Mmap>)> = paths
        .into_iter()
        .map(|path| map(&path).map(|m| (path, Arc::new(m))))
        .collect::<Result<_>>()?;
    let mut places: HashMap<String, (usize, TensorView<'_>)> = HashMap::new();
    for (i, (path, mmap)) in maps.iter().enumerate() {
        let file = SafeTensors::deserialize(mmap).map_err(|e| not_whole(path, &e))?;
        for (name, view) in file.tensors() {
            if let Some((other, _)) = places.insert(name.clone(), (i, view)) {
                return Err(Error::input(format!(
                    "tensor `{name}` is in two files, `{}` and `{}`",
                    maps[other].0.display(),
                    path.display()
                ))
                .with_hint("the folder mixes two checkpoints: fetch or save it again"));
            }
        }
    }
    let mut all = Vec::new();
    for (name, shape) in config.weight_shapes() {
        let Some((i, view)) = places.remove(&name) else {
            let file = listed.get(&name).unwrap_or(&list);
            return Err(Error::input(format!(
                "`{}` has no tensor `{name}`, expected with shape {shape:?}",
                file.display()
            ))
            .with_hint(
                "the checkpoint is incomplete, or its `config.json` describes another model",
            ));
        };
        let (path, mmap) = &maps[i];
        if view.shape() != shape {
            return Err(Error::input(format!(
                "`{}`: tensor `{name}` has shape {:?}, expected {shape:?}",
                path.display(),
                view.shape()
            ))
            .with_hint("the weights do not fit `config.json`"));
        }
        all.push(Stored {
            name,
            view,
            path,
            mmap,
        });
    }
    // buffers that older files carry, and a head that is tied anyway
    places.retain(|name, _| {
        let tied = config.tie_word_embeddings && name == "lm_head.weight";
        !(name.ends_with("rotary_emb.inv_freq") || tied)
    });
    if let Some(name) = places.keys().min() {
        return Err(Error::input(format!(
            "`{}` holds {} tensors that the model does not have, such as `{name}`",
            maps[places[name].0].0.display(),
            places.len()
        ))
        .with_hint("the weights do not fit `config.json`"));
    }
    take(&all)
}

/// The safetensors files of a folder.
struct Files {
    paths: Vec<PathBuf>,
    /// Where the index says each tensor is.
    listed: HashMap<String, PathBuf>,
    /// The file to look into for what there is: the index, or the only file.
    list: PathBuf,
}

fn files(folder: &Path) -> Result<Files> {
    let index = folder.join(INDEX);
    if !index.exists() {
        let single = folder.join(SINGLE);
        if !single.exists() {
            return Err(Error::input(format!(
                "`{}` has neither `{SINGLE}` nor `{INDEX}`",
                folder.display()
            ))
            .with_hint("only safetensors checkpoints are read"));
        }
        return Ok(Files {
            paths: vec![single.clone()],
            listed: HashMap::new(),
            list: single,
        });
    }
    let listed = listed(folder, &index)?;
    let mut paths: Vec<PathBuf> = listed.values().cloned().collect();
    paths.sort();
    paths.dedup();
    Ok(Files {
        paths,
        listed,
        list: index,
    })
}

/// What an index may hold besides is of no use here.
#[derive(Deserialize)]
struct Index {
    weight_map: Entries,
}

/// The pairs of a JSON object in their order, a repeated key included.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map from tensor to file")
            }
            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Entries, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Entries(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// The file of each tensor, as the index has it.
fn listed(folder: &Path, index: &Path) -> Result<HashMap<String, PathBuf>> {
    let place = index.display();
    let bytes = fs::read(index).map_err(|e| Error::io("reading", index, e))?;
    let Index { weight_map } = serde_json::from_slice(&bytes).map_err(|e| match e.classify() {
        Category::Data => Error::input(format!("`{place}`: {e}")),
        _ => Error::input(format!("`{place}` is not valid JSON: {e}")),
    })?;
    let mut listed: HashMap<String, PathBuf> = HashMap::new();
    for (name, file) in weight_map.0 {
        let Some(file) = file.as_str() else {
            return Err(Error::input(format!(
                "`{place}`: the file of tensor `{name}` must be a string, found {file}"
            )));
        };
        if let Some(other) = listed.insert(name.clone(), folder.join(file)) {
            return Err(Error::input(format!(
                "`{place}` lists tensor `{name}` twice, in `{}` and in `{file}`",
                other.strip_prefix(folder).unwrap_or(&other).display()
            )));
        }
    }
    if listed.is_empty() {
        return Err(Error::input(format!("`{place}`: `weight_map` is empty")));
    }
    Ok(listed)
}

/// Every tensor of one file, in the dtype that it is stored in.
///
/// # Errors
/// A damaged file, values that are not finite.
pub(super) fn read_all(path: &Path, device: &Device) -> Result<HashMap<String, Tensor>> {
    let mmap = map(path)?;
    let file = SafeTensors::deserialize(&mmap).map_err(|e| not_whole(path, &e))?;
    let tensor = |(name, view): (String, TensorView<'_>)| {
        let value = stored_dtype(&view)
            .and_then(|dtype| convert(&view, dtype, &|bytes| forget(&mmap, bytes)))
            .and_then(|tensor| Ok(tensor.to_device(device)?))
            .map_err(|e| e.at(format!("`{}`: tensor `{name}`", path.display())))?;
        Ok((name, value))
    };
    file.tensors().into_iter().map(tensor).collect()
}

/// The tensors of one file that have the names, shapes and dtypes of `like`, read straight to where they stay: the largest
/// is never in memory twice.
///
/// # Errors
/// A damaged file, or one of other tensors.
pub(super) fn read_like(path: &Path, like: &[Parameter], device: &Device) -> Result<Vec<Tensor>> {
    let io = |e| Error::io("reading", path, e);
    let mut file = File::open(path).map_err(io)?;
    let num_bytes = file.metadata().map_err(io)?.len();
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(io)?;
    let header = u64::from_le_bytes(size);
    if header > num_bytes {
        return Err(not_whole(path, &SafeTensorError::HeaderTooLarge));
    }
    let mut head = vec![0; header as usize];
    file.read_exact(&mut head).map_err(io)?;
    let metadata: Metadata = serde_json::from_slice(&head)
        .map_err(|e| not_whole(path, &SafeTensorError::InvalidHeaderDeserialization(e)))?;
    let read = |p: &Parameter| -> Result<Tensor> {
        let other = || {
            let name = &p.name;
            Error::input(format!(
                "`{}` does not hold `{name}` as it was saved",
                path.display()
            ))
        };
        let info = metadata.info(&p.name).ok_or_else(other)?;
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            _ => return Err(other()),
        };
        if (dtype, info.shape.as_slice()) != (p.value.dtype(), p.value.dims()) {
            return Err(other());
        }
        let start = 8 + header + info.data_offsets.0 as u64;
        (&file).seek(SeekFrom::Start(start)).map_err(io)?;
        let tensor = match dtype {
            DType::BF16 => read_values::<half::bf16>(&file, &info.shape),
            DType::F16 => read_values::<half::f16>(&file, &info.shape),
            _ => read_values::<f32>(&file, &info.shape),
        };
        Ok(tensor
            .map_err(|e| e.at(format!("`{}`", path.display())))?
            .to_device(device)?)
    };
    like.iter().map(read).collect()
}

fn read_values<T: bytemuck::Pod + WithDType>(mut file: &File, shape: &[usize]) -> Result<Tensor> {
    let mut values = vec![T::zeroed(); shape.iter().product()];
    file.read_exact(bytemuck::cast_slice_mut(&mut values))
        .map_err(|e| Error::input(format!("its tensors end early: {e}")))?;
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

fn not_whole(path: &Path, e: &SafeTensorError) -> Error {
    Error::input(format!(
        "`{}` is not a whole safetensors file: {e}",
        path.display()
    ))
    .with_hint("fetch or copy the file again")
}

fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::io("opening", path, e))?;
    // SAFETY: a file that another process shortens while it is read ends this one; checkpoints are not written in place
    unsafe { Mmap::map(&file) }.map_err(|e| Error::io("mapping", path, e))
}

/// Lets go of the pages of `data`, which have been copied: a file would else be in memory twice while it is read.
fn forget(mmap: &Mmap, data: &[u8]) {
    let start = data.as_ptr() as usize - mmap.as_ptr() as usize;
    // SAFETY: pages of a file that is only read; who looks at them again reads them again. That it did not work costs memory
    #[cfg(unix)]
    let _ = unsafe {
        mmap.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, data.len())
    };
}

fn stored_dtype(view: &TensorView<'_>) -> Result<DType> {
    match view.dtype() {
        Dtype::F32 => Ok(DType::F32),
        Dtype::BF16 => Ok(DType::BF16),
        Dtype::F16 => Ok(DType::F16),
        Dtype::F64 => Ok(DType::F64),
        other => Err(Error::input(format!(
            "dtype {other:?} is not supported, only F32, BF16, F16 and F64"
        ))),
    }
}

/// Values that are converted at a time: those in the file, and what is made on the way, are never in memory whole.
const PIECE: usize = 1 << 20;

/// The values of `view` in `dtype`; `forget` is told of bytes that have been read.
fn convert(view: &TensorView<'_>, dtype: DType, forget: &dyn Fn(&[u8])) -> Result<Tensor> {
    let stored = stored_dtype(view)?;
    let num_all: usize = view.shape().iter().product();
    let all = Tensor::zeros(num_all, dtype, &Device::Cpu)?;
    let (mut num_bad, mut num_too_large) = (0, 0);
    let size = stored.size_in_bytes();
    for (i, bytes) in view.data().chunks(PIECE * size).enumerate() {
        let piece = Tensor::from_raw_buffer(bytes, stored, &[bytes.len() / size], &Device::Cpu)?;
        num_bad += non_finite(&piece)?;
        let converted = piece.to_dtype(dtype)?;
        if stored != dtype {
            num_too_large += non_finite(&converted)?;
        }
        all.slice_set(&converted, 0, i * PIECE)?;
        forget(bytes);
    }
    if num_bad > 0 {
        return Err(
            Error::input(format!("{num_bad} of {num_all} values are not finite"))
                .with_hint("the checkpoint is damaged or training it had diverged"),
        );
    }
    if num_too_large > 0 {
        return Err(Error::input(format!(
            "{num_too_large} of {num_all} values are too large for {}",
            dtype.as_str()
        ))
        .with_hint("use a dtype of a wider range, such as bf16 or f32"));
    }
    Ok(all.reshape(view.shape())?)
}

/// Number of values that are NaN or infinite.
fn non_finite(tensor: &Tensor) -> Result<usize> {
    // x - x is 0 for finite values, NaN for the others
    let bad = tensor.sub(tensor)?.ne(0f32)?.flatten_all()?;
    Ok(bad.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()? as usize)
}
