"""What `distill push --adapter` leaves on a Hub, judged by PEFT: a LoRA run on a base of the same Hub loads with
`AutoPeftModelForCausalLM` and gives the logits of the merged model; and a reward model that was pushed scores in transformers.

Usage: PYTHON tests/peers/hub_adapter.py [path to distill [path to the stand-in]]
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

import torch  # noqa: E402
from huggingface_hub import ModelCard, get_safetensors_metadata  # noqa: E402
from peft import AutoPeftModelForCausalLM, PeftConfig  # noqa: E402
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402

# a build of torch with CUDA asks a driver that is not there whether it records a graph
if not torch.cuda.is_available():
    torch.cuda.is_current_stream_capturing = lambda: False

num_checks = 0
SMALL = """
device = "cpu"
[student.init]
architecture = "qwen2"
tokenizer = "builtin:arithmetic"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
"""
BASE = 'name = "base"' + SMALL + """
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
[[stage]]
name = "scorer"
kind = "reward-model"
model = "@cold"
pairs = "pairs.jsonl"
[stage.reward_model]
learning_rate = 1e-3
max_length = 256
epochs = 1
batch_size = 4
"""
LORA = """
name = "lora"
device = "cpu"
[student]
model = "tester/base"
method = "lora"
dtype = "f32"
[student.lora]
rank = 4
[[traces]]
source = "builtin:arithmetic"
num_problems = 40
[sft]
learning_rate = 1e-2
batch_size = 4
max_length = 512
max_steps = 6
[publish]
repo = "tester/merged"
license = "cc0-1.0"
language = ["en"]
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


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits.float()


with tempfile.TemporaryDirectory() as work:
    work = pathlib.Path(work)
    (work / "base.toml").write_text(BASE)
    pairs = [dict(prompt=f"What is {i} + 2?", chosen=str(i + 2), rejected="no") for i in range(8)]
    (work / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    distill("--recipe", "base.toml", "--run-dir", "base", "-q", cwd=work)
    distill("push", "base/cold/model", "--repo", "tester/base", "--license", "cc0-1.0", cwd=work)
    (work / "lora.toml").write_text(LORA)
    distill("--recipe", "lora.toml", "--run-dir", "run", "-q", cwd=work)
    distill("push", "run", "--repo", "tester/adapter", "--adapter", cwd=work)

    # the adapter, by its name alone
    config = PeftConfig.from_pretrained("tester/adapter")
    check("its base", config.base_model_name_or_path == "tester/base")
    card = ModelCard.load("tester/adapter").data
    check("library", card.library_name == "peft")
    check("base on the card", card.base_model == "tester/base" and card["base_model_relation"] == "adapter")
    adapted = AutoPeftModelForCausalLM.from_pretrained("tester/adapter", dtype=torch.float32).eval()
    merged = AutoModelForCausalLM.from_pretrained("tester/merged", dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained("tester/base", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained("tester/adapter")
    turn = [{"role": "user", "content": "What is 3 plus 4?"}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True, return_tensors="pt")["input_ids"]
    gap = (logits(adapted, ids) - logits(merged, ids)).abs().max().item()
    moved = (logits(base, ids) - logits(merged, ids)).abs().max().item()
    check(f"logits of the adapter and of the merged model differ by {gap}", gap < 1e-4)
    check(f"the adapter does something: {moved}", moved > 1e-2)
    check("adapter weights are listed", get_safetensors_metadata("tester/merged").parameter_count)

    # the reward model
    distill("push", "base", "--stage", "scorer", "--repo", "tester/rm", "--license", "cc0-1.0", cwd=work)
    check("task", ModelCard.load("tester/rm").data.pipeline_tag == "text-classification")
    scorer = AutoModelForSequenceClassification.from_pretrained("tester/rm", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained("tester/rm")
    turns = turn + [{"role": "assistant", "content": "7"}]
    inputs = tokenizer.apply_chat_template(turns, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        score = scorer(**inputs).logits
    check(f"one score: {score}", score.shape == (1, 1) and torch.isfinite(score).all())

server.stdin.close()
server.wait(10)
print(f"hub_adapter: {num_checks} checks")
