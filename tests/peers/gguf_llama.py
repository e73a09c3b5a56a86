"""GGUF files of `distill export` against llama.cpp: its library, its reader and its quantiser.

On random checkpoints of all three families: log-probabilities of an f32 file within 2e-3 of `distill score` and the same
greedy tokens; for every type the tensor types that llama.cpp's own quantiser picks, and weights as near as its own.
On a small student trained here: the same greedy text for f32 and f16, perplexity within 1% for q8_0, and q4_k_m solves what
it solved. Tokens of hundreds of texts for the built-in tokenizers, and for every folder given that holds a `tokenizer.json`.

Usage: PYTHON tests/peers/gguf_llama.py [path to distill] [folder of a tokenizer]...
"""

import ctypes
import json
import math
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import unicodedata

import gguf
import llama_cpp
import numpy as np
import torch
import transformers
from llama_cpp import Llama

# a build of torch with CUDA asks a driver that is not there whether it records a graph
if not torch.cuda.is_available():
    torch.cuda.is_current_stream_capturing = lambda: False

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHAPE = dict(
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=10,
    num_attention_heads=8,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.08,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
FAMILIES = {
    "qwen2": lambda vocab: transformers.Qwen2Config(vocab_size=vocab, tie_word_embeddings=True, **SHAPE),
    "qwen3": lambda vocab: transformers.Qwen3Config(vocab_size=vocab, tie_word_embeddings=False, head_dim=64, **SHAPE),
    "llama": lambda vocab: transformers.LlamaConfig(vocab_size=vocab, tie_word_embeddings=False, rope_parameters=LLAMA3, **SHAPE),
}
# ours, and llama.cpp's number of it
TYPES = {
    "q8_0": 7, "q6_k": 18, "q5_k_m": 17, "q5_k_s": 16, "q5_1": 9, "q5_0": 8, "q4_k_m": 15, "q4_k_s": 14, "q4_1": 3, "q4_0": 2,
    "q3_k_l": 13, "q3_k_m": 12, "q3_k_s": 11, "q2_k": 10,
}
RECIPE = """
name = "student"
device = "cpu"

[student.init]
architecture = "qwen2"
tokenizer = "builtin:arithmetic"
hidden_size = 256
intermediate_size = 512
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2

[[traces]]
source = "builtin:arithmetic"
num_problems = 3000

[sft]
epochs = 1
learning_rate = 2e-3
batch_size = 8
max_length = 256
warmup_ratio = 0.05
"""
QUIET = llama_cpp.llama_log_callback(lambda level, text, data: None)


def distill(binary, *arguments):
    return subprocess.run([binary, *map(str, arguments)], check=True, capture_output=True, text=True)


def rows(binary, command, model, inputs, folder, *options):
    given, found = folder / "in.jsonl", folder / "out.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in inputs))
    found.unlink(missing_ok=True)
    distill(binary, command, "--model", model, "--input", given, "--output", found, *options)
    return [json.loads(line) for line in found.read_text().splitlines()]


def opened(path, **options):
    """A model in llama.cpp, keys and values in f32 so that nothing but the weights is rounded."""
    settings = dict(n_ctx=512, n_threads=2, type_k=0, type_v=0, flash_attn=False, verbose=False, logits_all=True) | options
    return Llama(str(path), **settings)


def logprobs_of(model, tokens):
    """Of each token but the first."""
    model.reset()
    model.eval(tokens)
    logits = np.array(model.scores[: len(tokens)], dtype=np.float64)
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return [logits[i, token] for i, token in enumerate(tokens[1:])]


def greedy(model, prompt, num_tokens, stop=()):
    model.reset()
    found = []
    for token in model.generate(prompt, temp=0.0):
        if len(found) == num_tokens or token in stop:
            break
        found.append(token)
    return found


def quantised_by_llama(source, path, number):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = number, 2
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params))
    assert code == 0, code


def tensors(path):
    return {t.name: t for t in gguf.GGUFReader(str(path)).tensors}


def values(tensor):
    return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)


def save_random(name, tokenizer, vocab, folder):
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[name](vocab))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases away from 1 and 0
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)


def copy_tokenizer(tokenizer, folder):
    for file in tokenizer.iterdir():
        if file.name.startswith(("tokenizer", "chat_template", "special")):
            shutil.copy(file, folder)


