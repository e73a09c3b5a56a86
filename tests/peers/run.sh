#!/usr/bin/env bash
# Every check against somebody else's program: PyTorch, transformers, TensorBoard, llama.cpp. Installs them under target/ from PyPI,
# builds distill, and fails when a peer is missing or a check fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=$(tests/peers/setup.sh)
cargo build --release --locked
cargo build --release --locked --example hub_server
# writes the event files that TensorBoard then reads
cargo test --release --locked --test report_tensorboard
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=2
num_passed=0
for check in template_render tokenize_files tensorboard_read model_live generate_greedy train_sft preference grpo_loss adapters hub_round_trip hub_card hub_adapter hub_kill gguf_llama; do
    printf '\n-- %s\n' "$check"
    "$PYTHON" "tests/peers/$check.py"
    num_passed=$((num_passed + 1))
done
printf '\npeers: %s passed, 0 failed\n' "$num_passed"
