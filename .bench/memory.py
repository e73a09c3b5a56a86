"""Planned against measured peak memory of twelve runs on the CPU: shape, method, pack, recomputation, states in 8 bits.

PYTHON .bench/memory.py [DISTILL] [FIRST-WORDS-OF-A-NAME]

Each run is a recipe of three steps on rows that are all cut to the same length: `distill plan --json` says what it should take, the kernel
(`ru_maxrss`) what the process has taken, model files read and written included.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

DISTILL = str(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "target/debug/distill").absolute())
ONLY = sys.argv[2] if len(sys.argv) > 2 else ""

# hidden, layers, feed-forward, vocabulary, tied
SHAPES = {
    "narrow": (256, 8, 704, 2048, True),
    "words": (256, 4, 704, 151_936, True),
    "42m": (512, 12, 1408, 16_384, True),
    "wide": (1024, 8, 2816, 8192, False),
}

# name: shape, method, tokens of a pack, rows of a step, settings
RUNS = {
    "narrow, full, 4,096 tokens": ("narrow", "full", 4096, 32, {}),
    "narrow, full, 4,096 tokens, recomputed": ("narrow", "full", 4096, 32, {"recompute": "block"}),
    "words, full, 512 tokens": ("words", "full", 512, 4, {}),
    "words, full, 512 tokens, 8-bit, at once": ("words", "full", 512, 1, {"optimizer": "adamw_8bit", "max_grad_norm": 0.0}),
    "42m, full, 2,048 tokens": ("42m", "full", 2048, 16, {}),
    "42m, full, 2,048 tokens, recomputed, 8-bit": ("42m", "full", 2048, 16, {"recompute": "block", "optimizer": "adamw_8bit"}),
    "42m, lora, 2,048 tokens": ("42m", "lora", 2048, 16, {}),
    "42m, qlora, 1,024 tokens, recomputed": ("42m", "qlora", 1024, 8, {"recompute": "block"}),
    "wide, full, 512 tokens, 8-bit": ("wide", "full", 512, 4, {"optimizer": "adamw_8bit"}),
    "wide, full, 512 tokens, recomputed, at once": ("wide", "full", 512, 1, {"recompute": "block", "max_grad_norm": 0.0}),
    "wide, lora, 1,024 tokens, recomputed": ("wide", "lora", 1024, 8, {"recompute": "block"}),
    "wide, qlora, 512 tokens": ("wide", "qlora", 512, 4, {}),
}


def recipe(name, student, max_length, pack, rows, steps, settings):
    sft = dict(
        epochs=1, max_steps=steps, learning_rate=1e-4, batch_size=rows, max_length=max_length, pack_length=pack,
        over_length="truncate", **settings,
    )
    lines = [f'name = "{name}"', 'device = "cpu"']
    lines += student
    lines += ["[[traces]]", 'source = "traces.jsonl"', "[sft]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in sft.items()]
    return "\n".join(lines) + "\n"


def random_student(shape):
    hidden, layers, feed_forward, vocab, tied = SHAPES[shape]
    return [
        "[student.init]", 'architecture = "qwen2"', 'tokenizer = "builtin:arithmetic"', f"hidden_size = {hidden}",
        f"intermediate_size = {feed_forward}", f"num_hidden_layers = {layers}", f"num_attention_heads = {hidden // 64}",
        "num_key_value_heads = 2", f"vocab_size = {vocab}", f"tie_word_embeddings = {str(tied).lower()}",
    ]


def run(arguments, folder):
    """What it printed, and its peak in bytes."""
    with open(folder / "out", "w+") as out, open(folder / "err", "w+") as err:
        process = subprocess.Popen([DISTILL, *arguments], cwd=folder, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0), err.seek(0)
        if status != 0:
            sys.exit(f"distill {' '.join(arguments)}: {err.read()}")
        return out.read(), usage.ru_maxrss * 1024


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        answer = "<think>\n" + "1 + 2 = 3\n" * 4000 + "</think>\n\\boxed{3}"
        turns = [dict(role="user", content="1 + 2"), dict(role="assistant", content=answer)]
        (folder / "traces.jsonl").write_text((json.dumps(dict(messages=turns)) + "\n") * 400)
        made = {}
        for name, (shape, method, pack, rows, settings) in RUNS.items():
            if not name.startswith(ONLY):
                continue
            student = random_student(shape)
            if method != "full":
                if shape not in made:
                    (folder / "made.toml").write_text(recipe(f"made-{shape}", student, 256, 256, 1, 1, {}))
                    run(["-q", "--recipe", "made.toml"], folder)
                    made[shape] = folder / f"runs/made-{shape}/sft/model"
                student = ["[student]", f'model = "{made[shape]}"', f'method = "{method}"']
            text = recipe("one", student, pack if rows == 1 else 256, pack, rows, 3, settings)
            (folder / "one.toml").write_text(text)
            planned = json.loads(run(["plan", "--recipe", "one.toml", "--json"], folder)[0])
            _, measured = run(["-q", "--recipe", "one.toml", "--run-dir", "one", "--fresh", "--force"], folder)
            peak, memory = planned["peak_memory"], planned["memory"]
            mib = {part: size >> 20 for part, size in memory.items() if size >> 20}
            print(f"{name:<46} planned {peak / 2**20:6.0f}  measured {measured / 2**20:6.0f} MiB  {100 * (peak / measured - 1):+6.1f}%  {mib}", flush=True)


if __name__ == "__main__":
    main()
