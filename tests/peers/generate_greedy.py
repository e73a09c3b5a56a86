"""Greedy generation and scores against transformers, on random checkpoints of all three families.

Eight prompts of different lengths, 64 new tokens each: the tokens are the same as transformers' one prompt at a time, and
their log-probabilities within 1e-4; so are those of `distill score` on the same tokens.

Usage: PYTHON tests/peers/generate_greedy.py [path to distill]
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

VOCAB, NEW = 512, 64
SHAPE = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=112,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.1,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)


def checkpoints():
    llama3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=64)
    yield "qwen2", transformers.Qwen2Config(tie_word_embeddings=True, **SHAPE)
    yield "qwen3", transformers.Qwen3Config(head_dim=24, tie_word_embeddings=False, **SHAPE)
    yield "llama", transformers.LlamaConfig(tie_word_embeddings=False, rope_parameters=llama3, **SHAPE)


def save(config, folder):
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # transformers starts them at zero, which would test nothing
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    return model


def expected(model, prompt):
    tokens = torch.tensor([prompt])
    logprobs = []
    with torch.no_grad():
        tokens = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW, do_sample=False)
        logprobs = model(tokens).logits.log_softmax(-1)[0, :-1].gather(1, tokens[0, 1:, None])[:, 0]
    return tokens[0].tolist(), logprobs.tolist()


def distill(binary, command, model, rows, folder, *options):
    rows_in, rows_out = folder / "in.jsonl", folder / "out.jsonl"
    rows_in.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows_out.unlink(missing_ok=True)
    subprocess.run(
        [binary, command, "--model", model, "--input", rows_in, "--output", rows_out, *options], check=True,
    )
    return [json.loads(line) for line in rows_out.read_text().splitlines()]


def main(binary):
    torch.set_num_threads(2)
    random.seed(3)
    for name, config in checkpoints():
        with tempfile.TemporaryDirectory() as path:
            folder = pathlib.Path(path)
            model = save(config, folder / "model")
            prompts = [[random.randrange(VOCAB) for _ in range(length)] for length in (1, 2, 3, 7, 16, 33, 64, 100)]
            rows = [{"prompt": " ".join(f"t{token}" for token in prompt)} for prompt in prompts]
            found = distill(binary, "generate", folder / "model", rows, folder, "--temperature", "0",
                            "--max-new-tokens", str(NEW))
            wanted = [expected(model, prompt) for prompt in prompts]
            scored = distill(binary, "score", folder / "model", [{"tokens": tokens} for tokens, _ in wanted], folder)
            gap = 0.0
            for prompt, row, score, (tokens, logprobs) in zip(prompts, found, scored, wanted, strict=True):
                generation = row["generations"][0]
                assert generation["tokens"] == tokens[len(prompt):], (name, len(prompt))
                assert generation["finish_reason"] == "length"
                ours = generation["logprobs"]
                gaps = [abs(a - b) for a, b in zip(ours, logprobs[len(prompt) - 1:], strict=True)]
                gaps += [abs(a - b) for a, b in zip(score["logprobs"][1:], logprobs, strict=True)]
                gap = max(gap, *gaps)
            assert gap < 1e-4, (name, gap)
            print(f"{name}: {len(prompts)} x {NEW} greedy tokens identical, log-probabilities within {gap:.1e}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "target/release/distill").resolve())
