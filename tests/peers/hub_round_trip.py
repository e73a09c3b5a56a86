"""Python's huggingface_hub through the stand-in Hub, and distill with it in both directions.

The stand-in is judged first: folders go up and come down byte for byte (small files, large ones over Xet), with pull
requests, tags, branches, refused commits, private repositories and unknown tokens answered as the real Hub answers them.
Then what huggingface_hub publishes is pulled by `distill`, into a cache that huggingface_hub goes on with, and back.

Usage: PYTHON tests/peers/hub_round_trip.py [path to distill [path to the stand-in]]
"""

import hashlib
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

BUILT = "target/release" if pathlib.Path("target/release/distill").exists() else "target/debug"
DISTILL = sys.argv[1] if len(sys.argv) > 1 else f"{BUILT}/distill"
STAND_IN = sys.argv[2] if len(sys.argv) > 2 else f"{BUILT}/examples/hub_server"
TOKEN, READ_TOKEN = "hf_MarkerWriteTokenThatMustNotLeak", "hf_MarkerReadTokenThatMustNotLeak"

home = tempfile.TemporaryDirectory()
server = subprocess.Popen([STAND_IN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
URL = server.stdout.readline().strip()
os.environ.update(HF_ENDPOINT=URL, HF_HOME=home.name, HF_TOKEN=TOKEN, HF_HUB_DISABLE_PROGRESS_BARS="1",
                  HF_HUB_DISABLE_TELEMETRY="1")
os.environ.pop("HF_HUB_OFFLINE", None)

import huggingface_hub  # noqa: E402  (reads the environment when it is imported)
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi  # noqa: E402
from huggingface_hub.errors import (EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError,  # noqa: E402
                                    RevisionNotFoundError)

api = HfApi()
num_checks = 0


def check(what, holds):
    global num_checks
    num_checks += 1
    if not holds:
        raise SystemExit(f"FAILED: {what}")


def refused(what, error, call):
    try:
        call()
    except error:
        return check(what, True)
    check(what, False)


def content(folder):
    files = (p for p in pathlib.Path(folder).rglob("*") if p.is_file() and ".cache" not in p.parts)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def distill(*args, env=None, ok=True):
    run = subprocess.run([DISTILL, *args], capture_output=True, text=True, env={**os.environ, **(env or {})})
    check(f"distill {' '.join(args)}: {run.stderr}", (run.returncode == 0) == ok)
    check("no token in what is printed", TOKEN not in run.stdout + run.stderr)
    return run


def model_folder(folder, seed):
    """A sharded model as far as files go, an adapter, and a folder below."""
    dice = random.Random(seed)
    folder = pathlib.Path(folder)
    (folder / "extra").mkdir(parents=True)
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for shard in shards:
        (folder / shard).write_bytes(dice.randbytes(12 << 20))
    (folder / "adapter_model.safetensors").write_bytes(dice.randbytes(70_000))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(zip("ab", shards))}))
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "extra/ümlaut and space.txt").write_text("ü")
    (folder / "empty.txt").write_text("")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- test\nmodel-index:\n- name: x\n  results: []\n---\n# x\n")
    return folder


