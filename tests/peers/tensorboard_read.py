"""TensorBoard reads our event files as we mean them: the curves of a killed and resumed run, without the lost steps.

Usage: tensorboard_read.py [FOLDER], which `cargo test --release --test report_tensorboard` has written.
"""

import json
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "target/tmp/report_tensorboard")
expected = json.loads((folder / "expected.json").read_text())
accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
accumulator.Reload()
tags = accumulator.Tags()
assert sorted(tags["scalars"]) == sorted(expected), f"curves {tags['scalars']}, expected {sorted(expected)}"
for tag, curve in expected.items():
    found = [(event.step, event.value) for event in accumulator.Scalars(tag)]
    assert [step for step, _ in found] == [step for step, _ in curve], f"{tag}: steps {found}"
    for (step, value), (_, wanted) in zip(found, curve):
        assert struct.pack("f", value) == struct.pack("f", wanted), f"{tag} at step {step}: {value}, expected {wanted}"
print(f"tensorboard: {len(expected)} curves read back, {len(next(iter(expected.values())))} points each")
