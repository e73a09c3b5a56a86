"""New tokens a second of transformers' `generate`: the peer of `cargo bench --bench generate`.

The model is `qwen2-42m` (random weights, f32): hidden 512, 12 layers, 8 heads, 2 KV heads, intermediate 1408, vocabulary
16,384, tied. A batch of 16 prompts of 64 tokens, 256 new tokens each, sampled at temperature 1, two threads.

Usage: PYTHON .bench/generate.py [rounds]
"""

import sys
import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

BATCH, PROMPT, NEW = 16, 64, 256


def main(rounds):
    torch.set_num_threads(2)
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=512,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=1408,
        vocab_size=16384,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    model = Qwen2ForCausalLM(config).eval()
    prompts = torch.randint(0, config.vocab_size, (BATCH, PROMPT))
    for _ in range(rounds):
        start = time.perf_counter()
        out = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=True,
            top_k=0,
            pad_token_id=0,
        )
        seconds = time.perf_counter() - start
        assert out.shape == (BATCH, PROMPT + NEW)
        print(f"transformers generate: {BATCH * NEW / seconds:.0f} new tokens/s", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