with home, tempfile.TemporaryDirectory() as work:
    work = pathlib.Path(work)
    check("whoami", api.whoami()["name"] == "tester")

    # a model up and down
    model = model_folder(work / "model", 1)
    api.create_repo("org/model", private=True)
    refused("a second repository of that name", HfHubHTTPError, lambda: api.create_repo("org/model"))
    first = api.upload_folder(repo_id="org/model", folder_path=model)
    check("commit address", first.oid in first.commit_url)
    down = huggingface_hub.snapshot_download("org/model", local_dir=work / "down")
    check("folder comes back", content(model).items() <= content(down).items())
    cached = huggingface_hub.snapshot_download("org/model")
    check("folder comes into the cache", content(model).items() <= content(cached).items())
    for large in ("model-00001-of-00002.safetensors", "adapter_model.safetensors"):
        [info] = api.get_paths_info("org/model", [large])
        check("listed sha256", info.lfs.sha256 == content(model)[large])
        check("listed in the Xet store", bool(info.xet_hash))
    check("checksums", not api.verify_repo_checksums("org/model").mismatches)
    # without Xet: in one part, in several, and back
    api.create_repo("org/lfs")
    plain = {**os.environ, "HF_HUB_DISABLE_XET": "1"}
    code = "import huggingface_hub as h, sys; h.upload_folder(repo_id='org/lfs', folder_path=sys.argv[1])"
    code += "; print(h.snapshot_download('org/lfs', cache_dir=sys.argv[2]))"
    other_model = model_folder(work / "other_model", 2)
    up = subprocess.run([sys.executable, "-c", code, str(other_model), str(work / "lfs")],
                        capture_output=True, text=True, env=plain)
    check("over LFS: " + up.stderr, up.returncode == 0)
    check("over LFS, byte for byte", content(other_model).items() <= content(up.stdout.strip()).items())
    check("not in the Xet store", not api.get_paths_info("org/lfs", ["adapter_model.safetensors"])[0].xet_hash)
    # the same again makes no commit, other content makes one
    num_commits = len(api.list_repo_commits("org/model"))
    api.upload_folder(repo_id="org/model", folder_path=model)
    check("nothing new, no commit", len(api.list_repo_commits("org/model")) == num_commits)
    api.create_commit("org/model", commit_message="two", operations=[
        CommitOperationAdd("config.json", b'{"model_type": "qwen3"}'), CommitOperationDelete("extra/", is_folder=True)])
    check("two is on top", api.list_repo_commits("org/model")[0].title == "two")
    check("folder deleted", not any(f.startswith("extra") for f in api.list_repo_files("org/model")))
    check("an old revision stays", "empty.txt" in api.list_repo_files("org/model", revision=first.oid))
    refused("stale parent", HfHubHTTPError, lambda: api.create_commit(
        "org/model", commit_message="late", parent_commit=first.oid, operations=[CommitOperationAdd("a.txt", b"a")]))

    # references
    api.create_tag("org/model", tag="v1", revision=first.oid)
    refused("a second tag of that name", HfHubHTTPError, lambda: api.create_tag("org/model", tag="v1"))
    api.create_branch("org/model", branch="checkpoint/100")
    api.upload_file(repo_id="org/model", path_or_fileobj=b"step 100", path_in_repo="step.txt", revision="checkpoint/100")
    request = api.create_commit("org/model", commit_message="please", create_pr=True,
                                operations=[CommitOperationAdd("pr.txt", b"pr")])
    check("pull request", request.pr_num == 1 and request.pr_revision == "refs/pr/1")
    check("pull request's file", "pr.txt" in api.list_repo_files("org/model", revision="refs/pr/1"))
    check("not on main", "pr.txt" not in api.list_repo_files("org/model"))
    refs = api.list_repo_refs("org/model", include_pull_requests=True)
    check("branches", {r.name for r in refs.branches} == {"main", "checkpoint/100"})
    check("tags", [(r.name, r.target_commit) for r in refs.tags] == [("v1", first.oid)])
    check("pull requests", [r.ref for r in refs.pull_requests] == ["refs/pr/1"])

    # refusals
    refused("no such file", EntryNotFoundError, lambda: huggingface_hub.hf_hub_download("org/model", "none"))
    refused("no such revision", RevisionNotFoundError, lambda: api.model_info("org/model", revision="none"))
    refused("no such repository", RepositoryNotFoundError, lambda: api.model_info("org/none"))
    refused("private without a token", HfHubHTTPError, lambda: HfApi(token=False).model_info("org/model"))
    refused("a reader writes", HfHubHTTPError, lambda: HfApi(token=READ_TOKEN).upload_file(
        repo_id="org/model", path_or_fileobj=b"x", path_in_repo="x"))
    refused("bad card", ValueError, lambda: api.upload_file(
        repo_id="org/model", path_in_repo="README.md", path_or_fileobj=b"---\ntags: [a\n---\n"))

    # what huggingface_hub published, pulled by distill, into a cache that both go on with
    other = {"HF_HOME": str(work / "other")}
    pulled = json.loads(distill("pull", "org/model@v1", "--json", env=other).stdout)
    check("revision", pulled["revision"] == first.oid)
    wanted = {k: v for k, v in content(model).items() if k.startswith(("model", "config", "tokenizer"))}
    check("distill pulls what loads it", content(pulled["folder"]) == wanted)
    offline = subprocess.run(
        [sys.executable, "-c", "import huggingface_hub as h; print(h.hf_hub_download('org/model', 'config.json', revision='v1'))"],
        capture_output=True, text=True, env={**os.environ, **other, "HF_HUB_OFFLINE": "1"})
    check("huggingface_hub finds it offline: " + offline.stderr, offline.stdout.startswith(pulled["folder"]))
    distill("pull", "org/model@v1", env={**other, "HF_HUB_OFFLINE": "1"})
    # and the other way: what huggingface_hub has in its cache is not fetched again
    same = json.loads(distill("pull", "org/model@v1", "--json").stdout)
    check("the same cache", same["folder"] == huggingface_hub.snapshot_download("org/model", revision="v1"))
    report = api.verify_repo_checksums("org/model", revision=first.oid, cache_dir=work / "other/hub")
    check("checksums of distill's cache", not report.mismatches and report.checked_count >= len(wanted))

    distill("pull", "org/lfs", env=other)
    [snapshot] = (work / "other/hub/models--org--lfs/snapshots").iterdir()
    pulled = content(snapshot)
    check("distill pulls over LFS", len(pulled) == 5 and pulled.items() <= content(other_model).items())

    # a data set
    rows = work / "data/all"
    rows.mkdir(parents=True)
    for split in ("train", "test"):
        (rows / f"{split}-00000-of-00001.parquet").write_bytes(random.Random(split).randbytes(100_000))
    (work / "data/README.md").write_text(
        "---\nconfigs:\n- config_name: all\n  data_files:\n  - split: train\n    path: all/train-*\n"
        "  - split: test\n    path: all/test-*\n---\n")
    api.create_repo("org/data", repo_type="dataset")
    api.upload_folder(repo_id="org/data", folder_path=work / "data", repo_type="dataset")
    pulled = json.loads(distill("pull", "org/data", "--dataset", "--config", "all", "--json", env=other).stdout)
    check("the training split", [pathlib.Path(f).name for f in pulled["files"]] == ["train-00000-of-00001.parquet"])
    check("its bytes", pathlib.Path(pulled["files"][0]).read_bytes() == (rows / "train-00000-of-00001.parquet").read_bytes())

    api.delete_repo("org/model")
    refused("deleted", RepositoryNotFoundError, lambda: api.model_info("org/model"))
    server.stdin.close()
    server.wait(10)
print(f"hub_round_trip: {num_checks} checks with huggingface_hub {huggingface_hub.__version__}")
