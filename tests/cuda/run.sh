#!/usr/bin/env bash
# The CUDA kernels without a GPU: compiled by nvcc (from PyPI, into target/nvcc, where none is on the path), then run in the
# emulator, the threads of a block in both orders. Needs python3 with pip and a C++ compiler.
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
  "$nvcc" -ptx -arch=compute_80 -std=c++17 -O3 -Werror all-warnings "$kernels" -o target/kernels.ptx
  printf '%s: %s kernels\n' "$kernels" "$(grep -c '^\.visible \.entry' target/kernels.ptx)"
done

cargo test --release --locked --features cuda-emulator --test cuda_kernels --test cuda_attention --test cuda_model
EMULATOR_REVERSE=1 cargo test --release --locked --features cuda-emulator --test cuda_kernels --test cuda_attention --test cuda_model
