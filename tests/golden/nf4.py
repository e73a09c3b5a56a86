"""Makes tests/golden/nf4.json: what bitsandbytes makes of matrices in 4-bit NormalFloat with double quantisation.

Run: PYTHON tests/golden/nf4.py, with bitsandbytes 0.49 or later and PyTorch
"""
import json
import pathlib

import bitsandbytes.functional as bnb
import numpy as np
import torch


def matrix(rows, columns):
    """The same numbers as in tests/ops_packed.rs, to the bit."""
    i = np.arange(rows * columns, dtype=np.int64)
    v = ((i * i * 7 + i) % 1009).astype(np.float32) / np.float32(504) - np.float32(1)
    return torch.from_numpy(v * v * v).reshape(rows, columns)


def main():
    cases = []
    for rows, columns in [(64, 64), (3, 50), (130, 258), (257, 64)]:
        packed, state = bnb.quantize_4bit(matrix(rows, columns), blocksize=64, compress_statistics=True, quant_type="nf4")
        again = bnb.dequantize_4bit(packed, state)
        cases.append(
            dict(
                shape=[rows, columns],
                codes=bytes(packed.flatten().tolist()).hex(),
                scale_codes=bytes(state.absmax.flatten().tolist()).hex(),
                # PyTorch adds up in an order of the machine's: the mean, and what is less it, differ in the last bits
                scales=state.state2.absmax.tolist(),
                offset=state.offset.item(),
                sum_of_squares=again.double().square().sum().item(),
                weighted_sum=(again.double().flatten() * torch.arange(again.numel())).sum().item(),
            )
        )
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
