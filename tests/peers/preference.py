"""Preference and reward-model training of `distill debug-preference` against TRL's trainers on a tiny random Qwen2.

The loss and the gradient of every parameter of TRL's own `compute_loss` (DPOTrainer, RewardTrainer, CPOTrainer for SimPO), then
five AdamW steps; where TRL has no such loss (label smoothing, RPO by answers, labelled answers) the formula in torch. A
trained reward model is then read by AutoModelForSequenceClassification. Run: PYTHON tests/peers/preference.py
"""
import json
import os
import pathlib
import random
import subprocess
import tempfile
import warnings

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
warnings.filterwarnings("ignore")

os.environ.setdefault("TQDM_DISABLE", "1")

import datasets
import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    # transformers asks when it looks for packed sequences; the CUDA libraries here may be stand-ins that cannot answer
    torch.cuda.is_current_stream_capturing = lambda: False

import transformers
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer

datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

ROOT = pathlib.Path(__file__).resolve().parents[2]
DISTILL = os.environ.get("DISTILL", str(ROOT / "target/release/distill"))
PAD = 0
SHAPE = dict(
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    vocab_size=211,
    max_position_embeddings=256,
    initializer_range=0.1,
    pad_token_id=PAD,
)
NUM_PAIRS, STEPS, BETAS = 6, 5, [0.9, 0.95]
SETTINGS = dict(
    seed=0,
    inputs_key="peer",
    epochs=STEPS,
    max_steps=None,
    learning_rate=1e-3,
    schedule="constant",
    min_learning_rate_ratio=1.0,
    warmup_ratio=0.0,
    batch_size=NUM_PAIRS,
    packing=True,
    pack_length=120,
    shuffle=False,
    weight_decay=0.1,
    betas=BETAS,
    adam_epsilon=1e-8,
    max_grad_norm=0.0,
    recompute="none",
    checkpoint_every_steps=1,
    keep_checkpoints=100,
)
OBJECTIVE = dict(loss="dpo", beta=0.1, gamma=1.375, alpha=1.0, nll_mean="tokens", label_smoothing=0.0)