def check_families(binary, tokenizer, texts, folder):
    vocab = max(t["id"] for t in vocabulary(tokenizer)) + 21  # more embeddings than tokens, as Qwen has
    rng = random.Random(5)
    for name in FAMILIES:
        model = folder / name
        save_random(name, tokenizer, vocab, model)
        f32 = folder / f"{name}.gguf"
        distill(binary, "export", "--model", model, "--gguf", f32, "--quant", "f32")
        theirs = opened(f32)
        worst = 0.0
        given = [dict(tokens=[rng.randrange(vocab) for _ in range(n)]) for n in (2, 3, 63, 200)]
        for row in rows(binary, "score", model, given, folder):
            expected = logprobs_of(theirs, row["tokens"])
            worst = max([worst] + [abs(a - b) for a, b in zip(row["logprobs"][1:], expected, strict=True)])
        assert worst < 2e-3, (name, worst)
        prompts = [dict(prompt=text[:40]) for text in texts[:6]]
        num_same = 0
        for row in rows(binary, "generate", model, prompts, folder, "--temperature", "0", "--max-new-tokens", "40"):
            tokens = theirs.tokenize(row["prompt"].encode(), add_bos=True, special=True)
            ours = row["generations"][0]["tokens"]
            assert greedy(theirs, tokens, len(ours)) == ours, (name, row["prompt"])
            num_same += len(ours)
        del theirs
        print(f"{name}: log-probabilities within {worst:.1e}, {num_same} greedy tokens the same")
        check_types(binary, name, model, f32, folder)


def vocabulary(tokenizer):
    made = json.loads((tokenizer / "tokenizer.json").read_text())
    return [dict(id=i) for i in made["model"]["vocab"].values()] + made["added_tokens"]


def check_types(binary, name, model, f32, folder):
    exact = {key: values(t) for key, t in tensors(f32).items()}
    ratios = {}
    for quant, number in TYPES.items():
        ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
        distill(binary, "export", "--model", model, "--gguf", ours, "--quant", quant)
        quantised_by_llama(f32, theirs, number)
        a, b = tensors(ours), tensors(theirs)
        types_a, types_b = ({key: t.tensor_type.name for key, t in all.items()} for all in (a, b))
        assert types_a == types_b, (name, quant, {k: (types_a[k], types_b.get(k)) for k in a if types_a[k] != types_b.get(k)})
        error_a, error_b = (math.sqrt(sum(((values(t) - exact[key]) ** 2).sum() for key, t in all.items())) for all in (a, b))
        ratios[quant] = error_a / error_b
        opened(ours, logits_all=False)
    print(f"{name}: types as llama.cpp picks them, error by its: " + ", ".join(f"{q} {r:.3f}" for q, r in ratios.items()))
    assert max(ratios.values()) < 1.25, ratios


def trained(binary, folder):
    """A student that has learnt to answer, its prompts and its texts."""
    recipe = folder / "student.toml"
    recipe.write_text(RECIPE)
    distill(binary, "--recipe", recipe, "--run-dir", folder / "run")
    shown = json.loads(distill(binary, "preview", "--recipe", recipe, "--n", "40", "--json").stdout)
    texts = ["".join(text for text, _ in row["segments"]) for row in shown]
    questions = [row["segments"][0][0].split("user\n")[1].split("<|im_end|>")[0] for row in shown]
    return folder / "run/sft/model", questions, texts


