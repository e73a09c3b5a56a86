"""Pulls of 2 GB over loopback: distill against huggingface_hub, in turns, from the stand-in Hub.

Usage: PYTHON .bench/hub_pull.py [lfs|xet] [gigabytes] [rounds] [path to distill] [path to the stand-in]
Four files of random bytes, an empty cache each time; also a second call of distill, which hashes everything, and the peak
memory of both.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

KIND, GIGABYTES, ROUNDS, DISTILL, STAND_IN = (
    sys.argv[1:] + ["lfs", "2", "3", "target/release/distill", "target/release/examples/hub_server"][len(sys.argv) - 1:])
FILES = [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
UPLOAD = "import huggingface_hub as h, sys; a = h.HfApi(); a.create_repo('org/m'); a.upload_folder(repo_id='org/m', folder_path=sys.argv[1])"
SNAPSHOT = "import huggingface_hub as h; h.snapshot_download('org/m')"

base = pathlib.Path(tempfile.mkdtemp(dir="."))
server = subprocess.Popen([STAND_IN, "0", str(base)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
env = {**os.environ, "HF_ENDPOINT": server.stdout.readline().strip(), "HF_TOKEN": "hf_MarkerWriteTokenThatMustNotLeak",
       "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(base / "home")}
env.pop("HF_HUB_OFFLINE", None)


def timed(who, command):
    """Runs it; seconds and the largest memory it had."""
    start, peak = time.time(), 0
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            peak = max([peak] + [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")])
        except (FileNotFoundError, ProcessLookupError):
            pass
        time.sleep(0.02)
    seconds = time.time() - start
    if process.returncode:
        raise SystemExit(f"{who}: {process.stderr.read().decode()}")
    print(f"{KIND} {who:16} {seconds:6.2f} s {float(GIGABYTES) * 1e3 / seconds:6.0f} MB/s, peak {peak / 1024:.0f} MiB", flush=True)


try:
    model = base / "model"
    model.mkdir()
    for name in FILES:
        with open(model / name, "wb") as file:
            for _ in range(int(float(GIGABYTES) * 1e9 / len(FILES)) >> 20):
                file.write(os.urandom(1 << 20))
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {name: name for name in FILES}}))
    (model / "config.json").write_text("{}")
    plain = {} if KIND == "xet" else {"HF_HUB_DISABLE_XET": "1"}
    subprocess.run([sys.executable, "-c", UPLOAD, str(model)], env={**env, **plain}, check=True)
    shutil.rmtree(model)
    for i in range(int(ROUNDS)):
        for who, command in (("huggingface_hub", [sys.executable, "-c", SNAPSHOT]), ("distill", [DISTILL, "pull", "org/m"])):
            timed(who, command)
            if who == "distill":
                timed("distill, cached", command)
            shutil.rmtree(base / "home")
finally:
    server.stdin.close()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        server.kill()
    shutil.rmtree(base, ignore_errors=True)
