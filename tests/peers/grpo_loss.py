"""Loss and gradient of `distill debug-policy` against TRL's `GRPOTrainer._compute_loss`: every loss, KL and correction.

The same tiny Qwen2, completions of unequal lengths (one cut off and masked), log-probabilities before the update, of the
reference and of the sampler, and advantages. What `_compute_loss` is given by the rest of the trainer (the weights that
correct for the sampler) is made here by the formulas of `_generate_and_score_completions`.
Run: PYTHON tests/peers/grpo_loss.py (DISTILL names the binary, default target/release/distill)
"""
import collections
import itertools
import json
import os
import pathlib
import subprocess
import tempfile
import types

import torch
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import GRPOTrainer

if not torch.cuda.is_available():
    # transformers asks when it looks for packed sequences; the CUDA libraries here may be stand-ins that cannot answer
    torch.cuda.is_current_stream_capturing = lambda: False

ROOT = pathlib.Path(__file__).resolve().parents[2]
DISTILL = os.environ.get("DISTILL", str(ROOT / "target/release/distill"))
TEMPERATURE = 0.8
NUM_PROMPT_TOKENS = 4
LENGTHS = [7, 3, 12, 5, 9]
MASKED = 3
ADVANTAGES = [1.2, -0.7, 0.4, 0.9, -1.1]
MAX_NEW_TOKENS = 16
BETA = 0.15
LOSSES = ["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "gspo"]
KLS = ["none", "k3", "unbiased"]
CORRECTIONS = ["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
DEFAULTS = dict(
    preset="deepseekmath", num_steps=None, epochs=1, num_prompts_per_step=1, group_size=5, num_minibatches=1, inner_epochs=1,
    temperature=TEMPERATURE, max_new_tokens=MAX_NEW_TOKENS, clip_low=0.2, clip_high=0.28, pack_length=40,
    correction_max=1.15, correction_min=0.9, advantage="group",
)


def logprobs_of(model, ids, mask):
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, NUM_PROMPT_TOKENS - 1 : -1] / TEMPERATURE
    every = torch.log_softmax(logits.float(), dim=-1)
    entropies = -(every.exp() * every).sum(-1)
    return every.gather(-1, ids[:, NUM_PROMPT_TOKENS:].unsqueeze(-1)).squeeze(-1), entropies


class Accelerator:
    num_processes = 1
    sync_gradients = False

    def reduce(self, x, reduction=None):
        return x

    def gather(self, x):
        return x


def trl_loss(model, case, s):
    """`_compute_loss` on a trainer that has only what it reads."""
    gspo = s["name"] == "gspo"
    fake = types.SimpleNamespace(
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=s.get("off_policy_max"),
        importance_sampling_level="sequence" if gspo else "token",
        beta=0.0 if s["kl"] == "none" else BETA,
        args=types.SimpleNamespace(
            delta=s.get("clip_max"), use_bias_correction_kl=s["kl"] == "unbiased", steps_per_generation=1
        ),
        loss_type="grpo" if gspo else s["name"],
        epsilon_low=s["clip_low"],
        epsilon_high=s["clip_high"],
        use_vllm=s["correction"] != "none",
        vllm_importance_sampling_correction=s["correction"] != "none",
        model=model,
        current_gradient_accumulation_steps=1,
        max_completion_length=MAX_NEW_TOKENS,
        accelerator=Accelerator(),
        _entropy_bonus_enabled=False,
        aux_loss_enabled=False,
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        _get_per_token_logps_and_entropies=lambda m, ids, mask, *a, **k: (*logprobs_of(m, ids, mask), None),
    )
    ids, mask = case["ids"], case["mask"]
    completion_mask = mask[:, NUM_PROMPT_TOKENS:]
    inputs = dict(
        prompt_ids=ids[:, :NUM_PROMPT_TOKENS],
        prompt_mask=mask[:, :NUM_PROMPT_TOKENS],
        completion_ids=ids[:, NUM_PROMPT_TOKENS:],
        completion_mask=completion_mask,
        advantages=torch.tensor(ADVANTAGES),
        ref_per_token_logps=case["reference"],
        num_items_in_batch=completion_mask.sum(),
    )
    old = case["old"]
    if s["has_old"]:
        inputs["old_per_token_logps"] = old
    else:
        with torch.no_grad():
            old = logprobs_of(model, ids, mask)[0]
    if s["correction"] != "none" or s.get("off_policy_max") is not None:
        inputs["sampling_per_token_logps"] = case["sampled"]
    if s["correction"] != "none":
        difference = (old - case["sampled"]) * completion_mask
        if s["correction"].startswith("sequence"):
            difference = difference.sum(-1, keepdim=True)
        ratio = difference.exp()
        if s["correction"].endswith("truncate"):
            ratio = ratio.clamp(max=s["correction_max"])
        else:
            ratio = ratio.masked_fill((ratio < s["correction_min"]) | (ratio > s["correction_max"]), 0.0)
        inputs["importance_sampling_ratio"] = ratio
    loss = GRPOTrainer._compute_loss(fake, model, inputs)
    model.zero_grad()
    loss.backward()
    return loss.item(), {k: p.grad.clone() for k, p in model.named_parameters()}


def make_case(model):
    g = torch.Generator().manual_seed(4)
    longest = NUM_PROMPT_TOKENS + max(LENGTHS)
    ids = torch.randint(0, model.config.vocab_size, (len(LENGTHS), longest), generator=g)
    mask = torch.zeros_like(ids)
    for i, n in enumerate(LENGTHS):
        mask[i, : NUM_PROMPT_TOKENS + (0 if i == MASKED else n)] = 1
    whole = torch.ones_like(ids)
    with torch.no_grad():
        policy, _ = logprobs_of(model, ids, whole)
    noise = lambda size: policy + size * torch.randn(policy.shape, generator=g)  # noqa: E731
    return dict(ids=ids, mask=mask, old=noise(0.3), reference=noise(0.5), sampled=noise(0.05))


def cases():
    for loss, kl, correction, has_old in itertools.product(LOSSES, KLS, CORRECTIONS, [True, False]):
        yield dict(name=loss, kl=kl, correction=correction, has_old=has_old)
    for loss in ["grpo", "dapo", "gspo"]:
        yield dict(name=loss, kl="k3", correction="none", has_old=True, clip_max=1.1)
        # between the completions' own distances, so that some are left out
        yield dict(name=loss, kl="k3", correction="token_truncate", has_old=True, off_policy_max=0.0)


def main():
    torch.set_num_threads(2)
    torch.manual_seed(2)
    config = Qwen2Config(
        hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
        vocab_size=211, max_position_embeddings=256, initializer_range=0.1, tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config).float()
    model.train()
    case = make_case(model)
    jobs, expected, names = [], [], []
    for c in cases():
        s = DEFAULTS | c
        if s["name"] == "cispo":
            s["clip_high"] = 1.1
        expected.append(trl_loss(model, case, s))
        names.append(" ".join(f"{k}={v}" for k, v in c.items()))
        row = lambda key, i: case[key][i, : LENGTHS[i]].tolist()  # noqa: E731
        ours = {k: v for k, v in s.items() if k not in ("name", "has_old")}
        ours["loss"] = "grpo" if s["name"] == "gspo" else s["name"]
        ours["ratio"] = "sequence_mean" if s["name"] == "gspo" else "token"
        ours["kl_coef"] = 0.0 if s["kl"] == "none" else BETA
        completions = [
            dict(
                tokens=case["ids"][i, : NUM_PROMPT_TOKENS + n].tolist(),
                num_prompt_tokens=NUM_PROMPT_TOKENS,
                advantages=[ADVANTAGES[i]] * n,
                old=row("old", i) if s["has_old"] else None,
                reference=row("reference", i),
                sampled=row("sampled", i),
                is_trained=i != MASKED,
                name=f"completion {i}",
            )
            for i, n in enumerate(LENGTHS)
        ]
        jobs.append(dict(settings=ours, completions=completions))
    worst_loss = worst_gradient = 0.0
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        model.save_pretrained(tmp / "model")
        (tmp / "jobs.json").write_text(json.dumps(jobs))
        args = [DISTILL, "debug-policy", "--model", str(tmp / "model"), "--jobs", str(tmp / "jobs.json"), "--output", str(tmp)]
        done = subprocess.run(args, stdout=subprocess.PIPE, check=True, text=True)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(lines) == len(jobs), (len(lines), len(jobs))
        losses = set()
        for i, (line, (loss, gradients)) in enumerate(zip(lines, expected)):
            saved = load_file(tmp / f"{i}.safetensors")
            assert set(saved) == set(gradients), set(saved) ^ set(gradients)
            # 0 where every completion is masked
            largest = max(g.abs().max().item() for g in gradients.values()) or 1.0
            by_gradient = max((saved[k] - g).abs().max().item() for k, g in gradients.items()) / largest
            by_loss = abs(line["loss"] - loss)
            assert by_loss < 1e-5 and by_gradient < 1e-5, (names[i], by_loss, by_gradient)
            worst_loss, worst_gradient = max(worst_loss, by_loss), max(worst_gradient, by_gradient)
            losses.add(round(loss, 5))
    # variants that all gave the same number would prove nothing
    assert len(losses) > len(jobs) // 3, len(losses)
    print(f"{len(jobs)} variants, {len(losses)} different losses")
    print(f"worst difference: of a loss {worst_loss:.1e}, of a gradient relative to its largest value {worst_gradient:.1e}")


if __name__ == "__main__":
    main()
