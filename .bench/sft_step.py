"""transformers' side of `cargo bench --bench sft` and `distill bench`: SFT steps, 2 x 1024 tokens, fused AdamW, 2 threads.

PYTHON .bench/sft_step.py [none|block] [steps] [float32|bfloat16] [qwen2-42m|qwen2.5-0.5b]
In bfloat16 everything is: weights, gradients, states.
"""
import resource
import sys
import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

torch.set_num_threads(2)
torch.manual_seed(0)
recompute = sys.argv[1] if len(sys.argv) > 1 else "none"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 5
# hidden, layers, heads, feed-forward, vocabulary
SHAPES = {"qwen2-42m": (512, 12, 8, 1408, 16384), "qwen2.5-0.5b": (896, 24, 14, 4864, 151_936)}
shape = sys.argv[4] if len(sys.argv) > 4 else "qwen2-42m"
hidden, layers, heads, feed_forward, vocab = SHAPES[shape]
config = Qwen2Config(
    hidden_size=hidden,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=2,
    intermediate_size=feed_forward,
    vocab_size=vocab,
    tie_word_embeddings=True,
    max_position_embeddings=4096,
)
dtype = getattr(torch, sys.argv[3] if len(sys.argv) > 3 else "float32")
model = Qwen2ForCausalLM(config).to(dtype)
if recompute == "block":
    model.gradient_checkpointing_enable()
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
tokens = torch.randint(0, vocab, (2, 1024))
times = []
for _ in range(steps):
    start = time.time()
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.time() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
times = sorted(times[1:] or times)
print(f"torch {shape} {recompute} {dtype}: median {2048 / times[len(times) // 2]:.0f} tokens/s, best {2048 / times[0]:.0f}, peak {peak:.2f} GiB")
