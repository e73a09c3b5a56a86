"""Logits, every gradient and checkpoints in both directions against transformers, on random checkpoints of all families.

Tied and untied embeddings, files of f32, f16 and bf16, whole and sharded, recomputation on and off; sequences packed on our
side, one by one on theirs. Logits within 1e-4; each parameter's gradient within 1e-3 of its largest value; a checkpoint
saved by us loads with `from_pretrained` without a missing or unexpected key and gives the same weights to the bit, in f32
and in the dtype of the files.

Usage: PYTHON tests/peers/model_live.py [path to distill]
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file

# a build of torch with CUDA asks a driver that is not there whether it records a graph
if not torch.cuda.is_available():
    torch.cuda.is_current_stream_capturing = lambda: False

VOCAB = 211
SHAPE = dict(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.1,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
FAMILIES = {
    "qwen2": lambda tied: transformers.Qwen2Config(tie_word_embeddings=tied, **SHAPE),
    "qwen3": lambda tied: transformers.Qwen3Config(head_dim=16, tie_word_embeddings=tied, **SHAPE),
    "llama": lambda tied: transformers.LlamaConfig(rope_parameters=LLAMA3, tie_word_embeddings=tied, **SHAPE),
}
# tied, dtype of the files, shard size of theirs, of ours, recomputation
VARIANTS = [
    (True, torch.float32, None, 1 << 40, "none"),
    (False, torch.float32, "100KB", 100_000, "block"),
    (True, torch.bfloat16, "50KB", 1 << 40, "block"),
    (False, torch.float16, None, 100_000, "none"),
    (False, torch.bfloat16, "50KB", 50_000, "none"),
]
CASTS = {torch.bfloat16: "bf16", torch.float16: "f16"}
SEQ_LENS = [37, 1, 200, 64, 2]


def make_batch():
    rng = random.Random(11)
    tokens = [rng.randrange(VOCAB) for _ in range(sum(SEQ_LENS))]
    targets, weights = [0] * len(tokens), [0.0] * len(tokens)
    start = 0
    for n in SEQ_LENS:
        for t in range(start, start + n - 1):
            targets[t] = tokens[t + 1]
            if rng.random() < 0.7:
                weights[t] = rng.uniform(0.1, 1.0)
        start += n
    return dict(tokens=tokens, seq_lens=SEQ_LENS, targets=targets, weights=weights)


def save(config, dtype, shard, folder):
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases away from 1 and 0
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(folder, **(dict(max_shard_size=shard) if shard else {}))


def load(folder):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    wrong = {what: found for what, found in info.items() if found}
    assert not wrong, wrong
    return model.eval()


def expected_logits(model, batch):
    """One sequence at a time."""
    rows = torch.tensor(batch["tokens"]).split(batch["seq_lens"])
    return torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in rows])


def expected(model, batch):
    """Logits, and loss and gradients of the weighted sum."""
    logits = expected_logits(model, batch)
    picked = logits.log_softmax(-1).gather(1, torch.tensor(batch["targets"])[:, None])[:, 0]
    loss = -(picked * torch.tensor(batch["weights"])).sum()
    loss.backward()
    return logits.detach(), loss.item(), {name: p.grad for name, p in model.named_parameters()}


def ours(binary, folder, batch, out, **options):
    job = out.parent / "job.json"
    job.write_text(json.dumps(batch | options))
    subprocess.run([binary, "debug-model", "--model", folder, "--job", job, "--output", out], check=True)
    return load_file(out / "result.safetensors")


def main(binary):
    torch.set_num_threads(2)
    batch = make_batch()
    worst_logit = worst_gradient = 0.0
    for name, config in FAMILIES.items():
        for tied, dtype, shard, our_shard, recompute in VARIANTS:
            with tempfile.TemporaryDirectory() as path:
                folder = pathlib.Path(path)
                what = f"{name}, {'tied' if tied else 'untied'}, {str(dtype)[6:]}, recompute {recompute}"
                save(config(tied), dtype, shard, folder / "theirs")
                assert (folder / "theirs/model.safetensors.index.json").exists() == bool(shard), what
                model = load(folder / "theirs")
                logits, loss, gradients = expected(model, batch)
                options = dict(recompute=recompute, max_shard_bytes=our_shard, cast=CASTS.get(dtype))
                found = ours(binary, folder / "theirs", batch, folder / "out", **options)

                gap = (found["logits"] - logits).abs().max().item()
                assert gap < 1e-4, (what, gap)
                our_loss = -sum(a * b for a, b in zip(found["logprobs"].tolist(), batch["weights"], strict=True))
                assert abs(our_loss / loss - 1) < 1e-5, (what, our_loss, loss)
                assert {key[5:] for key in found if key.startswith("grad.")} == set(gradients), what
                errors = {}
                for key, gradient in gradients.items():
                    largest = gradient.abs().max().item()
                    assert largest > 0, (what, key)
                    errors[key] = (found[f"grad.{key}"] - gradient).abs().max().item() / largest
                key = max(errors, key=errors.get)
                assert errors[key] < 1e-3, (what, key, errors[key])

                # and back
                assert (folder / "out/model/model.safetensors.index.json").exists() == (our_shard < 1 << 40), what
                again = load(folder / "out/model")
                state = again.state_dict()
                for other, value in model.state_dict().items():
                    assert torch.equal(state[other], value), (what, other)
                if dtype in CASTS:
                    # in the dtype of the files, to the bit, and in no other
                    assert (folder / "out/cast/model.safetensors.index.json").exists() == (our_shard < 1 << 40), what
                    files = {k: v for f in (folder / "out/cast").glob("*.safetensors") for k, v in load_file(f).items()}
                    assert {v.dtype for v in files.values()} == {dtype}, what
                    cast = load(folder / "out/cast").state_dict()
                    for other, value in model.state_dict().items():
                        assert torch.equal(cast[other], value), (what, other, "cast")
                with torch.no_grad():
                    back = expected_logits(again, batch)
                back_gap = (found["logits"] - back).abs().max().item()
                assert back_gap < 1e-4, (what, back_gap)
                print(f"{what}: logits {gap:.1e}, saved by us {back_gap:.1e}; {len(errors)} gradients, worst {errors[key]:.1e} ({key})")
                worst_logit, worst_gradient = max(worst_logit, gap, back_gap), max(worst_gradient, errors[key])
    print(f"worst difference: of a logit {worst_logit:.1e}, of a gradient {worst_gradient:.1e} of its parameter's largest")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "target/release/distill").resolve())
