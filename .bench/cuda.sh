#!/usr/bin/env bash
# What a machine with a GPU is asked, both sides on it: the kernels' tests, then training and sampling of two students beside
# transformers. Takes the programs that were built elsewhere with
#   export CUDA_COMPUTE_CAP=80     # for every GPU: what is built for one kind runs on no other
#   cargo build --release --features cuda
#   cargo test --release --features cuda --test cuda_kernels --test cuda_attention --test cuda_model --no-run
# .bench/cuda.sh FOLDER [PART...]      with distill, cuda_kernels, cuda_attention and cuda_model in FOLDER; python3 there has
# torch and transformers. PART: tests, small, large, sanitizer; without one all of them.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=$1
shift
parts=${*:-tests small large sanitizer}
# the libraries of CUDA, where they are Python packages
libraries=$(python3 -c 'import glob, site; print(":".join(d for p in site.getsitepackages() for d in glob.glob(p + "/nvidia/*/lib")))')
export LD_LIBRARY_PATH=$libraries:${LD_LIBRARY_PATH:-}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
ldd "$bin/distill" | grep "not found"
bench() { "$bin/distill" bench --device cuda --dtype bf16 "$@" 2>&1 | grep -v "^random\|^training$\|^sampling$"; }
for part in $parts; do
  printf '\n-- %s (%s s)\n' "$part" "$SECONDS"
  case $part in
    tests)
      for tests in cuda_kernels cuda_attention cuda_model; do
        "$bin/$tests" --test-threads=1 2>&1 | grep -E "^test |off by|panicked|error" || echo "$tests: no result"
      done
      ;;
    small)
      bench --shape qwen2.5-1.5b --recompute keep_attention --length 32768 --num-sequences 1 --batch-size 64 --prompt-length 64 --new-tokens 128
      python3 .bench/cuda_peer.py qwen2.5-1.5b 32768 1 --decode 64 64 128
      bench --shape qwen2.5-1.5b --recompute block --length 32768 --num-sequences 1 --new-tokens 1
      bench --shape qwen2.5-1.5b --recompute keep_attention --length 4096 --num-sequences 8 --new-tokens 1
      python3 .bench/cuda_peer.py qwen2.5-1.5b 4096 8
      ;;
    large)
      bench --shape qwen2.5-7b --recompute keep_attention --lora 16 --length 32768 --num-sequences 1 --new-tokens 1
      python3 .bench/cuda_peer.py qwen2.5-7b 32768 1 --lora 16
      ;;
    sanitizer) # every access of the kernels
      command -v compute-sanitizer > /dev/null || { echo "no compute-sanitizer here"; continue; }
      for tests in cuda_kernels cuda_attention; do
        compute-sanitizer --error-exitcode 9 "$bin/$tests" --test-threads=1 2>&1 | tail -3
      done
      ;;
    *)
      echo "no part $part"
      exit 2
      ;;
  esac
done
