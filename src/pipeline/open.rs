//! Opens what a recipe or a command line names: a device, a student, a folder of traces. Hub names are fetched into the
//! standard cache; local folders and files need no network.

use crate::data::builtin;
use crate::model::{Architecture, CausalLm, LoadOptions, ModelConfig};
use crate::progress::Reporter;
use crate::recipe::Dtype;
use crate::recipe::Init;
use crate::recipe::plan::{StudentPlan, StudentSource, model_source};
use crate::tokenize::Chat;
use crate::{Error, Result, hub};
use candle_core::{DType, Device};
use std::path::{Path, PathBuf};

/// A model with its tokenizer and template.
pub struct Opened {
    pub model: CausalLm,
    pub chat: Chat,
    /// Where tokenizer and weights came from.
    pub folder: PathBuf,
    /// The Hub commit, for a model from the Hub.
    pub revision: Option<String>,
}

/// The device called `name`: `auto`, `cpu`, `cuda`, `cuda:N` or `metal`.
///
/// # Errors
/// A name that is none of these; a device that this binary was not built for or that is not there.
pub fn device(name: &str) -> Result<Device> {
    let ordinal = match name {
        "cpu" => return Ok(Device::Cpu),
        "auto" => {
            if cfg!(feature = "cuda")
                && let Ok(device) = Device::new_cuda(0)
            {
                return Ok(device);
            }
            if cfg!(feature = "metal")
                && let Ok(device) = Device::new_metal(0)
            {
                return Ok(device);
            }
            return Ok(Device::Cpu);
        }
        "metal" => {
            return Device::new_metal(0).map_err(|e| {
                Error::input(format!("device `metal` cannot be used: {}", first_line(&e)))
                    .with_hint("build with `--features metal` on a Mac, or use `--device cpu`")
            });
        }
        "cuda" => Some(0),
        _ => name.strip_prefix("cuda:").and_then(|n| n.parse::<usize>().ok()),
    };
    let Some(ordinal) = ordinal else {
        return Err(Error::input(format!("unknown device `{name}`")).with_hint("devices: auto, cpu, cuda:N, metal"));
    };
    Device::new_cuda(ordinal).map_err(|e| {
        Error::input(format!("device `{name}` cannot be used: {}", first_line(&e)))
            .with_hint("build with `--features cuda` on a machine with an NVIDIA driver, or use `--device cpu`")
    })
}

fn first_line(e: &candle_core::Error) -> String {
    e.to_string().lines().next().unwrap_or_default().to_string()
}

/// candle's name of a recipe's dtype.
pub fn dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::Bf16 => DType::BF16,
        Dtype::F16 => DType::F16,
    }
}

/// Opens the model called `place`: a card, `org/name[@revision]` or a folder.
///
/// # Errors
/// No such model, or one that cannot be loaded.
pub fn open_model(place: &str, device_name: &str, dtype_name: Dtype, reporter: &dyn Reporter) -> Result<Opened> {
    let (source, _) = model_source(place)?;
    let (folder, revision) = local_folder(&source, reporter)?;
    let options = LoadOptions {
        device: device(device_name)?,
        dtype: dtype(dtype_name),
    };
    let chat = Chat::load(&folder, None)?;
    let model = CausalLm::load(&folder, &options)?;
    Ok(Opened {
        model,
        chat,
        folder,
        revision,
    })
}

/// The local folder of a checkpoint, fetched where it is on the Hub, with the commit it has there.
fn local_folder(source: &StudentSource, reporter: &dyn Reporter) -> Result<(PathBuf, Option<String>)> {
    match source {
        StudentSource::Folder(path) => Ok((PathBuf::from(path), None)),
        StudentSource::Hub { repo, revision } => {
            let resolved = hub::resolve_model(repo, Some(revision), reporter)?;
            Ok((resolved.folder, resolved.revision))
        }
        StudentSource::Random(_) => Err(Error::input("a student with random weights has no folder")),
    }
}
