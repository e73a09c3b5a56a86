"""Adapters against PEFT: twenty optimiser steps of `distill debug-train` from the same initial adapter, logits beside and
merged, and the files in both directions, for LoRA, rsLoRA and DoRA; and QLoRA, where PEFT gets the weights that bitsandbytes
makes of its 4 bits, or llama.cpp's Python package of the blocks of a GGUF file: q8_0, whose blocks are the same bytes, and
q4_k, which that package only reads.

Run: PYTHON tests/peers/adapters.py (DISTILL names the binary, default target/release/distill)
"""
import json
import pathlib
import subprocess
import tempfile

import bitsandbytes.functional as bnb
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from train_sft import DISTILL, FAMILIES, SETTINGS, SHAPE, make_rows, reference
from transformers import Qwen2Config

STEPS = 20
METHODS = {
    "lora": dict(),
    "rslora": dict(use_rslora=True),
    "dora": dict(use_dora=True),
    "qlora": dict(),
}
TARGETS = {
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen3": ["q_proj", "v_proj", "down_proj"],
    "llama": ["k_proj", "o_proj", "gate_proj", "up_proj"],
}


def run(command, *flags, **options):
    args = [DISTILL, command, *flags]
    for name, value in options.items():
        args += [f"--{name}", str(value)]
    done = subprocess.run(args, stdout=subprocess.PIPE, check=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def in_four_bits(model):
    """Every projection as it comes back from 4-bit NormalFloat. The codes and scales are those of bitsandbytes; its own way
    back is wrong on the CPU where rows are no multiple of 64 (0.50.2), so it is spelt out."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("_proj.weight"):
                packed, state = bnb.quantize_4bit(p.data, blocksize=64, compress_statistics=True, quant_type="nf4")
                absmax = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
                codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=1).flatten().long()
                values = state.code[codes].reshape(-1, 64) * absmax[:, None]
                p.copy_(values.flatten()[: p.numel()].reshape(p.shape))


def result_of(folder, out, tokens, adapter=None, quant=None):
    job = out.parent / "batch.json"
    batch = dict(tokens=tokens, seq_lens=[len(tokens)], targets=tokens, weights=[1.0] * len(tokens))
    job.write_text(json.dumps(batch | dict(recompute="none", max_shard_bytes=10**9)))
    out.mkdir()
    options = dict(model=folder, job=job, output=out) | (dict(adapter=adapter) if adapter else {})
    run("debug-model", **options | (dict(quant=quant) if quant else {}))
    return load_file(out / "result.safetensors")


def logits_of(folder, out, tokens, adapter=None):
    return result_of(folder, out, tokens, adapter)["logits"]


def train_both(model, rows, s, tmp, *flags):
    """PEFT's loop and ours from the adapter of `model`: the largest differences of loss, gradient norm and weights."""
    model.save_pretrained(tmp / "first")
    curve, _ = reference(model, rows, s)
    job = tmp / "job.json"
    job.write_text(json.dumps(dict(settings=s, rows=rows)))
    got = run("debug-train", *flags, model=tmp / "base", adapter=tmp / "first", job=job, output=tmp / "out")
    assert len(got) == len(curve) == STEPS, (len(got), len(curve))
    loss = max(abs(a["loss"] - b["loss"]) for a, b in zip(got, curve))
    norm = max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(got, curve))
    model.save_pretrained(tmp / "last")
    theirs = load_file(tmp / "last/adapter_model.safetensors")
    ours = load_file(tmp / f"out/checkpoint-{STEPS}/adapter_model.safetensors")
    assert set(ours) == set(theirs), set(ours) ^ set(theirs)
    weight = max((ours[k] - theirs[k]).abs().max().item() for k in ours)
    return curve, loss, norm, weight