def tokenizer():
    # special tokens are looked for inside of words too
    words = {text([i]): i for i in range(SHAPE["vocab_size"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", bos_token=None)


def make_pairs():
    rng = random.Random(5)
    word = lambda: rng.randrange(3, SHAPE["vocab_size"])
    pairs = []
    for _ in range(NUM_PAIRS):
        prompt = [word() for _ in range(rng.randint(2, 12))]
        answers = [[word() for _ in range(rng.randint(1, 20))] + [2] for _ in range(2)]
        pairs.append(dict(prompt=prompt, chosen=answers[0], rejected=answers[1]))
    return pairs


def row(prompt, answer):
    return dict(tokens=prompt + answer, trained=[False] * len(prompt) + [True] * len(answer))


def ours(folder, rows, out, **job):
    out.mkdir()
    path = out / "job.json"
    path.write_text(json.dumps(dict(settings=SETTINGS, rows=rows, **job)))
    args = [DISTILL, "debug-preference", "--model", str(folder), "--job", str(path), "--output", str(out)]
    done = subprocess.run(args, stdout=subprocess.PIPE, check=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    # after the first step, m = (1 - beta1) * gradient
    states = load_file(out / "checkpoint-1" / "optimizer.safetensors")
    gradient = {k[2:]: v / (1 - BETAS[0]) for k, v in states.items() if k.startswith("m.")}
    return lines, gradient, load_file(out / f"checkpoint-{STEPS}" / "model.safetensors")


def theirs(model, loss_of):
    """Five steps of AdamW as transformers' trainer groups its parameters."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [dict(params=decay, weight_decay=SETTINGS["weight_decay"]), dict(params=plain, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=SETTINGS["learning_rate"], betas=BETAS, eps=SETTINGS["adam_epsilon"])
    losses, first = [], None
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        losses.append(loss.item())
        if first is None:
            first = {k: p.grad.detach().clone() for k, p in model.named_parameters()}
        optimizer.step()
    return losses, first, {k: p.detach().clone() for k, p in model.named_parameters()}


def compare(name, got, expected):
    (lines, gradient, weights), (losses, their_gradient, their_weights) = got, expected
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == len(losses) == STEPS
    assert set(gradient) == set(their_gradient), set(gradient) ^ set(their_gradient)
    loss = max(abs(a["loss"] - b) for a, b in zip(steps, losses))
    largest = max(g.abs().max().item() for g in their_gradient.values())
    grad = max((gradient[k] - g).abs().max().item() for k, g in their_gradient.items()) / largest
    weight = max((weights[k] - w).abs().max().item() for k, w in their_weights.items())
    print(
        f"{name:34} loss {loss:.1e}  gradient {grad:.1e} of its largest  weights {weight:.1e}"
        f"  ({losses[0]:.4f} to {losses[-1]:.4f})"
    )
    assert loss < 1e-4 and grad < 1e-4, name
    # AdamW divides by the gradient's own size: where that is all rounding, a step of 1e-3 may go either way
    assert weight < 2e-4, name
    return loss, grad, weight


COMMON = dict(
    per_device_train_batch_size=NUM_PAIRS,
    report_to=[],
    use_cpu=True,
    bf16=False,
    disable_tqdm=True,
    gradient_checkpointing=False,
    remove_unused_columns=False,
    max_length=None,
)


def text(ids):
    special = {0: "<pad>", 1: "<unk>", 2: "<eos>"}
    return " ".join(special.get(i, f"w{i}") for i in ids)


def batch_of(trainer):
    """The trainer's own batch: all pairs, in order."""
    trainer.args.dataloader_num_workers = 0
    examples = [trainer.train_dataset[i] for i in range(NUM_PAIRS)]
    return trainer.data_collator(examples)


def dpo(folder, tmp, pairs, loss_type, loss_weights, **kwargs):
    # TRL puts the end of the answer there itself
    data = Dataset.from_list([dict(prompt=text(p["prompt"]) + " ", chosen=text(p["chosen"][:-1]), rejected=text(p["rejected"][:-1])) for p in pairs])
    config = DPOConfig(output_dir=str(tmp / "trl"), loss_type=loss_type, loss_weights=loss_weights, **COMMON, **kwargs)
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reference = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer = DPOTrainer(model=model, ref_model=reference, args=config, train_dataset=data, processing_class=tokenizer())
    batch = batch_of(trainer)
    check_batch(batch, pairs)
    return theirs(model, lambda m: trainer.compute_loss(m, dict(batch)))


def check_batch(batch, pairs):
    ids = batch["input_ids"]
    sequences = [p["prompt"] + p["chosen"] for p in pairs] + [p["prompt"] + p["rejected"] for p in pairs]
    masks = batch["attention_mask"]
    for got, mask, expected in zip(ids, masks, sequences):
        assert got[mask.bool()].tolist() == expected, (got, expected)


def simpo(folder, tmp, pairs, beta, gamma):
    data = Dataset.from_list([dict(prompt=text(p["prompt"]) + " ", chosen=text(p["chosen"][:-1]), rejected=text(p["rejected"][:-1])) for p in pairs])
    common = COMMON | dict(max_length=256)
    config = CPOConfig(output_dir=str(tmp / "trl"), loss_type="simpo", beta=beta, simpo_gamma=gamma, cpo_alpha=0.0, **common)
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer = CPOTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer())
    batch = batch_of(trainer)
    for i, p in enumerate(pairs):
        ids = batch["chosen_input_ids"][i][batch["chosen_attention_mask"][i].bool()].tolist()
        assert ids == p["prompt"] + p["chosen"], (ids, p)
    return theirs(model, lambda m: trainer.compute_loss(m, dict(batch)))


def reward(folder, tmp, pairs, center, margins):
    rows = [dict(chosen_ids=p["prompt"] + p["chosen"], rejected_ids=p["prompt"] + p["rejected"], **({"margin": m} if margins else {})) for p, m in zip(pairs, margins or [0] * len(pairs))]
    config = RewardConfig(output_dir=str(tmp / "trl"), center_rewards_coefficient=center, **COMMON)
    model = Qwen2ForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    trainer = RewardTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer())
    batch = batch_of(trainer)
    return theirs(model, lambda m: trainer.compute_loss(m, dict(batch)))


def logps(model, pairs):
    """Sums and numbers of tokens, one sequence at a time, as one would write it by hand."""
    sums, counts = [], []
    for key in ["chosen", "rejected"]:
        for p in pairs:
            ids = torch.tensor([p["prompt"] + p[key]])
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            picked = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            sums.append(picked[len(p["prompt"]) - 1 :].sum())
            counts.append(len(p[key]))
    n = len(pairs)
    return torch.stack(sums[:n]), torch.stack(sums[n:]), torch.tensor(counts[:n]), torch.tensor(counts[n:])


def by_hand(folder, pairs, objective):
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        c0, r0, _, _ = logps(model, pairs)

    def loss_of(model):
        c, r, n_c, n_r = logps(model, pairs)
        if objective["loss"] == "simpo":
            z = objective["beta"] * (c / n_c - r / n_r) - objective["gamma"]
        else:
            z = objective["beta"] * ((c - c0) - (r - r0))
        e = objective["label_smoothing"]
        loss = -(1 - e) * F.logsigmoid(z) - e * F.logsigmoid(-z)
        if objective["loss"] == "rpo":
            assert objective["nll_mean"] == "sequences"
            loss = loss - objective["alpha"] * c / n_c
        return loss.mean()

    return theirs(model, loss_of)


def labelled(folder, rows):
    model = Qwen2ForSequenceClassification.from_pretrained(folder, dtype=torch.float32)

    def loss_of(model):
        scores = [model(input_ids=torch.tensor([r["answer"]["tokens"]]), use_cache=False).logits[0, 0] for r in rows]
        labels = torch.tensor([float(r["label"]) for r in rows])
        return F.binary_cross_entropy_with_logits(torch.stack(scores), labels)

    return theirs(model, loss_of)


def main():
    torch.set_num_threads(2)
    pairs = make_pairs()
    rows = [dict(chosen=row(p["prompt"], p["chosen"]), rejected=row(p["prompt"], p["rejected"])) for p in pairs]
    worst = []
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)

        def save(cls, name, **kwargs):
            torch.manual_seed(3)
            model = cls(Qwen2Config(tie_word_embeddings=True, **SHAPE, **kwargs))
            for _, p in model.named_parameters():  # norms and biases away from 1 and 0
                if p.ndim == 1:
                    p.data += 0.1 * torch.randn_like(p)
            model.save_pretrained(tmp / name)
            return tmp / name

        lm = save(Qwen2ForCausalLM, "lm")
        scorer = save(Qwen2ForSequenceClassification, "scorer", num_labels=1)

        trl = {
            "DPO, TRL": (dict(), lambda: dpo(lm, tmp, pairs, ["sigmoid"], None, beta=0.1)),
            "DPO, beta 0.5, TRL": (dict(beta=0.5), lambda: dpo(lm, tmp, pairs, ["sigmoid"], None, beta=0.5)),
            "RPO, mean over tokens, TRL": (dict(loss="rpo"), lambda: dpo(lm, tmp, pairs, ["sigmoid", "sft"], [1.0, 1.0], beta=0.1)),
            "RPO, alpha 0.3, TRL": (dict(loss="rpo", alpha=0.3), lambda: dpo(lm, tmp, pairs, ["sigmoid", "sft"], [1.0, 0.3], beta=0.1)),
            "SimPO, TRL": (dict(loss="simpo", beta=2.5), lambda: simpo(lm, tmp, pairs, 2.5, 1.375)),
        }
        hand = {
            "DPO, label smoothing": dict(label_smoothing=0.2),
            "RPO, mean over answers": dict(loss="rpo", nll_mean="sequences", alpha=0.7),
            "SimPO, label smoothing": dict(loss="simpo", beta=2.0, gamma=0.5, label_smoothing=0.1),
        }
        for number, (name, (change, run)) in enumerate(trl.items()):
            objective = OBJECTIVE | change
            worst.append(compare(name, ours(lm, rows, tmp / f"trl{number}", preference=objective), run()))
        for number, (name, change) in enumerate(hand.items()):
            objective = OBJECTIVE | change
            worst.append(compare(name, ours(lm, rows, tmp / f"hand{number}", preference=objective), by_hand(lm, pairs, objective)))

        margins = [0.0, 0.5, 1.0, 0.25, 2.0, 0.75]
        with_margins = [r | dict(margin=m) for r, m in zip(rows, margins)]
        for number, (name, r, center, m) in enumerate(
            [
                ("reward model, TRL", rows, 0.0, None),
                ("reward model, centred, TRL", rows, 0.05, None),
                ("reward model, margins, TRL", with_margins, 0.0, margins),
            ]
        ):
            got = ours(scorer, r, tmp / f"scorer{number}", center_coefficient=center)
            worst.append(compare(name, got, reward(scorer, tmp, pairs, center or None, m)))
        answers = [dict(answer=r[key], label=key == "chosen") for r in rows for key in ["chosen", "rejected"]][:NUM_PAIRS]
        got = ours(scorer, answers, tmp / "labelled")
        worst.append(compare("reward model, labelled answers", got, labelled(scorer, answers)))

        # what we saved, read by transformers: a padded batch
        lines, _, _ = ours(scorer, rows, tmp / "read")
        scores = lines[-1]["scores"]
        model = AutoModelForSequenceClassification.from_pretrained(tmp / "read" / f"checkpoint-{STEPS}", dtype=torch.float32)
        assert type(model) is Qwen2ForSequenceClassification and model.config.num_labels == 1
        sequences = [r[key]["tokens"] for r in rows for key in ["chosen", "rejected"]]
        longest = max(map(len, sequences))
        ids = torch.tensor([s + [PAD] * (longest - len(s)) for s in sequences])
        mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
        with torch.no_grad():
            read = model(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()
        score = max(abs(a - b) for a, b in zip(scores, read))
        assert len(scores) == len(read) and score < 1e-4, score
    loss, grad, weight = (max(w) for w in zip(*worst))
    print(f"worst difference: of a loss {loss:.1e}, of a gradient {grad:.1e}, of a weight {weight:.1e}, of a score {score:.1e}")


if __name__ == "__main__":
    main()
