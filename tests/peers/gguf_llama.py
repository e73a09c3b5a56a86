"""GGUF files of `distill export` in llama.cpp (as xllamacpp builds it), in its Python reader and in transformers.

On random checkpoints of all three families: log-probabilities of an f32 file in llama.cpp within 2e-3 of `distill score`, the
same greedy tokens, and the very weights back in transformers. On a small student trained here: the same greedy answers for
f32 and f16 through the chat template in the file, perplexity within 1% for q8_0, and every other type loads and speaks.
Tokens of some hundred texts for the built-in tokenizer and for every folder given that holds a `tokenizer.json`.

Usage: PYTHON tests/peers/gguf_llama.py [path to distill [folder of a tokenizer]...] (DISTILL_STUDENT names a folder with a
trained built-in student in place of training one)
"""

import json
import math
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import unicodedata
import urllib.request

import gguf
import numpy as np
import torch
import transformers
import xllamacpp

# a build of torch with CUDA asks a driver that is not there whether it records a graph
if not torch.cuda.is_available():
    torch.cuda.is_current_stream_capturing = lambda: False

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHAPE = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.1,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
FAMILIES = {
    "qwen2": lambda vocab: transformers.Qwen2Config(vocab_size=vocab, tie_word_embeddings=True, **SHAPE),
    "qwen3": lambda vocab: transformers.Qwen3Config(vocab_size=vocab, tie_word_embeddings=False, head_dim=24, **SHAPE),
    "llama": lambda vocab: transformers.LlamaConfig(vocab_size=vocab, tie_word_embeddings=False, rope_parameters=LLAMA3, **SHAPE),
}
# how far perplexity may go from that of the weights as they are
PERPLEXITY = {
    "f32": 1e-3, "f16": 1e-3, "bf16": 5e-3, "q8_0": 0.01, "q6_k": 0.01, "q5_k_m": 0.05, "q5_0": 0.05, "q4_k_m": 0.2, "q4_0": 0.5,
    "q3_k_m": 1.0, "q2_k": 5.0,
}


def distill(binary, *arguments):
    done = subprocess.run([binary, "-q", *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def rows(binary, command, model, inputs, folder, *options):
    given, found = folder / "in.jsonl", folder / "out.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in inputs))
    found.unlink(missing_ok=True)
    distill(binary, command, "--model", model, "--input", given, "--output", found, *options)
    return [json.loads(line) for line in found.read_text().splitlines()]


class Llama:
    """A file in llama.cpp, keys and values in f32 so that nothing but the weights is rounded."""

    def __init__(self, path, exact=True):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 512, 1, False, -1
        params.cpuparams.n_threads = 2
        if exact:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(params)

    def ask(self, what, body):
        address, kind = f"{self.server.listening_address}/{what}", {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), kind)) as answer:
            return json.load(answer)

    def tokens(self, text):
        return self.ask("tokenize", dict(content=text, add_special=True, parse_special=True))["tokens"]

    def complete(self, tokens, num, **more):
        return self.ask("completion", dict(prompt=tokens, n_predict=num, temperature=0.0, return_tokens=True) | more)

    def logprobs(self, tokens, vocab):
        """Of each token but the first, given those before it."""
        found = []
        # an end or half a character would be told without probabilities, which are those before any bias
        bias = [[self.tokens("1")[0], 1000.0]]
        for i in range(1, len(tokens)):
            answer = self.complete(tokens[:i], 1, n_probs=vocab, logit_bias=bias)
            top = answer["completion_probabilities"][0]["top_logprobs"]
            found.append(next(entry["logprob"] for entry in top if entry["id"] == tokens[i]))
        return found

    def answer(self, messages):
        asked = dict(messages=messages, temperature=0.0, max_tokens=150, reasoning_format="none")
        return self.server.handle_chat_completions(asked)["choices"][0]["message"]["content"]


def vocabulary(tokenizer):
    made = json.loads((tokenizer / "tokenizer.json").read_text())
    return 1 + max([*made["model"]["vocab"].values(), *(token["id"] for token in made["added_tokens"])])


def copy_tokenizer(tokenizer, folder):
    for file in tokenizer.iterdir():
        if file.name.startswith(("tokenizer", "chat_template", "special")):
            shutil.copyfile(file, folder / file.name)


def check_families(binary, tokenizer, texts, folder):
    vocab = vocabulary(tokenizer) + 20  # more embeddings than tokens, as Qwen has
    rng = random.Random(5)
    for name, config in FAMILIES.items():
        torch.manual_seed(7)
        model = transformers.AutoModelForCausalLM.from_config(config(vocab))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # norms and biases away from 1 and 0
                    parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
        copy_tokenizer(tokenizer, folder / name)
        path = folder / f"{name}.gguf"
        distill(binary, "export", "--model", folder / name, "--gguf", path, "--quant", "f32")

        # its reader of settings knows no width of heads
        again = type(model).from_pretrained(folder, gguf_file=path.name, config=model.config, dtype=torch.float32).state_dict()
        for key, value in model.state_dict().items():
            assert torch.equal(again[key], value), (name, key)

        theirs = Llama(path)
        given = [dict(tokens=[rng.randrange(vocab) for _ in range(n)]) for n in (2, 3, 40, 150)]
        worst = 0.0
        for row in rows(binary, "score", folder / name, given, folder):
            expected = theirs.logprobs(row["tokens"], vocab)
            worst = max([worst] + [abs(a - b) for a, b in zip(row["logprobs"][1:], expected, strict=True)])
        assert worst < 2e-3, (name, worst)
        num_same = 0
        prompts = [dict(prompt=text[:40]) for text in texts[:6]]
        for row in rows(binary, "generate", folder / name, prompts, folder, "--temperature", "0", "--max-new-tokens", "40"):
            ours = row["generations"][0]["tokens"]
            found = theirs.complete(theirs.tokens(row["prompt"]), 40)["tokens"]
            assert found[: len(ours)] == ours or ours[: len(found)] == found, (name, found, ours)
            num_same += min(len(ours), len(found))
        del theirs
        print(f"{name}: the same weights in transformers; in llama.cpp log-probabilities within {worst:.1e}, {num_same} greedy tokens the same")


