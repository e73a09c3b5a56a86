#!/usr/bin/env bash
# Makes target/peers, the Python environment of the peer checks, and prints its python: PYTHON=$(tests/peers/setup.sh)
# Needs python3 with venv, a C compiler with binutils, and PyPI. Does nothing when the environment is already complete.
set -euo pipefail
cd "$(dirname "$0")/../.."

# each of them asks for PyTorch with its CUDA dependencies
NO_DEPS=(torch==2.15.0 accelerate==1.15.0 trl==1.16.0 peft==0.21.2 bitsandbytes==0.50.2)
venv=target/peers
wanted=$(cat tests/peers/setup.sh tests/peers/requirements.txt tests/peers/cuda_stubs.py | sha256sum)
if [ "$(cat "$venv/complete" 2>/dev/null)" != "$wanted" ]; then
    {
        rm -rf "$venv"
        python3 -m venv "$venv"
        pip="$venv/bin/python -m pip --disable-pip-version-check install --quiet"
        $pip --requirement tests/peers/requirements.txt
        $pip --no-deps "${NO_DEPS[@]}"
        # CPU builds (other processors, other indexes) load as they are
        if ! "$venv/bin/python" -c "import torch" 2>/dev/null; then
            "$venv/bin/python" tests/peers/cuda_stubs.py "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch/lib"
        fi
        "$venv/bin/python" -c "import torch, transformers; print('peers: torch', torch.__version__, 'transformers', transformers.__version__)"
        echo "$wanted" >"$venv/complete"
    } >&2
fi
echo "$PWD/$venv/bin/python"
