#!/usr/bin/env bash
# Fuzzes the verifiers for SECONDS_EACH (20) a target, from the inputs in math.txt and text.txt and whatever a fuzzer once
# broke (kept in broken/). Installs cargo-fuzz where it is missing. A failing input stays in target/ and is named.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-20}
command -v cargo-fuzz > /dev/null || cargo install cargo-fuzz --locked --version 0.13.2

for target in math text; do
  corpus=target/corpus/$target
  mkdir -p "$corpus"
  n=0
  while IFS= read -r line; do
    n=$((n + 1))
    # gold || prediction: the first line of an input is the gold answer
    printf '%s' "${line/ || /$'\n'}" > "$corpus/seed-$n"
  done < "$target.txt"
  if [[ -d broken ]]; then cp broken/"$target"-* "$corpus/" 2> /dev/null || true; fi
  # without a sanitizer the stable compiler will do; safe code has no use for one
  cargo fuzz run --fuzz-dir . --sanitizer none "$target" "$corpus" -- \
    -max_total_time="$seconds" -timeout=5 -max_len=600 -rss_limit_mb=2048 -print_final_stats=1 2>&1 |
    grep -v -E '# Uses|^WARNING|^#|^INFO|recommended dictionary'
done
