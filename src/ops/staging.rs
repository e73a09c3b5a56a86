//! Copies from the memory of the host to a device that go on beside its work: on a CUDA device a thread of its own brings
//! them into pinned memory, and a stream of its own from there to the device. Other devices have no such copies.

use super::gpu::runs_kernels;
use crate::{Error, Result};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

/// What is copied: bytes that do not change meanwhile.
pub trait HostBytes: Send + Sync {
    /// Hands the bytes to `take`.
    ///
    /// # Errors
    /// They cannot be read; those of `take`.
    fn with(&self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;
}

impl HostBytes for Tensor {
    fn with(&self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (storage, layout) = self.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets())
        else {
            return Err(Error::input(
                "a weight on the host is not in one piece there",
            ));
        };
        match storage {
            CpuStorage::U8(v) => take(&v[start..end]),
            CpuStorage::F32(v) => take(bytemuck::cast_slice(&v[start..end])),
            CpuStorage::F16(v) => take(bytemuck::cast_slice(&v[start..end])),
            CpuStorage::BF16(v) => take(bytemuck::cast_slice(&v[start..end])),
            _ => Err(Error::input("a weight on the host is of no known type")),
        }
    }
}

/// One tensor to be made on the device.
pub struct Part {
    pub bytes: Arc<dyn HostBytes>,
    pub dtype: DType,
    pub shape: Vec<usize>,
}

/// The thread that copies.
pub struct Staging {
    device: Device,
    jobs: Sender<Job>,
}

struct Job {
    parts: Vec<Part>,
    to: Place,
    done: SyncSender<Result<Landed>>,
}

impl Staging {
    /// None where the device has no copies beside its work.
    ///
    /// # Errors
    /// The device or the system refuses.
    pub fn of(device: &Device) -> Result<Option<Self>> {
        if !runs_kernels(device) {
            return Ok(None);
        }
        let (jobs, waiting) = channel::<Job>();
        // where no memory can be pinned, weights are copied by the device's own stream: slower, the same numbers
        let Ok(mut copier) = Copier::new(device) else {
            return Ok(None);
        };
        let work = move || {
            for job in waiting {
                let landed = copier.copy(&job.parts, job.to);
                // nobody waits any more where the pass has failed
                let _ = job.done.send(landed);
            }
        };
        std::thread::Builder::new()
            .name("staging".into())
            .spawn(work)
            .map_err(|e| Error::input(format!("starting the thread that copies weights: {e}")))?;
        Ok(Some(Self {
            device: device.clone(),
            jobs,
        }))
    }

    /// Begins to copy.
    ///
    /// # Errors
    /// The device has no room.
    pub fn begin(&self, parts: Vec<Part>) -> Result<Coming> {
        let (to, tensors) = Place::new(&self.device, &parts)?;
        let (done, landed) = sync_channel(1);
        let job = Job { parts, to, done };
        self.jobs
            .send(job)
            .map_err(|_| Error::input("the thread that copies weights has ended"))?;
        Ok(Coming {
            device: self.device.clone(),
            tensors,
            landed: Some(landed),
        })
    }
}

/// Tensors on their way.
pub struct Coming {
    device: Device,
    tensors: Vec<Tensor>,
    landed: Option<Receiver<Result<Landed>>>,
}

impl Coming {
    /// The tensors: whatever the device does with them next begins when they are there.
    ///
    /// # Errors
    /// What was copied could not be read; the device refuses.
    pub fn wait(mut self) -> Result<Vec<Tensor>> {
        let landed = self.land()?;
        Ok(match landed {
            Some(Landed::At(tensors)) => tensors,
            _ => std::mem::take(&mut self.tensors),
        })
    }

    fn land(&mut self) -> Result<Option<Landed>> {
        let Some(landed) = self.landed.take() else {
            return Ok(None);
        };
        let landed = landed
            .recv()
            .map_err(|_| Error::input("the thread that copies weights has ended"))??;
        landed.before_what_follows(&self.device)?;
        Ok(Some(landed))
    }
}

impl Drop for Coming {
    /// Memory is not given back while it is still written to.
    fn drop(&mut self) {
        let _ = self.land();
    }
}

#[cfg(feature = "cuda")]
use cuda::{Copier, Landed, Place};
#[cfg(not(feature = "cuda"))]
use host::{Copier, Landed, Place};

/// Without a CUDA device there is its emulator, where the host's memory is the device's.
#[cfg(not(feature = "cuda"))]
mod host {
    use super::*;

    pub(super) struct Copier;
    pub(super) struct Place;
    pub(super) enum Landed {
        At(Vec<Tensor>),
    }

    impl Landed {
        pub(super) fn before_what_follows(&self, _: &Device) -> Result<()> {
            Ok(())
        }
    }

    impl Place {
        pub(super) fn new(_: &Device, _: &[Part]) -> Result<(Self, Vec<Tensor>)> {
            Ok((Self, Vec::new()))
        }
    }

    impl Copier {
        pub(super) fn new(_: &Device) -> Result<Self> {
            Ok(Self)
        }

        pub(super) fn copy(&mut self, parts: &[Part], _: Place) -> Result<Landed> {
            let copied = |part: &Part| -> Result<Tensor> {
                let mut copy = None;
                part.bytes.with(&mut |bytes| {
                    let cpu = &Device::Cpu;
                    copy = Some(Tensor::from_raw_buffer(
                        bytes,
                        part.dtype,
                        &part.shape,
                        cpu,
                    )?);
                    Ok(())
                })?;
                copy.ok_or_else(|| Error::input("a weight on the host has no bytes"))
            };
            Ok(Landed::At(parts.iter().map(copied).collect::<Result<_>>()?))
        }
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::super::gpu::Gpu;
    use super::*;
    use candle_core::cuda_backend::CudaDevice;
    use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, result, sys};
    use std::ffi::c_void;