def check_blocks(rows, s):
    """The blocks of GGUF files: rows of 256 values, and of 320 in one matrix of a block, which q4_k does not divide."""
    cls, _ = FAMILIES["qwen2"]
    shape = SHAPE | dict(hidden_size=256, intermediate_size=320, num_attention_heads=4, initializer_range=0.05)
    for quant in ["q8_0", "q4_k"]:
        with tempfile.TemporaryDirectory() as tmp:
            tmp = pathlib.Path(tmp)
            torch.manual_seed(3)
            model = cls(Qwen2Config(tie_word_embeddings=True, **shape))
            model.save_pretrained(tmp / "base")
            options = dict(r=4, lora_alpha=6, target_modules=TARGETS["qwen2"], task_type="CAUSAL_LM")
            # an adapter that changes nothing: merged, the weights are what the blocks stand for
            get_peft_model(cls.from_pretrained(tmp / "base"), LoraConfig(**options)).save_pretrained(tmp / "neutral")
            found = result_of(tmp / "base", tmp / "blocks", rows[3]["tokens"], tmp / "neutral", quant)
            merged = load_file(tmp / "blocks/model/model.safetensors")
            start = cls.from_pretrained(tmp / "base", dtype=torch.float32)
            kinds = dict(Q8_0=0, Q4_K=0)
            with torch.no_grad():
                for name, p in start.named_parameters():
                    if not name.endswith("_proj.weight"):
                        continue
                    kind = GGMLQuantizationType.Q4_K if quant == "q4_k" and p.shape[1] % 256 == 0 else GGMLQuantizationType.Q8_0
                    kinds[kind.name] += 1
                    blocks = found[f"blocks.{name}"].numpy().reshape(p.shape[0], -1)
                    again = torch.from_numpy(dequantize(blocks, kind))
                    assert torch.equal(merged[name], again), (quant, name)
                    if kind == GGMLQuantizationType.Q8_0:
                        assert (quantize(p.numpy(), kind) == blocks).all(), name
                    p.copy_(again)
            model = get_peft_model(start, LoraConfig(init_lora_weights=False, **options))
            _, loss, norm, weight = train_both(model, rows, s, tmp, "--quant", quant)
            print(f"qwen2  {quant:7} loss {loss:.1e}  grad norm {norm:.1e}  weights {weight:.1e}  {kinds}: the same values")
            assert loss < 1e-4 and norm < 1e-3 and weight < 1e-4, quant


def main():
    torch.set_num_threads(2)
    rows = make_rows()
    s = SETTINGS | dict(epochs=4, learning_rate=5e-3)
    worst = dict(loss=0.0, weight=0.0, logits=0.0, merged=0.0)
    for family, (cls, config) in FAMILIES.items():
        for method, options in METHODS.items():
            with tempfile.TemporaryDirectory() as tmp:
                tmp = pathlib.Path(tmp)
                torch.manual_seed(3)
                model = cls(config)
                for p in model.parameters():  # norms and biases away from 1 and 0
                    if p.ndim == 1:
                        p.data += 0.1 * torch.randn_like(p)
                model.save_pretrained(tmp / "base")
                lora = LoraConfig(
                    r=4, lora_alpha=6, target_modules=TARGETS[family], task_type="CAUSAL_LM",
                    init_lora_weights=False, **options,
                )
                start = cls.from_pretrained(tmp / "base", dtype=torch.float32)
                flags = []
                if method == "qlora":
                    in_four_bits(start)
                    flags = ["--quant", "nf4"]
                model = get_peft_model(start, lora)
                curve, loss, norm, weight = train_both(model, rows, s, tmp, *flags)
                if method == "qlora":
                    print(f"{family:6} {method:7} loss {loss:.1e}  grad norm {norm:.1e}  weights {weight:.1e}")
                    assert loss < 1e-4 and norm < 1e-3 and weight < 1e-4, (family, method)
                    continue

                # our files in PEFT, and what each makes of them
                tokens = rows[3]["tokens"] + rows[5]["tokens"]
                beside = logits_of(tmp / "base", tmp / "beside", tokens, tmp / "last")
                base = cls.from_pretrained(tmp / "base", dtype=torch.float32)
                again = PeftModel.from_pretrained(base, tmp / "beside/adapter").eval()
                with torch.no_grad():
                    expected = again(torch.tensor([tokens])).logits[0]
                    merged = again.merge_and_unload()(torch.tensor([tokens])).logits[0]
                logits = (beside - expected).abs().max().item()
                in_weights = logits_of(tmp / "beside/model", tmp / "merged", tokens)
                own = (in_weights - beside).abs().max().item()
                of_peft = (in_weights - merged).abs().max().item()
                scale = expected.abs().max().item()
                print(
                    f"{family:6} {method:7} loss {loss:.1e}  grad norm {norm:.1e}  weights {weight:.1e}  logits {logits:.1e}"
                    f"  merged {own:.1e} / {of_peft:.1e} of {scale:.1f}  ({curve[0]['loss']:.3f} to {curve[-1]['loss']:.3f})"
                )
                assert loss < 1e-4 and norm < 1e-3 and weight < 1e-4, (family, method)
                assert max(logits, own, of_peft) < 1e-5 * max(scale, 1), (family, method)
                for key, value in dict(loss=loss, weight=weight, logits=logits, merged=own).items():
                    worst[key] = max(worst[key], value)
    check_blocks(rows, s)
    print("worst difference:", ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))


if __name__ == "__main__":
    main()
