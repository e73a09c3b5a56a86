"""Makes tests/golden/ggml.json: what llama.cpp's Python package makes of blocks in q8_0 and q4_k, and of a matrix in q8_0.

Run: PYTHON tests/golden/ggml.py, with gguf 0.19 or later
"""
import json
import pathlib

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

BLOCKS = {"q8_0": (GGMLQuantizationType.Q8_0, 32, 34, 1), "q4_k": (GGMLQuantizationType.Q4_K, 256, 144, 2)}
# of f16: ordinary ones of both signs, zero, the smallest, subnormal ones, the largest
SCALES = np.array([0.01, -0.3, 0.0, 6e-8, 3e-5, 65504.0, 1.0, 0.0625], dtype=np.float16)


def matrix(rows, columns):
    """The same numbers as in tests/ops_packed.rs, to the bit."""
    i = np.arange(rows * columns, dtype=np.int64)
    v = ((i * i * 7 + i) % 1009).astype(np.float32) / np.float32(504) - np.float32(1)
    return (v * v * v).reshape(rows, columns)


def main():
    random = np.random.default_rng(7)
    found = {"blocks": {}, "quantised": {}}
    for name, (kind, _, size, num_scales) in BLOCKS.items():
        blocks = random.integers(0, 256, (len(SCALES), size), dtype=np.uint8)
        for i in range(num_scales):
            blocks[:, 2 * i : 2 * i + 2] = np.roll(SCALES, 3 * i)[:, None].view(np.uint8)
        values = dequantize(blocks, kind).astype("<f4")
        found["blocks"][name] = dict(blocks=blocks.tobytes().hex(), values=values.tobytes().hex())
    for rows, columns in [(64, 64), (3, 96)]:
        blocks = quantize(matrix(rows, columns), GGMLQuantizationType.Q8_0)
        found["quantised"][f"{rows} x {columns}"] = blocks.tobytes().hex()
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
