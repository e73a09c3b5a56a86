"""transformers' side of `distill bench --device cuda`: SFT steps and sampling of a shape with random weights, bf16, SDPA.

python3 .bench/cuda_peer.py SHAPE LENGTH NUM_SEQUENCES [lora RANK] [--steps N] [--decode BATCH PROMPT NEW]

Full training keeps f32 weights under autocast, as transformers' Trainer does with bf16=True; LoRA keeps bf16 weights and f32
adapters. Blocks are recomputed. Sequences are the rows of one batch: all have one length, so nothing is padded.
"""
import argparse
import time

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

SHAPES = {
    "qwen2.5-0.5b": (896, 24, 14, 2, 4864, 151936, True),
    "qwen2.5-1.5b": (1536, 28, 12, 2, 8960, 151936, True),
    "qwen2.5-7b": (3584, 28, 28, 4, 18944, 152064, False),
}
parser = argparse.ArgumentParser()
parser.add_argument("shape", choices=SHAPES)
parser.add_argument("length", type=int)
parser.add_argument("num_sequences", type=int)
parser.add_argument("--lora", type=int)
parser.add_argument("--steps", type=int, default=3)
parser.add_argument("--decode", type=int, nargs=3, metavar=("BATCH", "PROMPT", "NEW"))
args = parser.parse_args()
hidden, layers, heads, kv, intermediate, vocab, tied = SHAPES[args.shape]
config = Qwen2Config(
    hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv,
    intermediate_size=intermediate, vocab_size=vocab, tie_word_embeddings=tied, rope_theta=1e6,
    max_position_embeddings=max(32768, args.length),
)
torch.manual_seed(0)
dtype = torch.bfloat16 if args.lora else torch.float32
with torch.device("cuda"):
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)


class Lora(torch.nn.Module):
    """PEFT's linear with an adapter; PEFT itself is not on every machine."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = torch.nn.Parameter(torch.randn(rank, base.in_features, device="cuda") * 0.01)
        self.b = torch.nn.Parameter(torch.zeros(base.out_features, rank, device="cuda"))

    def forward(self, x):
        return self.base(x) + (x @ self.a.to(x.dtype).t()) @ self.b.to(x.dtype).t() * 2.0


if args.lora:
    model.requires_grad_(False)
    for layer in model.model.layers:
        for room in (layer.self_attn, layer.mlp):
            for name, child in list(room.named_children()):
                if isinstance(child, torch.nn.Linear):
                    setattr(room, name, Lora(child, args.lora))
    model.enable_input_require_grads()
model.gradient_checkpointing_enable({"use_reentrant": False})
model.train()
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
tokens = torch.randint(0, vocab, (args.num_sequences, args.length), device="cuda")
times = []
try:
    for _ in range(args.steps + 1):
        torch.cuda.synchronize()
        start = time.time()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        times.append(time.time() - start)
    times = sorted(times[1:])
    rate = tokens.numel() / times[len(times) // 2]
    print(f"torch {args.shape} {args.num_sequences} x {args.length} lora {args.lora}: {rate:.0f} tokens/s, "
          f"peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
except torch.OutOfMemoryError:
    print(f"torch {args.shape} {args.num_sequences} x {args.length} lora {args.lora}: out of memory at "
          f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
if args.decode:
    batch, prompt, new = args.decode
    del optimizer
    model.gradient_checkpointing_disable()
    model = model.to(torch.bfloat16).eval()
    torch.cuda.empty_cache()
    ids = torch.randint(0, vocab, (batch, prompt), device="cuda")
    for _ in range(2):
        torch.cuda.synchronize()
        start = time.time()
        with torch.no_grad():
            model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=True, top_k=0, pad_token_id=0)
        torch.cuda.synchronize()
        took = time.time() - start
    print(f"torch generate {batch} x ({prompt} + {new}): {batch * new / took:.0f} new tokens/s")
