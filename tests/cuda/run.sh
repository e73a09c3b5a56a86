#!/usr/bin/env bash
# The CUDA kernels without a GPU: compiled by nvcc (from PyPI, into target/nvcc, where none is on the path), then run in the
# emulator, the threads of a block in both orders, with the shared memory of a large and a small card. Needs python3 with pip and a C++ compiler.
set -euo pipefail
cd "$(dirname "$0")/../.."

nvcc=$(command -v nvcc || true)
if [[ -z $nvcc ]]; then
  tools=$PWD/target/nvcc
  if [[ ! -f $tools/complete ]]; then
    rm -rf "$tools"
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$tools" \
      'nvidia-cuda-nvcc==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-cuda-runtime==13.0.*'
    chmod +x "$tools"/nvidia/cu13/bin/* "$tools"/nvidia/cu13/nvvm/bin/*
    touch "$tools/complete"
  fi
  nvcc=$tools/nvidia/cu13/bin/nvcc
fi
for kernels in src/ops/*.cu; do
  for arch in sm_80 sm_90; do
    "$nvcc" -cubin -arch=$arch -std=c++17 -O3 -Werror all-warnings -Xptxas -v,-warn-spills "$kernels" -o target/kernels.cubin 2> target/kernels.log ||
      { cat target/kernels.log; exit 1; }
    if grep -q -i "spill.*warning\|warning.*spill\|[1-9][0-9]* bytes spill" target/kernels.log; then cat target/kernels.log; exit 1; fi
    printf '%s, %s: %s kernels\n' "$kernels" "$arch" "$(grep -c 'Compiling entry' target/kernels.log)"
  done
done

cargo test --release --locked --features cuda-emulator --test cuda_kernels --test cuda_attention --test cuda_model
EMULATOR_REVERSE=1 EMULATOR_SHARED_KIB=99 cargo test --release --locked --features cuda-emulator --test cuda_kernels --test cuda_attention --test cuda_model