def check_student(binary, model, questions, texts, folder):
    inputs = [dict(messages=[dict(role="user", content=q)]) for q in questions[:12]]
    answered = rows(binary, "generate", model, inputs, folder, "--temperature", "0", "--max-new-tokens", "120")
    ours = [row["generations"][0]["text"] for row in answered]
    scored = rows(binary, "score", model, [dict(text=t) for t in texts], folder)
    perplexity = lambda all: math.exp(-sum(all) / len(all))
    expected = perplexity([p for row in scored for p in row["logprobs"][1:]])
    for quant, most in [("f32", 1e-3), ("f16", 1e-3), ("bf16", 5e-3), ("q8_0", 0.01), ("q6_k", 0.02), ("q4_k_m", 0.1)]:
        path = folder / f"student-{quant}.gguf"
        distill(binary, "export", "--model", model, "--gguf", path, "--quant", quant)
        theirs = opened(path)
        found = perplexity([p for row in scored for p in logprobs_of(theirs, row["tokens"])])
        del theirs
        assert abs(found / expected - 1) < most, (quant, found, expected)
        # through the chat template in the file, as llama.cpp would by itself
        speaker = Llama(str(path), n_ctx=512, n_threads=2, verbose=False)
        said = [speaker.create_chat_completion(row["messages"], temperature=0.0, max_tokens=120) for row in answered]
        said = [answer["choices"][0]["message"]["content"] for answer in said]
        num_same = sum(a == b for a, b in zip(said, ours, strict=True))
        if quant in ("f32", "f16"):
            assert num_same == len(ours), (quant, [pair for pair in zip(said, ours) if pair[0] != pair[1]][0])
        print(f"student, {quant}: perplexity {found:.5f} for {expected:.5f}, {num_same} of {len(ours)} answers the same")


def texts_to_tokenise():
    """Some hundred texts in NFC, which llama.cpp does not bring text into."""
    rng = random.Random(1)
    pieces = [
        "Hello", " world", "don't", " I'LL", "'s", "  ", "\n", "\n\n", "\t", " ", "12", "3456789", "3.14", "½", "①", "你好", "，", "世界",
        "ни", " привет", "é", "ß", "naïve", "🦙", "👩‍👩‍👧‍👦", "🇩🇪", "\\frac{1}{2}", "\\boxed{42}", "<|im_start|>", "<|im_end|>", "<think>",
        "</think>", "<|endoftext|>", "\u00a0", "\u3000", "\u2028", "\r\n", "def f(x):", "    return x", "!!!", "...", " (", ")", "=", "==", "/*",
        "_", "ক", "क्ष", "กา", "ﷺ", "\u200d", "A", "b", " C", "ﬁ", "Ω", "µ", "\x00", "\x7f", "\u0301",
    ]
    made = ["".join(rng.choice(pieces) for _ in range(rng.randrange(1, 12))) for _ in range(300)]
    lines = [line for path in sorted((ROOT / "src").glob("*/*.rs"))[:40] for line in path.read_text().splitlines()[:8]]
    return [unicodedata.normalize("NFC", text) for text in made + [line for line in lines if line.strip()]]


def check_tokens(binary, name, tokenizer, folder):
    """Through a model that is next to nothing around the tokenizer."""
    vocab = max(t["id"] for t in vocabulary(tokenizer)) + 1
    model = folder / f"{name}-tokenizer"
    shape = SHAPE | dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    config = transformers.Qwen2Config(vocab_size=vocab, tie_word_embeddings=True, **shape)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(model)
    copy_tokenizer(tokenizer, model)
    path = folder / f"{name}-tokenizer.gguf"
    distill(binary, "export", "--model", model, "--gguf", path, "--quant", "q8_0")
    theirs = Llama(str(path), vocab_only=True, verbose=False)
    texts = texts_to_tokenise()
    differ = []
    for text, row in zip(texts, rows(binary, "score", model, [dict(text=t) for t in texts], folder), strict=True):
        found = theirs.tokenize(text.encode(), add_bos=True, special=True)
        if found != row["tokens"]:
            differ.append((text, row["tokens"], found))
            continue
        back = b"".join(theirs.detokenize([token], special=True) for token in found)
        assert text.encode() in back, (text, back)
    assert not differ, (name, len(differ), differ[0])
    print(f"{name}: {len(texts)} texts have the same tokens")


def main(binary, *tokenizers):
    torch.set_num_threads(2)
    llama_cpp.llama_log_set(QUIET, ctypes.c_void_p(0))
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        model, questions, texts = trained(binary, folder)
        check_student(binary, model, questions, texts, folder)
        check_families(binary, model, texts, folder)
        for tokenizer in [model, *map(pathlib.Path, tokenizers)]:
            check_tokens(binary, tokenizer.name, tokenizer, folder)


if __name__ == "__main__":
    first, *rest = sys.argv[1:] or [ROOT / "target/release/distill"]
    main(pathlib.Path(first).resolve(), *rest)
