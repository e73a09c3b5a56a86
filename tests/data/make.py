"""Parquet files as the Hub has them, in miniature: needs pyarrow. Run beside this file; the results are committed."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

here = Path(__file__).parent

# OpenR1-Math-220k: lists with one entry a trace; nulls where the data set has them
openr1 = {
    "problem": ["What is 1+1?", "What is 2+3?"],
    "solution": ["One and one.", "Two and three."],
    "answer": ["2", "5"],
    "problem_type": ["Algebra", "Algebra"],
    "source": ["olympiads", "olympiads"],
    "uuid": ["u-1", "u-2"],
    "generations": [
        ["<think>\none and one\n</think>\n\n\\boxed{2}", "<think>\nhm\n</think>\n\n\\boxed{3}"],
        ["<think>\ntwo and three\n</think>\n\n\\boxed{5}", "<think>\non and on"],
    ],
    "is_reasoning_complete": [[True, True], [True, False]],
    "correctness_math_verify": [[True, False], [False, False]],
    "correctness_llama": pa.array([None, [True, False]], pa.list_(pa.bool_())),
    "finish_reasons": pa.array([None, ["stop", "length"]], pa.list_(pa.string())),
    "messages": [
        [{"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "2"}],
        [{"role": "user", "content": "What is 2+3?"}, {"role": "assistant", "content": "5"}],
    ],
}
pq.write_table(pa.table(openr1), here / "openr1.parquet", compression="snappy", row_group_size=1)

# Mixture-of-Thoughts; zstd and several row groups
rows = 40
messages = {
    "messages": [
        [
            {"role": "user", "content": f"What is {n}+1?"},
            {"role": "assistant", "content": f"<think>\none after {n}\n</think>\n\n\\boxed{{{n + 1}}}"},
        ]
        for n in range(rows)
    ],
    "num_tokens": list(range(rows)),
    "source": ["made"] * rows,
}
pq.write_table(pa.table(messages), here / "messages.parquet", compression="zstd", row_group_size=16)

# a binary column without the text annotation, a list of problems for an evaluation
problems = {
    "id": [7, 8],
    "question": pa.array([b"What is 1+1?", "Was ist 2²?".encode()], pa.binary()),
    "final_answer": [["2"], ["4"]],
}
pq.write_table(pa.table(problems), here / "problems.parquet", compression="gzip")
