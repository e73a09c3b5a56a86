//! The way from a tensor to its numbers, for kernels that work on slices.

use std::ops::Deref;

use candle_core::{CpuStorage, Storage, Tensor};

/// The numbers of a contiguous f32 tensor in the memory of the CPU.
pub(super) struct CpuF32<G> {
    storage: G,
    start: usize,
    end: usize,
}

/// None where `t` is on another device, of another dtype, or not contiguous.
pub(super) fn cpu_f32(t: &Tensor) -> Option<CpuF32<impl Deref<Target = Storage>>> {
    let (storage, layout) = t.storage_and_layout();
    let (start, end) = layout.contiguous_offsets()?;
    matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))).then_some(CpuF32 {
        storage,
        start,
        end,
    })
}

impl<G: Deref<Target = Storage>> Deref for CpuF32<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.start..self.end],
            // excluded where it is made
            _ => &[],
        }
    }
}