    /// Bytes that go at a time, through pieces of pinned memory in turn.
    const PIECE: usize = 16 << 20;
    const NUM_PIECES: usize = 2;

    fn failed(error: impl std::fmt::Display) -> Error {
        Error::input(format!("copying weights to the CUDA device: {error}"))
    }

    fn cuda(device: &Device) -> Result<&CudaDevice> {
        match device {
            Device::Cuda(device) => Ok(device),
            _ => Err(failed("it is none")),
        }
    }

    /// Where the copies go, and when there is room.
    pub(super) struct Place {
        addresses: Vec<u64>,
        /// What the device's stream did before the memory was taken: it may have been that of something else.
        free: CudaEvent,
    }

    impl Place {
        pub(super) fn new(device: &Device, parts: &[Part]) -> Result<(Self, Vec<Tensor>)> {
            let empty = |part: &Part| -> Result<Tensor> {
                // SAFETY: the copy writes all of it before anybody reads it
                Ok(unsafe { Tensor::empty(part.shape.as_slice(), part.dtype, device) }?)
            };
            let tensors: Vec<Tensor> = parts.iter().map(empty).collect::<Result<_>>()?;
            let gpu = Gpu::on(device).ok_or_else(|| failed("it runs no kernels"))?;
            let addresses = tensors
                .iter()
                .map(|t| gpu.address_of(t))
                .collect::<Result<_>>()?;
            let stream = cuda(device)?.cuda_stream();
            stream.context().bind_to_thread().map_err(failed)?;
            let free = stream.record_event(None).map_err(failed)?;
            Ok((Self { addresses, free }, tensors))
        }
    }

    /// The end of a copy in its stream.
    pub(super) enum Landed {
        After(CudaEvent),
        #[allow(dead_code)] // of the emulator
        At(Vec<Tensor>),
    }

    impl Landed {
        /// What is asked of the device from now on waits for the copy.
        pub(super) fn before_what_follows(&self, device: &Device) -> Result<()> {
            let stream = cuda(device)?.cuda_stream();
            match self {
                Self::After(event) => stream.wait(event).map_err(failed),
                Self::At(_) => Ok(()),
            }
        }
    }

    pub(super) struct Copier {
        stream: Arc<CudaStream>,
        pieces: Vec<Piece>,
        next: usize,
    }

    /// Pinned memory, and when the last copy out of it has ended.
    struct Piece {
        memory: *mut u8,
        read: CudaEvent,
    }

    // SAFETY: the memory is the copier's own, whichever thread that is
    unsafe impl Send for Copier {}

    impl Copier {
        pub(super) fn new(device: &Device) -> Result<Self> {
            let context = cuda(device)?.cuda_stream().context().clone();
            let stream = context.new_stream().map_err(failed)?;
            let mut copier = Self {
                stream,
                pieces: Vec::new(),
                next: 0,
            };
            for _ in 0..NUM_PIECES {
                // whoever waits for it sleeps
                let flags = Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC);
                let read = copier.stream.record_event(flags).map_err(failed)?;
                // SAFETY: the context is there; the copier gives the memory back
                let memory = unsafe { result::malloc_host(PIECE, 0) }.map_err(failed)?;
                let memory = memory.cast();
                copier.pieces.push(Piece { memory, read });
            }
            Ok(copier)
        }

        pub(super) fn copy(&mut self, parts: &[Part], to: Place) -> Result<Landed> {
            let landed = self.copy_all(parts, &to);
            if landed.is_err() {
                // the tensors are given back now: what is on its way into them arrives first
                let _ = self.stream.synchronize();
            }
            landed
        }

        fn copy_all(&mut self, parts: &[Part], to: &Place) -> Result<Landed> {
            self.stream.context().bind_to_thread().map_err(failed)?;
            self.stream.wait(&to.free).map_err(failed)?;
            for (part, address) in parts.iter().zip(&to.addresses) {
                let size = part.shape.iter().product::<usize>() * part.dtype.size_in_bytes();
                part.bytes.with(&mut |bytes| {
                    if bytes.len() != size {
                        return Err(failed(format!("{} bytes in place of {size}", bytes.len())));
                    }
                    for (i, bytes) in bytes.chunks(PIECE).enumerate() {
                        self.send(bytes, address + (i * PIECE) as u64)?;
                    }
                    Ok(())
                })?;
            }
            let landed = self.stream.record_event(None).map_err(failed)?;
            Ok(Landed::After(landed))
        }

        /// At most a piece.
        fn send(&mut self, bytes: &[u8], address: u64) -> Result<()> {
            let piece = &self.pieces[self.next];
            self.next = (self.next + 1) % self.pieces.len();
            piece.read.synchronize().map_err(failed)?;
            // SAFETY: the piece is that large, and the copy out of it has ended; the device's memory is that of a tensor
            // which is held until the copy has landed
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), piece.memory, bytes.len());
                let pinned = std::slice::from_raw_parts(piece.memory, bytes.len());
                result::memcpy_htod_async(address, pinned, self.stream.cu_stream())
            }
            .map_err(failed)?;
            piece.read.record(&self.stream).map_err(failed)
        }
    }

    impl Drop for Copier {
        fn drop(&mut self) {
            // a device that has failed takes its memory along
            let _ = self.stream.context().bind_to_thread();
            let _ = self.stream.synchronize();
            for piece in &self.pieces {
                // SAFETY: it came from there, and no copy reads it any more
                let _ = unsafe { result::free_host(piece.memory.cast::<c_void>()) };
            }
        }
    }
}