def check_student(binary, model, questions, texts, folder):
    inputs = [dict(messages=[dict(role="user", content=q)]) for q in questions[:8]]
    answered = rows(binary, "generate", model, inputs, folder, "--temperature", "0", "--max-new-tokens", "150")
    ours = [row["generations"][0]["text"] for row in answered]
    scored = rows(binary, "score", model, [dict(text=text) for text in texts[:4]], folder)
    perplexity = lambda all: math.exp(-sum(all) / len(all))
    expected = perplexity([p for row in scored for p in row["logprobs"][1:]])
    vocab = vocabulary(model)
    for quant, most in PERPLEXITY.items():
        path = folder / f"student-{quant}.gguf"
        distill(binary, "export", "--model", model, "--gguf", path, "--quant", quant)
        for tensor in gguf.GGUFReader(str(path)).tensors:
            assert np.isfinite(gguf.dequantize(tensor.data, tensor.tensor_type)).all(), (quant, tensor.name)
        theirs = Llama(path)
        found = perplexity([p for row in scored for p in theirs.logprobs(row["tokens"], vocab)])
        assert abs(found / expected - 1) < most, (quant, found, expected)
        # as it runs for anybody: keys and values in f16, the template of the file
        theirs = Llama(path, exact=False)
        said = [theirs.answer(row["messages"]) for row in answered]
        del theirs
        num_same = sum(a == b for a, b in zip(said, ours, strict=True))
        assert all(said), quant
        assert num_same == len(ours) or quant not in ("f32", "f16"), (quant, said, ours)
        print(f"student, {quant}: perplexity {found:.5f} for {expected:.5f}, {num_same} of {len(ours)} answers the same")


def texts_to_tokenise():
    """Some hundred texts in NFC, which llama.cpp does not bring text into."""
    rng = random.Random(1)
    pieces = [
        "Hello", " world", "don't", " I'LL", "'s", "  ", "\n", "\n\n", "\t", " ", "12", "3456789", "3.14", "½", "①", "你好", "，", "世界",
        "ни", " привет", "é", "ß", "naïve", "🦙", "👩‍👩‍👧‍👦", "🇩🇪", "\\frac{1}{2}", "\\boxed{42}", "<|im_start|>", "<|im_end|>", "<think>",
        "</think>", "<|endoftext|>", "\u00a0", "\u3000", "\u2028", "\r\n", "def f(x):", "    return x", "!!!", "...", " (", ")", "=", "==",
        "/*", "_", "ক", "क्ष", "กา", "ﷺ", "\u200d", "A", "b", " C", "ﬁ", "Ω", "µ", "\x7f", "\u0301",
    ]
    made = ["".join(rng.choice(pieces) for _ in range(rng.randrange(1, 12))) for _ in range(300)]
    files = sorted((ROOT / "src").glob("*/*.rs"))[:40]
    lines = [line for path in files for line in path.read_text().splitlines()[:6] if line.strip()]
    return [unicodedata.normalize("NFC", text) for text in made + lines]


def check_tokens(binary, name, tokenizer, folder):
    """Through a model that is next to nothing around the tokenizer."""
    model = folder / f"{name}-tokenizer"
    shape = SHAPE | dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    config = transformers.Qwen2Config(vocab_size=vocabulary(tokenizer), tie_word_embeddings=True, **shape)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(model)
    copy_tokenizer(tokenizer, model)
    path = folder / f"{name}-tokenizer.gguf"
    distill(binary, "export", "--model", model, "--gguf", path, "--quant", "q8_0")
    theirs = Llama(path)
    texts = texts_to_tokenise()
    scored = rows(binary, "score", model, [dict(text=text) for text in texts], folder)
    differ = []
    for text, row in zip(texts, scored, strict=True):
        found = theirs.tokens(text)
        if found != row["tokens"]:
            differ.append((text, row["tokens"], found))
    assert not differ, (name, len(differ), differ[:3])
    print(f"{name}: {len(texts)} texts have the same tokens")


def main(binary, *tokenizers):
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        model = os.environ.get("DISTILL_STUDENT")
        if not model:
            recipe = (ROOT / "recipes/quickstart.toml").read_text()
            shorter = recipe.replace("num_problems = 12000", "num_problems = 6000")
            assert shorter != recipe
            (folder / "student.toml").write_text(shorter)
            distill(binary, "--recipe", folder / "student.toml", "--run-dir", folder / "run")
            model = folder / "run/sft/model"
        model = pathlib.Path(model)
        shown = json.loads(distill(binary, "preview", "--recipe", "quickstart", "--n", "12", "--json"))
        texts = ["".join(text for text, _ in row["segments"]) for row in shown]
        questions = [row["segments"][0][0].split("user\n")[1].split("<|im_end|>")[0] for row in shown]
        check_families(binary, model, texts, folder)
        for tokenizer in [model, *map(pathlib.Path, tokenizers)]:
            check_tokens(binary, tokenizer.name, tokenizer, folder)
        check_student(binary, model, questions, texts, folder)


if __name__ == "__main__":
    first, *rest = sys.argv[1:] or [ROOT / "target/release/distill"]
    main(pathlib.Path(first).resolve(), *rest)
