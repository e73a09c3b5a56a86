"""Ten optimiser steps of `distill debug-train` against transformers and torch: loss, gradient norm, learning rate, weights.

The same random checkpoint, rows and order; packing, accumulation and recomputation on and off; weight decay, clipping and
warmup on. Run: PYTHON tests/peers/train_sft.py (DISTILL names the binary, default target/release/distill)
"""
import json
import math
import os
import pathlib
import random
import subprocess
import tempfile

import torch
from safetensors.torch import load_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.optimization import get_scheduler

if not torch.cuda.is_available():
    # transformers asks when it looks for packed sequences; the CUDA libraries here may be stand-ins that cannot answer
    torch.cuda.is_current_stream_capturing = lambda: False

ROOT = pathlib.Path(__file__).resolve().parents[2]
DISTILL = os.environ.get("DISTILL", str(ROOT / "target/release/distill"))
SHAPE = dict(
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    vocab_size=211,
    max_position_embeddings=256,
    initializer_range=0.1,
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
    rope_theta=10000.0,
)
FAMILIES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(tie_word_embeddings=True, **SHAPE)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(tie_word_embeddings=False, head_dim=16, **SHAPE)),
    "llama": (LlamaForCausalLM, LlamaConfig(tie_word_embeddings=False, rope_parameters=LLAMA3, **SHAPE)),
}
# 38 rows of 8 a step: the fifth step of each epoch has 6
SETTINGS = dict(
    seed=0,
    inputs_key="peer",
    epochs=2,
    max_steps=None,
    learning_rate=2e-3,
    schedule="cosine",
    min_learning_rate_ratio=0.1,
    warmup_ratio=0.15,
    batch_size=8,
    packing=True,
    pack_length=1024,
    shuffle=False,
    weight_decay=0.1,
    betas=[0.9, 0.95],
    adam_epsilon=1e-8,
    max_grad_norm=0.5,
    recompute="none",
    checkpoint_every_steps=100,
    keep_checkpoints=1,
)
VARIANTS = {
    "packed": {},
    "unpacked": dict(packing=False, pack_length=64),
    "accumulated": dict(pack_length=96),
    "recomputed": dict(recompute="block"),
    "accumulated, recomputed": dict(pack_length=64, recompute="block"),
    "no clipping, linear, no decay": dict(max_grad_norm=0.0, schedule="linear", min_learning_rate_ratio=0.0, weight_decay=0.0),
}
SCHEDULES = {"cosine": "cosine_with_min_lr", "linear": "linear"}


def make_rows():
    rng = random.Random(5)
    rows = []
    for _ in range(38):
        n = rng.randint(2, 60)
        prompt = rng.randint(1, n - 1)
        tokens = [rng.randrange(SHAPE["vocab_size"]) for _ in range(n)]
        rows.append(dict(tokens=tokens, trained=[int(t >= prompt) for t in range(n)]))
    return rows


def reference(model, rows, s):
    """The loop as a user of torch writes it: one row at a time, losses summed, divided by the trained tokens."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [dict(params=decay, weight_decay=s["weight_decay"]), dict(params=plain, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=s["learning_rate"], betas=s["betas"], eps=s["adam_epsilon"])
    per_epoch = math.ceil(len(rows) / s["batch_size"])
    total = per_epoch * s["epochs"]
    cosine = s["schedule"] == "cosine"
    kwargs = dict(min_lr_rate=s["min_learning_rate_ratio"]) if cosine else {}
    scheduler = get_scheduler(
        SCHEDULES[s["schedule"]], optimizer, math.ceil(total * s["warmup_ratio"]), total, scheduler_specific_kwargs=kwargs
    )
    model.train()
    curve = []
    for step in range(total):
        first = step % per_epoch * s["batch_size"]
        batch = rows[first : first + s["batch_size"]]
        count = sum(sum(row["trained"][1:]) for row in batch)
        loss_sum = 0.0
        optimizer.zero_grad()
        for row in batch:
            ids = torch.tensor([row["tokens"]])
            labels = torch.tensor([[t if m else -100 for t, m in zip(row["tokens"], row["trained"])]])
            logits = model(input_ids=ids, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum", ignore_index=-100) / count
            loss.backward()
            loss_sum += loss.item()
        most = s["max_grad_norm"] or math.inf
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), most).item()
        curve.append(dict(loss=loss_sum, grad_norm=norm, learning_rate=scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return curve, {k: v.detach().clone() for k, v in model.state_dict().items()}


def ours(folder, rows, s, out):
    job = out / "job.json"
    job.write_text(json.dumps(dict(settings=s, rows=rows)))
    args = [DISTILL, "debug-train", "--model", str(folder), "--job", str(job), "--output", str(out)]
    done = subprocess.run(args, stdout=subprocess.PIPE, check=True, text=True)
    curve = [json.loads(line) for line in done.stdout.splitlines()]
    return curve, load_file(out / f"checkpoint-{len(curve)}" / "model.safetensors")


def main():
    torch.set_num_threads(2)
    rows = make_rows()
    worst = worst_weight = 0.0
    for name, (cls, config) in FAMILIES.items():
        with tempfile.TemporaryDirectory() as tmp:
            tmp = pathlib.Path(tmp)
            torch.manual_seed(3)
            model = cls(config)
            for key, p in model.named_parameters():  # norms and biases away from 1 and 0
                if p.ndim == 1:
                    p.data += 0.1 * torch.randn_like(p)
            model.save_pretrained(tmp / "model")
            expected = {}
            for variant, change in VARIANTS.items():
                s = SETTINGS | change
                key = (s["schedule"], s["max_grad_norm"])
                if key not in expected:
                    expected[key] = reference(cls.from_pretrained(tmp / "model", dtype=torch.float32), rows, s)
                curve, weights = expected[key]
                out = tmp / variant.replace(" ", "_")
                out.mkdir()
                got, saved = ours(tmp / "model", rows, s, out)
                assert len(got) == len(curve) == 10, (len(got), len(curve))
                loss = max(abs(a["loss"] - b["loss"]) for a, b in zip(got, curve))
                norm = max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(got, curve))
                rate = max(abs(a["learning_rate"] - b["learning_rate"]) for a, b in zip(got, curve))
                tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
                assert set(saved) == set(weights) - tied, (name, variant)
                weight = max((saved[k] - weights[k]).abs().max().item() for k in saved)
                clipped = sum(b["grad_norm"] > SETTINGS["max_grad_norm"] for b in curve)
                print(
                    f"{name:6} {variant:30} loss {loss:.1e}  grad norm {norm:.1e}  weights {weight:.1e}"
                    f"  ({clipped} of 10 above the clip; {curve[0]['loss']:.3f} to {curve[-1]['loss']:.3f})"
                )
                assert loss < 1e-4 and norm < 1e-3 and rate < 1e-9, (name, variant)
                # ten steps move a weight by up to 2e-2
                assert weight < 1e-5, (name, variant)
                worst, worst_weight = max(worst, loss), max(worst_weight, weight)
    print(f"worst difference: of a loss {worst:.1e}, of a weight {worst_weight:.1e}")


if __name__ == "__main__":
    main()
