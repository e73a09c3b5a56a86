//! Compiles the CUDA kernels to PTX where the feature `cuda` is on; does nothing elsewhere.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    kernels();
}

#[cfg(feature = "cuda")]
fn kernels() {
    println!("cargo::rerun-if-changed=src/ops");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let built = cudaforge::KernelBuilder::new()
        .source_glob("src/ops/*.cu")
        .watch(["src/ops/kernel.cuh", "src/ops/tiles.cuh"])
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()
        .and_then(|ptx| ptx.write(out.join("kernels.rs")));
    if let Err(error) = built {
        // a build script has no other way to fail
        panic!("compiling the CUDA kernels: {error}");
    }
}
