"""Makes tests/golden/adam8.json: bitsandbytes' 8-bit maps, codes of numbers, and weights and states after steps of its
AdamW8bit on the CPU.

bitsandbytes quantises by its own PyTorch form here, which takes the nearest value as its CUDA kernels do. Its compiled CPU
library looks codes up in a table of 65,536 places, so that magnitudes below 3e-5 of the largest are several codes off; it is
kept from loading.

Run: PYTHON tests/golden/adam8.py, with bitsandbytes 0.50 or later and PyTorch
"""
import ctypes
import json
import pathlib

_load = ctypes.cdll.LoadLibrary


def refuse(name):
    if "bitsandbytes" in str(name):
        raise OSError("left out")
    return _load(name)


ctypes.cdll.LoadLibrary = refuse

import bitsandbytes.functional as bnb
import numpy as np
import torch


def numbers(n, seed):
    """The same numbers as in tests/ops_adam8.rs, to the bit: from 1 down to 1e-9, of both signs."""
    i = np.arange(n, dtype=np.int64) + seed
    v = ((i * i * 7 + i * 31) % 2003).astype(np.float32) / np.float32(1001) - np.float32(1)
    return torch.from_numpy(v * v * v)


def hexed(codes):
    return bytes(codes.flatten().tolist()).hex()


def quantised(n, seed, signed):
    x = numbers(n, seed)
    x = x if signed else x * x
    codes, state = bnb.quantize_blockwise(x, code=bnb.create_dynamic_map(signed), blocksize=256)
    again = bnb.dequantize_blockwise(codes, state)
    return dict(n=n, seed=seed, signed=signed, codes=hexed(codes), absmax=state.absmax.tolist(), last=again[-3:].tolist())


def updated(n, steps, lr, betas, eps, weight_decay, gnorm_scale):
    w = numbers(n, 1)
    m_map, v_map = bnb.create_dynamic_map(True), bnb.create_dynamic_map(False)
    m, v = (torch.zeros(n, dtype=torch.uint8) for _ in range(2))
    m_absmax, v_absmax = (torch.zeros(-(n // -256)) for _ in range(2))
    for step in range(1, steps + 1):
        bnb.optimizer_update_8bit_blockwise(
            "adam", numbers(n, 10 * step), w, m, v, betas[0], betas[1], 0.0, 0.0, eps, step, lr,
            m_map, v_map, m_absmax, v_absmax, weight_decay=weight_decay, gnorm_scale=gnorm_scale,
        )
    return dict(
        n=n, steps=steps, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, grad_scale=gnorm_scale,
        m=hexed(m), v=hexed(v), m_absmax=m_absmax.tolist(), v_absmax=v_absmax.tolist(),
        w_of_97th=w[::97].tolist(), w_squares=w.double().square().sum().item(),
    )


def main():
    result = dict(
        maps={name: bnb.create_dynamic_map(name == "signed").tolist() for name in ("signed", "unsigned")},
        quantised=[quantised(n, seed, signed) for n, seed in [(256, 0), (1000, 3), (4096, 5)] for signed in (True, False)],
        updated=[
            updated(4096, 1, 1e-3, [0.9, 0.95], 1e-8, 0.0, 1.0),
            updated(5000, 4, 1e-2, [0.9, 0.999], 1e-8, 0.1, 0.25),
        ],
    )
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
