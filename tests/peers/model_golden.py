"""Makes tests/golden/model: tiny random checkpoints of each family, with tied and untied embeddings, in files of f32, f16
and bf16, whole and sharded; with transformers' logits, gradients and greedy text.

Run once by hand when one is added: PYTHON tests/peers/model_golden.py
"""
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ROOT = pathlib.Path(__file__).parent.parent / "golden" / "model"
SHAPE = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=40,
    max_position_embeddings=128,
    initializer_range=0.2,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=None,
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
    rope_theta=10000.0,
)
QWEN2, QWEN3, LLAMA = (
    (Qwen2ForCausalLM, lambda **k: Qwen2Config(**k, **SHAPE)),
    (Qwen3ForCausalLM, lambda **k: Qwen3Config(head_dim=8, **k, **SHAPE)),
    (LlamaForCausalLM, lambda **k: LlamaConfig(rope_parameters=LLAMA3, **k, **SHAPE)),
)
# family, tied embeddings, dtype of the files, size of a shard
MODELS = {
    "qwen2": (*QWEN2, True, torch.float32, None),
    "qwen3": (*QWEN3, False, torch.float32, None),
    "llama": (*LLAMA, False, torch.float32, "9KB"),
    "qwen2-untied-f16": (*QWEN2, False, torch.float16, None),
    "qwen3-tied-bf16": (*QWEN3, True, torch.bfloat16, None),
    "llama-tied-bf16": (*LLAMA, True, torch.bfloat16, "4KB"),
}
TOKENS = [3, 17, 22, 5, 9, 31, 2, 8, 39, 12, 12, 7, 30, 25]
SEQ_LENS = [9, 1, 4]


def main():
    shutil.rmtree(ROOT, ignore_errors=True)
    for name, (cls, config, tied, dtype, shard) in MODELS.items():
        torch.manual_seed(7)
        model = cls(config(tie_word_embeddings=tied)).eval()
        for key, p in model.named_parameters():  # norms and biases away from 1 and 0
            if p.dim() == 1:
                p.data.add_(0.3 * torch.randn_like(p))
        folder = ROOT / name
        model.to(dtype).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
        if dtype != torch.float32:  # the rounded weights, with the arithmetic (and the RoPE table) of f32
            model = cls.from_pretrained(folder, dtype=torch.float32).eval()
        out, start, loss = {}, 0, 0.0
        logits = []
        for n in SEQ_LENS:
            ids = torch.tensor([TOKENS[start : start + n]])
            y = model(input_ids=ids, use_cache=False).logits[0]
            logits.append(y)
            # every second target is trained, with weights that differ
            for t in range(n - 1):
                if (start + t) % 2 == 0:
                    weight = 0.25 + 0.01 * (start + t)
                    loss = loss - weight * torch.log_softmax(y[t], -1)[ids[0, t + 1]]
            start += n
        loss.backward()
        out["logits"] = torch.cat(logits).detach()
        out["loss"] = loss.detach().reshape(1)
        for key, p in model.named_parameters():
            out["grad." + key] = p.grad
        prompt = torch.tensor([TOKENS[:6]])
        greedy = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        out["greedy"] = greedy[0, 6:].to(torch.int64)
        save_file({k: v.contiguous() for k, v in out.items()}, folder / "expected.safetensors")
        (folder / "generation_config.json").unlink(missing_ok=True)
    (ROOT / "input.json").write_text(json.dumps({"tokens": TOKENS, "seq_lens": SEQ_LENS}) + "\n")


main()
