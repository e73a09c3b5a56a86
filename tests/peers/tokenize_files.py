"""Tokenizer folders against transformers: read, encoded, saved, and loaded again by `AutoTokenizer` with nothing changed.

Folders: one made here in the manner of Qwen2 with everything a folder can hold, one with a `tokenizer.json` alone, and for
every folder given (each with a `tokenizer.json`) the same two. Where a folder holds llama.cpp's `cases.inp` and `cases.out`,
those texts and ids are checked too.

Usage: PYTHON tests/peers/tokenize_files.py [folder of a tokenizer]...
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import tokenizers
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
TEXTS = [
    "", " ", "Hello, world!", "I'LL don't\n\n  stop \t", "1234567 + 3.5 = ?", "<|im_start|>user\nhi<|im_end|>\n<think>x</think>",
    "你好，世界。 ½ ① e\u0301 \u212b \u1112\u1161", "👩‍👩‍👧‍👦 👍🏽 🇩🇪", "\\frac{1}{2} \\boxed{\\sqrt{x}}", "a\u00a0b\u3000c\u2028d\r\ne",
]


def small(path):
    """A byte-level BPE of this file's text in the manner of Qwen2."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.normalizer = tokenizers.normalizers.NFC()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(pathlib.Path(__file__).read_text().splitlines(), trainer)
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made.save(str(path))


def complete(folder):
    """Puts beside a tokenizer.json what published folders hold: objects and strings, a template, tokens of the config."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = [token["content"] for token in tokenizer["added_tokens"]]
    end = next(text for text in ("<|im_end|>", "<|eot_id|>") if text in special)
    config = {
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": {"content": end, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "__type": "AddedToken"},
        "pad_token": special[0],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "chat_template": TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in tokenizer["added_tokens"]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": end, "pad_token": special[0]}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "temperature": 0.6, "do_sample": True}))


def describe(folder, texts):
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    return {
        "class": type(loaded).__name__,
        "len": len(loaded),
        "special": loaded.special_tokens_map,
        "template": loaded.chat_template,
        "max": loaded.model_max_length,
        "added": {str(id): str(token) for id, token in loaded.added_tokens_decoder.items()},
        "ids": [loaded.encode(text, add_special_tokens=False) for text in texts],
        "padded": loaded(texts[:4], padding=loaded.pad_token is not None)["input_ids"],
        "decoded": [loaded.decode(loaded.encode(text)) for text in texts],
    }


def main():
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        sources = [pathlib.Path(folder) for folder in sys.argv[1:]]
        (work / "small").mkdir()
        small(work / "small" / "tokenizer.json")
        cases, before = [], []
        for source in [work / "small", *sources]:
            texts, expected = list(TEXTS), None
            if (source / "cases.inp").exists():
                known = (source / "cases.inp").read_text().split("\n__ggml_vocab_test__\n")
                expected = [[int(id) for id in line.split()] for line in (source / "cases.out").read_text().splitlines()]
                known = known[: len(expected)]
                texts = known + texts
            for kind in ("alone", "complete"):
                folder = work / f"{source.name}-{kind}"
                folder.mkdir()
                shutil.copy(source / "tokenizer.json", folder)
                if kind == "complete":
                    complete(folder)
                described = describe(folder, texts)
                if expected:
                    assert described["ids"][: len(expected)] == expected, "transformers itself differs from cases.out"
                before.append(described)
                cases.append({"from": str(folder), "to": f"{folder}-saved", "texts": texts, "ids": described["ids"]})
        (work / "cases.json").write_text(json.dumps(cases))
        subprocess.run(
            ["cargo", "test", "--release", "--quiet", "--test", "tokenize_fast", "folders"],
            cwd=ROOT, check=True, env={**os.environ, "DISTILL_TOKENIZER_CASES": str(work / "cases.json")},
        )
        for case, described in zip(cases, before):
            again = describe(case["to"], case["texts"])
            different = [key for key in described if again[key] != described[key]]
            assert not different, (case["from"], different, [(described[key], again[key]) for key in different])
            if case["from"].endswith("-complete"):
                generation = transformers.GenerationConfig.from_pretrained(case["to"])
                assert generation.eos_token_id == [1, 2] and generation.temperature == 0.6
    print(f"tokenize_files: {len(cases)} folders read, saved and loaded alike; {sum(len(c['texts']) for c in cases)} texts equal")


if __name__ == "__main__":
    main()
