"""What `distill push` leaves on a Hub, judged by huggingface_hub and datasets: cards load and validate, results are read
back, checksums hold, parquet loads with its rows, and the model loads in transformers.

Usage: PYTHON tests/peers/hub_card.py [path to distill [path to the stand-in]]
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

BUILT = "target/release" if pathlib.Path("target/release/distill").exists() else "target/debug"
DISTILL = sys.argv[1] if len(sys.argv) > 1 else f"{BUILT}/distill"
STAND_IN = sys.argv[2] if len(sys.argv) > 2 else f"{BUILT}/examples/hub_server"
TOKEN = "hf_MarkerWriteTokenThatMustNotLeak"

home = tempfile.TemporaryDirectory()
server = subprocess.Popen([STAND_IN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
URL = server.stdout.readline().strip()
os.environ.update(HF_ENDPOINT=URL, HF_HOME=home.name, HF_TOKEN=TOKEN, HF_HUB_DISABLE_PROGRESS_BARS="1",
                  HF_HUB_DISABLE_TELEMETRY="1")
os.environ.pop("HF_HUB_OFFLINE", None)

import yaml  # noqa: E402
from datasets import load_dataset  # noqa: E402
from huggingface_hub import DatasetCard, HfApi, ModelCard, parse_eval_result_entries, snapshot_download  # noqa: E402

api = HfApi()
num_checks = 0

RECIPE = """
name = "peer"
device = "cpu"
[student.init]
architecture = "qwen2"
tokenizer = "builtin:arithmetic"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
[[stage]]
name = "cold"
kind = "sft"
[[stage.traces]]
source = "builtin:arithmetic"
num_problems = 60
[stage.sft]
epochs = 1
learning_rate = 3e-3
batch_size = 4
max_length = 512
checkpoint_every_steps = 10
[[stage]]
name = "samples"
kind = "generate"
model = "@cold"
[[stage.prompts]]
source = "builtin:arithmetic"
num_problems = 20
[stage.sampling]
num_samples = 2
max_new_tokens = 24
[[stage]]
name = "chosen"
kind = "select"
samples = "@samples"
[stage.select]
accept = "any"
drop_truncated = false
drop_flags = []
[[stage.mix]]
source = "builtin:arithmetic"
num_problems = 30
[[stage]]
name = "judged"
kind = "eval"
model = "@cold"
[stage.eval]
suites = ["arithmetic", "mine.toml"]
limit = 4
max_new_tokens = 16
[publish]
repo = "tester/peer"
license = "cc0-1.0"
language = ["en", "no"]
checkpoints = true
tag = "v1"
[publish.traces]
repo = "tester/peer-traces"
license = "mit"
"""

SUITE = """
name = "on-the-hub"
version = "2"
paper = "none"
verifier = "exact"
[dataset]
source = "tester/problems"
[fields]
problem = "question"
answer = "answer"
[prompt]
template = "{problem}"
[sampling]
temperature = 0.6
top_p = 0.95
max_new_tokens = 16
k = 2
"""


def check(what, holds):
    global num_checks
    num_checks += 1
    if not holds:
        raise SystemExit(f"FAILED: {what}")


def distill(*args, cwd):
    run = subprocess.run([pathlib.Path(DISTILL).resolve(), *args], capture_output=True, text=True, cwd=cwd)
    check(f"distill {' '.join(args)}: {run.stderr}", run.returncode == 0)
    check("no token in what is printed", TOKEN not in run.stdout + run.stderr)
    return run.stdout


with tempfile.TemporaryDirectory() as work:
    work = pathlib.Path(work)
    # a benchmark whose problems are on the Hub
    problems = work / "problems"
    problems.mkdir()
    rows = [json.dumps({"question": f"What is {i} plus {i}?", "answer": str(2 * i)}) for i in range(4)]
    (problems / "train.jsonl").write_text("\n".join(rows))
    distill("push", "problems", "--repo", "tester/problems", "--dataset", "--license", "mit", cwd=work)
    (work / "peer.toml").write_text(RECIPE)
    (work / "mine.toml").write_text(SUITE)
    distill("--recipe", "peer.toml", "--run-dir", "run", "-q", cwd=work)

    # the card, as huggingface_hub reads it
    card = ModelCard.load("tester/peer")
    data = card.data
    check("licence", data.license == "cc0-1.0")
    check("languages", data.language == ["en", "no"])
    check("library", data.library_name == "transformers" and data.pipeline_tag == "text-generation")
    check("name of the model index", data.model_name == "peer")
    results = {result.dataset_name: result for result in data.eval_results}
    check("two results", set(results) == {"arithmetic", "on-the-hub"})
    check("the benchmark's data set", results["on-the-hub"].dataset_type == "tester/problems")
    given = json.loads((work / "run/judged-arithmetic/eval.json").read_text())["pass@1"]
    check("pass@1 in percent", abs(results["arithmetic"].metric_value - 100 * given) < 0.006)
    check("the server takes the card", card.validate() is None)

    # results in their newer form
    folder = pathlib.Path(snapshot_download("tester/peer"))
    files = sorted((folder / ".eval_results").iterdir())
    check("a file for the suite on the Hub", [f.name for f in files] == ["on-the-hub.yaml"])
    entries = parse_eval_result_entries(yaml.safe_load(files[0].read_text()))
    check("an entry", entries[0].dataset_id == "tester/problems" and entries[0].task_id == "default")

    # checksums, on every branch, and the tag
    for revision in ["main", "v1", "checkpoint-10"]:
        local = snapshot_download("tester/peer", revision=revision)
        result = api.verify_repo_checksums("tester/peer", revision=revision)
        check(f"checksums at {revision}", not result.mismatches and result.checked_count > 5)
        names = {p.name for p in pathlib.Path(local).iterdir()}
        check(f"files at {revision}", "model.safetensors" in names and "optimizer.safetensors" not in names)

    # the model itself
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("tester/peer")
    tokenizer = AutoTokenizer.from_pretrained("tester/peer")
    turn = [{"role": "user", "content": "What is 3 plus 4?"}]
    inputs = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    check("it speaks", output.shape[1] > inputs["input_ids"].shape[1])

    # the traces, as datasets reads them
    card = DatasetCard.load("tester/peer-traces")
    check("licence of the traces", card.data.license == "mit")
    check("the server takes the data card", card.validate() is None)
    traces = load_dataset("tester/peer-traces", split="train")
    ours = [json.loads(line) for line in (work / "run/chosen/traces.jsonl").read_text().splitlines()]
    check("as many rows", len(traces) == len(ours))
    for theirs, own in zip(traces, ours):
        for key, value in own.items():
            check(f"{key} of a row: {theirs[key]!r} is not {value!r}", theirs[key] == value)
    result = api.verify_repo_checksums("tester/peer-traces", repo_type="dataset",
                                       local_dir=snapshot_download("tester/peer-traces", repo_type="dataset"))
    check("checksums of the traces", not result.mismatches)

    # once more: nothing to do, one commit each
    again = json.loads(distill("push", "run", "--json", cwd=work))
    check("nothing to do", all(one["num_commits"] == 0 for one in again))
    for repo, kind in [("tester/peer", "model"), ("tester/peer-traces", "dataset")]:
        check(f"one commit to {repo}", len(api.list_repo_commits(repo, repo_type=kind)) == 2)
    check("private", api.model_info("tester/peer").private)

server.stdin.close()
server.wait(10)
print(f"hub_card: {num_checks} checks")
