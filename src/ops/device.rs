//! CUDA devices: opening one, and what memory it has and had.

use crate::Result;
use candle_core::Device;

/// CUDA device `ordinal`, with one stream for all threads, and freed memory kept for what is allocated next.
///
/// candle's own way takes the stream of the calling thread, which is another one on each thread of a pool, and gives memory
/// back to the driver whenever the host waits for the device.
///
/// # Errors
/// There is no such device, or the binary was built without CUDA.
pub fn cuda(ordinal: usize) -> Result<Device> {
    #[cfg(feature = "cuda")]
    {
        use std::collections::BTreeMap;
        use std::sync::{Mutex, PoisonError};
        // opened once: tensors of two openings would be on two streams, which do not wait for each other
        static OPEN: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = open.get(&ordinal) {
            return Ok(device.clone());
        }
        let device = Device::new_cuda_with_stream(ordinal)?;
        if let Device::Cuda(cuda) = &device {
            // SAFETY: all tensors of this device live on its one stream
            unsafe { cuda.disable_event_tracking() };
            pool::keep_freed(cuda);
        }
        open.insert(ordinal, device.clone());
        Ok(device)
    }
    #[cfg(not(feature = "cuda"))]
    Ok(Device::new_cuda(ordinal)?)
}

/// Bytes of the most memory that tensors on `device` have taken; none where that is not counted, as on the CPU.
pub fn peak_memory(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => pool::peak(cuda),
        _ => None,
    }
}

/// Bytes of `device` that nobody has taken; none where that cannot be told, as of the CPU.
pub fn free_memory(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            let stream = cuda.cuda_stream();
            let (free, _) = stream.context().mem_get_info().ok()?;
            Some(free as u64)
        }
        _ => None,
    }
}

#[cfg(feature = "cuda")]
mod pool {
    use candle_core::CudaDevice;
    use candle_core::cuda_backend::cudarc::driver::{result, sys};

    fn of(device: &CudaDevice) -> std::result::Result<sys::CUmemoryPool, result::DriverError> {
        let stream = device.cuda_stream();
        stream.context().bind_to_thread()?;
        // SAFETY: the context, and so its device, is there
        unsafe { result::device::get_default_mem_pool(stream.context().cu_device()) }
    }

    pub(super) fn keep_freed(device: &CudaDevice) {
        let mut all = u64::MAX;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // a device without pools works too, more slowly
        // SAFETY: this attribute is a u64
        let _ = of(device).and_then(|pool| unsafe {
            result::mem_pool::set_attribute(pool, attribute, (&raw mut all).cast())
        });
    }

    pub(super) fn peak(device: &CudaDevice) -> Option<u64> {
        let mut bytes = 0u64;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        // SAFETY: this attribute is a u64
        unsafe {
            result::mem_pool::get_attribute(of(device).ok()?, attribute, (&raw mut bytes).cast())
        }
        .ok()?;
        Some(bytes)
    }
}
