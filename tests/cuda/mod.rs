//! Where the tests of the kernels run: on the first CUDA device with the feature `cuda`, else in the emulator beside this
//! file, which is compiled here with the C++ compiler `CXX`, g++ where that is not set.

#![allow(dead_code)] // each test program uses a part

use candle_core::{DType, Device, Tensor};

/// The device whose tensors go through the kernels.
#[cfg(feature = "cuda")]
pub fn device() -> Device {
    distill::ops::device::cuda(0).expect("a CUDA device")
}

/// The device whose tensors go through the kernels.
#[cfg(not(feature = "cuda"))]
pub fn device() -> Device {
    use std::sync::Once;
    static BUILT: Once = Once::new();
    BUILT.call_once(|| distill::ops::use_emulator(&emulator::build()).unwrap());
    Device::Cpu
}

/// What the CPU computes without the kernels.
pub fn reference<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(feature = "cuda")]
    return work();
    #[cfg(not(feature = "cuda"))]
    distill::ops::pause_emulator(work)
}

#[cfg(not(feature = "cuda"))]
mod emulator {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// The library of all kernels: each `.cu` file in a namespace of its own, and a table of their names.
    pub fn build() -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let out = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let mut files: Vec<PathBuf> = std::fs::read_dir(root.join("src/ops"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "cu"))
            .collect();
        files.sort();
        let mut source = String::from("#include \"kernel.cuh\"\n#include \"tiles.cuh\"\n");
        let mut entries = String::new();
        for file in &files {
            let (room, text) = (
                file.file_stem().unwrap().to_str().unwrap(),
                std::fs::read_to_string(file).unwrap(),
            );
            source += &format!(
                "namespace cu_{room} {{\n#include \"{}\"\n}}\n",
                file.display()
            );
            for rest in text.split("extern \"C\" __global__ void ").skip(1) {
                let rest = match rest.strip_prefix("__launch_bounds__(") {
                    Some(bounds) => bounds.split_once(')').unwrap().1,
                    None => rest,
                };
                let name = rest.split('(').next().unwrap().trim();
                entries +=
                    &format!("    {{\"{name}\", &emulator::Call<&cu_{room}::{name}>::call}},\n");
            }
        }
        source += &format!(
            r#"static const emulator::Entry ENTRIES[] = {{
{entries}}};
extern "C" int emulator_run(const char* name, const uint32_t* grid, const uint32_t* block, uint32_t shared, void** args) {{
    for (const auto& entry : ENTRIES)
        if (std::strcmp(entry.name, name) == 0) {{
            emulator::body = [&] {{ entry.call(args); }};
            emulator::run(grid, block, shared);
            return 0;
        }}
    return 1;
}}
"#
        );
        let (cpp, library) = (out.join("kernels.cpp"), out.join("libkernels.so"));
        std::fs::write(&cpp, source).unwrap();
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_string());
        let built = Command::new(&compiler)
            .args(["-std=c++20", "-O2", "-shared", "-fPIC", "-DEMULATOR"])
            .args(["-ffp-contract=fast", "-mavx2", "-mfma"])
            .arg("-I")
            .arg(root.join("tests/cuda"))
            .arg("-I")
            .arg(root.join("src/ops"))
            .arg(&cpp)
            .arg("-o")
            .arg(&library)
            .status();
        assert!(
            built.as_ref().is_ok_and(|s| s.success()),
            "{compiler} did not compile the kernels: {built:?}"
        );
        library
    }
}

/// Numbers that look random, between -1 and 1.
pub fn noise(shape: &[usize], seed: u32) -> Tensor {
    let num: usize = shape.iter().product();
    let values: Vec<f32> = (0..num as u32)
        .map(|i| {
            let mut x = i.wrapping_mul(0x9e37_79b9) ^ seed.wrapping_mul(0x85eb_ca6b);
            x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
            x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
            (x ^ (x >> 16)) as f32 / u32::MAX as f32 * 2.0 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The same values in `dtype` on the device of the kernels, and as f64 on the CPU.
pub fn both(t: &Tensor, dtype: DType) -> (Tensor, Tensor) {
    let rounded = t.to_dtype(dtype).unwrap();
    (
        rounded.to_device(&device()).unwrap(),
        rounded.to_dtype(DType::F64).unwrap(),
    )
}

/// How far `got` may be from what f64 says, relative to the largest value.
pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 1e-2,
        _ => 1e-5,
    }
}

/// Largest difference relative to the largest value of `want`.
pub fn off(got: &Tensor, want: &Tensor) -> f64 {
    off_above(got, want, 1e-30)
}

/// The same where nothing smaller than `least` counts as the largest value.
pub fn off_above(got: &Tensor, want: &Tensor, least: f64) -> f64 {
    assert_eq!(got.dims(), want.dims());
    let flat = |t: &Tensor| -> Vec<f64> {
        let t = t.to_device(&Device::Cpu).unwrap();
        let t = t.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
        t.to_vec1().unwrap()
    };
    let (got, want) = (flat(got), flat(want));
    let largest = want.iter().fold(least, |m, v| m.max(v.abs()));
    let gap = got.iter().zip(&want).map(|(g, w)| (g - w).abs());
    // a NaN counts as far off
    gap.fold(0.0, |m: f64, d| if d <= m { m } else { d }) / largest
}
