# Values of calls as JSON and back, so that the other side sees numbers exactly and tells a tuple from a list. Comes before
# runner.py and driver.py, which are run as one text with it.

import json
import os
import sys

# programs print large numbers; how long they take over it is bounded elsewhere
if hasattr(sys, "set_int_max_str_digits"):
    sys.set_int_max_str_digits(100_000)

CONTAINERS = {"tuple": tuple, "set": set, "frozenset": frozenset}
TYPES = [bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict]


def encode(value):
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return {"int": int.__repr__(int(value))}
    if isinstance(value, float):
        return {"float": float.__repr__(float(value))}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    for tag, kind in CONTAINERS.items():
        if isinstance(value, kind):
            return {tag: [encode(item) for item in value]}
    if isinstance(value, complex):
        return {"complex": [float.__repr__(value.real), float.__repr__(value.imag)]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, type) and value in TYPES:
        return {"type": value.__name__}
    if type(value).__module__ == "numpy":
        return encode(value.tolist())
    return {"other": type(value).__name__[:100]}


class Other:
    """A value that cannot be carried over; equal to nothing."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"<{self.name}>"

    def __eq__(self, other):
        return False

    def __bool__(self):
        return False

    __hash__ = None


def decode(value):
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "int":
        return int(content)
    if tag == "float":
        return float(content)
    if tag == "dict":
        return {decode(key): decode(item) for key, item in content}
    if tag in CONTAINERS:
        return CONTAINERS[tag](decode(item) for item in content)
    if tag == "complex":
        return complex(*map(float, content))
    if tag == "bytes":
        return bytes.fromhex(content)
    if tag == "type":
        return {kind.__name__: kind for kind in TYPES}[content]
    return Other(str(content))


