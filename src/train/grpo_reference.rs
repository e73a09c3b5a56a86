//! The policy that GRPO's KL is taken to. It is asked once a rollout, so where all weights are trained it is kept in a file and
//! in memory only while it is asked: its place then belongs to the gradients. Beside adapters the frozen weights are shared.

use super::grpo_update::{self, Learnt};
use crate::model::CausalLm;
use crate::recipe::grpo::Grpo;
use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Name of its file, in the folder of the run and in checkpoints.
pub const REFERENCE: &str = "reference.safetensors";

/// The reference.
pub enum ReferencePolicy {
    /// The frozen weights of the policy, with adapters of its own or none.
    Beside(Box<CausalLm>),
    /// All weights.
    InFile(PathBuf),
}

impl ReferencePolicy {
    /// The policy as it is now, kept in `dir`.
    ///
    /// # Errors
    /// The disk or the device refuses.
    pub fn of(policy: &CausalLm, settings: &Grpo, dir: &Path) -> Result<Self> {
        if policy.adapter_config().is_none() {
            // in a folder of its own, with what a killed process left half-written
            let dir = dir.join("reference");
            forget(&dir)?;
            fs::create_dir_all(&dir).map_err(|e| Error::io("creating", &dir, e))?;
            let reference = Self::InFile(dir.join(REFERENCE));
            reference.follow(policy)?;
            return Ok(reference);
        }
        // adapters that change nothing yet are the same as none, and cost nothing
        let stays = settings.reference_every_steps == 0;
        Ok(Self::Beside(Box::new(
            match stays && policy.adapters_are_neutral()? {
                true => policy.without_adapters()?,
                false => policy.copy()?,
            },
        )))
    }

    /// Log-probabilities of the tokens of every completion.
    ///
    /// # Errors
    /// As [`grpo_update::logprobs`]; a file that is not as it was.
    pub fn logprobs(
        &self,
        policy: &CausalLm,
        all: &[Learnt],
        settings: &Grpo,
    ) -> Result<Vec<Vec<f64>>> {
        match self {
            Self::Beside(model) => grpo_update::logprobs(model, all, settings),
            Self::InFile(path) => {
                grpo_update::logprobs(&policy.with_weights_of(path)?, all, settings)
            }
        }
    }

    /// Becomes the policy as it is now.
    ///
    /// # Errors
    /// The disk or the device refuses.
    pub fn follow(&self, policy: &CausalLm) -> Result<()> {
        match self {
            Self::Beside(model) => model.copy_from(policy),
            Self::InFile(path) => {
                let beside = path.with_extension("partial");
                policy.save_file(&beside)?;
                replace(&beside, path)
            }
        }
    }

    /// Deletes its file: the run has ended.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn close(self) -> Result<()> {
        match &self {
            Self::InFile(path) => path.parent().map_or(Ok(()), forget),
            Self::Beside(_) => Ok(()),
        }
    }

    /// Writes it to `path`.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save(&self, path: &Path) -> Result<()> {
        match self {
            Self::Beside(model) => model.save_file(path),
            Self::InFile(own) => link(own, path),
        }
    }

    /// Takes it back from `path`, where [`ReferencePolicy::save`] wrote it.
    ///
    /// # Errors
    /// A file of another model; the disk refuses.
    pub fn restore(&self, path: &Path) -> Result<()> {
        match self {
            Self::Beside(model) => model.copy_from(&model.with_weights_of(path)?),
            Self::InFile(own) => {
                let beside = own.with_extension("partial");
                link(path, &beside)?;
                replace(&beside, own)
            }
        }
    }
}

fn forget(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("deleting", dir, e)),
        _ => Ok(()),
    }
}

/// `to` with the content of `from`. Neither is ever written in place, so they may share it.
fn link(from: &Path, to: &Path) -> Result<()> {
    match fs::remove_file(to) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("deleting", to, e));
        }
        _ => {}
    }
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        // a file system without links
        Err(_) => fs::copy(from, to)
            .map(|_| ())
            .map_err(|e| Error::io("writing", to, e)),
    }
}

fn replace(beside: &Path, path: &Path) -> Result<()> {
    fs::File::open(beside)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(beside, path))
        .map_err(|e| Error::io("writing", path, e))
}
