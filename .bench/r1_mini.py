"""The tables of `recipes/r1-mini.toml` from the folders of several seeds, as Markdown.

Run: for s in 1 2 3; do distill --recipe r1-mini.toml --set seed=$s --run-dir runs/r1-mini-$s; done
     python3 .bench/r1_mini.py runs/r1-mini-1 runs/r1-mini-2 runs/r1-mini-3 > .bench/r1-mini.md   (Python 3.9 or newer, nothing else)
"""
import json
import math
import statistics
import sys
from pathlib import Path

RUNS = [Path(folder) for folder in sys.argv[1:]]
MODELS = [
    ("base", "base"),
    ("zero", "R1-Zero: reinforcement alone, from the base"),
    ("cold-start", "Dev1: cold start"),
    ("rl-1", "Dev2: + reinforcement, with language consistency"),
    ("rl-1-any-language", "the same without its reward"),
    ("sft", "Dev3: SFT on rejection-sampled and general data"),
    ("rl-2", "R1: + reinforcement with preferences"),
    ("student-base", "student: base"),
    ("student", "student: distilled from R1"),
    ("student-rl", "student: reinforcement alone"),
]


def read(path):
    return json.loads(path.read_text())


def evaluation(run, model, suite):
    return read(run / f"eval-{model}-{suite}" / "eval.json")


def spread(values, scale=1.0, digits=1):
    """Mean of the seeds, and the half width of its 95% interval by Student's t."""
    t = {1: float("nan"), 2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}[len(values)]
    mean = scale * statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    half = t * scale * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def seeds(values, scale, digits):
    return " / ".join(f"{scale * value:.{digits}f}" for value in values)


def shape(run, stage):
    config = read(run / stage / "model" / "config.json")
    c, f, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    kv = c // config["num_attention_heads"] * config["num_key_value_heads"]
    return layers * (2 * c * c + 2 * c * kv + 3 * c * f) + c * config["vocab_size"]


def rows(run, stage, name):
    with open(run / stage / name) as lines:
        return [json.loads(line) for line in lines]


def compute(run):
    """TFLOP of the two ways to a student: 2 a weight and token that is read or sampled, 6 for one that is learnt from."""
    teacher, student = shape(run, "rl-2"), shape(run, "student")
    sampled = 0
    for stage in ("teacher-chains", "teacher-wishes"):
        result = read(run / stage / "done.json")["result"]
        # prompts of the family have 40 tokens at most
        sampled += result["num_samples"] * (result["num_tokens_mean"] + 40)
    learnt = read(run / "student" / "done.json")["result"]["num_tokens"]
    distilled = 2 * teacher * sampled + 6 * student * learnt
    result = read(run / "student-rl" / "done.json")["result"]
    metrics = rows(run, "student-rl", "metrics.jsonl")
    completions = sum(m["num_completions"] * m["length"] for m in metrics)
    # what went through the update is everything but what was sampled
    alone = student * (2 * completions + 6 * (result["num_tokens"] - completions))
    return distilled / 1e12, alone / 1e12


def main():
    print("# r1-mini over seeds\n")
    names = ", ".join(str(read(run / "plan.json")["seed"]) for run in RUNS)
    facts = read(RUNS[0] / "run.json")
    minutes = " / ".join(f"{read(run / 'run.json')['seconds'] / 60:.1f}" for run in RUNS)
    print(f"Seeds {names}; {minutes} minutes on {facts['num_threads']} threads of {facts['processor']}, f32.")
    print("200 held-out chains x 4 samples and 24 held-out wishes x 16 samples a model, temperature 1. Mean over the seeds")
    print("with its 95% interval (Student's t), then each seed.\n")
    print("| model | chains, pass@1 % | each seed | language consistency | each seed | wishes, pass@1 % | tokens |")
    print("|---|---|---|---|---|---|---|")
    for model, what in MODELS:
        chains = [evaluation(run, model, "bilingual") for run in RUNS]
        wishes = [evaluation(run, model, "wishes") for run in RUNS]
        right = [e["pass@1"] for e in chains]
        language = [e["language_consistency"] for e in chains]
        print(
            f"| {what} | {spread(right, 100)} | {seeds(right, 100, 1)} | {spread(language, 1, 3)} | {seeds(language, 1, 3)} "
            f"| {spread([e['pass@1'] for e in wishes], 100)} | {spread([e['num_tokens_mean'] for e in chains], 1, 0)} |"
        )

    def differences(a, b, key="pass@1"):
        return [evaluation(run, a, "bilingual")[key] - evaluation(run, b, "bilingual")[key] for run in RUNS]

    def verdict(holds):
        return "holds" if holds else "does NOT hold"

    def both(values, least):
        return f"in the mean {verdict(statistics.mean(values) >= least)}, in every seed {verdict(min(values) >= least)}"

    print("\n## What was claimed\n")
    zero = differences("zero", "base")
    print(f"- R1-Zero over its base: {spread(zero, 100)} points, {seeds(zero, 100, 1)}; at least 20: {both(zero, 0.2)}.")
    distilled = differences("student", "student-rl")
    budget = [compute(run) for run in RUNS]
    cheaper = all(a <= b for a, b in budget)
    print(
        f"- Distilled over reinforcement alone, the same student: {spread(distilled, 100)} points, {seeds(distilled, 100, 1)}; "
        f"at least 10: {both(distilled, 0.1)}."
    )
    print(
        f"- Its compute, the teacher's sampling included: {seeds([a for a, _ in budget], 1, 2)} TFLOP against "
        f"{seeds([b for _, b in budget], 1, 2)}; no more: {verdict(cheaper)}."
    )
    with_reward = [evaluation(run, "rl-1", "bilingual")["language_consistency"] for run in RUNS]
    without = [evaluation(run, "rl-1-any-language", "bilingual")["language_consistency"] for run in RUNS]
    print(
        f"- Language consistency with its reward {seeds(with_reward, 1, 3)}, without {seeds(without, 1, 3)}; at least 0.95 and "
        f"lower without: {verdict(min(with_reward) >= 0.95 and all(a > b for a, b in zip(with_reward, without)))}."
    )
    judged = [read(run / "preferences" / "done.json")["result"]["held_out_accuracy"] for run in RUNS]
    print(f"- The reward model tells good from worse in {seeds(judged, 100, 0)}% of held-out pairs.")
    earned = [[m["rewards"]["reward_model"] for m in rows(run, "rl-2", "metrics.jsonl")] for run in RUNS]
    first, last = ([statistics.mean(e[part]) for e in earned] for part in (slice(0, 10), slice(-10, None)))
    better = [evaluation(run, "rl-2", "wishes")["pass@1"] - evaluation(run, "sft", "wishes")["pass@1"] for run in RUNS]
    print(
        f"- Its reward on the requests that R1 learns from: {seeds(first, 1, 2)} in the first ten updates, {seeds(last, 1, 2)} in "
        f"the last; right held-out wishes rise by {seeds(better, 100, 1)} points; rises: {verdict(min(better) > 0)}."
    )
    print("\n## Time of the stages, seconds\n")
    print("| stage | " + " | ".join(f"seed {read(run / 'plan.json')['seed']}" for run in RUNS) + " |")
    print("|---|" + "---|" * len(RUNS))
    for stage in read(RUNS[0] / "plan.json")["stages"]:
        taken = [read(run / stage["name"] / "done.json").get("seconds", float("nan")) for run in RUNS]
        if max(taken) >= 5:
            print(f"| {stage['name']} | " + " | ".join(f"{t:.0f}" for t in taken) + " |")


main()
