"""SIGKILL at random moments of pulls and pushes, over Xet and over LFS, against the stand-in Hub: after each the cache holds
nothing that is not what its name says and the server no commit but the first and ours; the next call completes, and its
result is the files byte for byte.

Usage: PYTHON tests/peers/hub_kill.py [kills of each kind, 10] [path to distill] [path to the stand-in] [seed]
Needs no other program. Prints how many kills met a running call, and in which state it was.
"""

import collections
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

KILLS, DISTILL, STAND_IN, SEED = (sys.argv[1:] + ["10", "target/release/distill", "target/release/examples/hub_server", "1"][len(sys.argv) - 1:])
DISTILL, KILLS = str(pathlib.Path(DISTILL).resolve()), int(KILLS)
TOKEN = "hf_MarkerWriteTokenThatMustNotLeak"
DICE = random.Random(int(SEED))
FILES = {
    "config.json": b"{}",
    "tokenizer.json": DICE.randbytes(150_000).hex().encode(),
    "README.md": b"---\nlicense: mit\n---\n\n# m\n",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {f"w{i}": f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)}}).encode(),
    **{f"model-0000{i}-of-00004.safetensors": DICE.randbytes(12_000_000) for i in range(1, 5)},
}


def check(what, ok):
    if not ok:
        raise SystemExit(f"hub_kill: FAILED: {what}")


class Site:
    """A server, and what calls it."""

    def __init__(self, base, is_xet):
        self.base, self.home = base, base / "home"
        self.server = subprocess.Popen([STAND_IN, "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = self.server.stdout.readline().strip()
        self.env = {**os.environ, "HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HOME": str(self.home)}
        self.env.pop("HF_HUB_OFFLINE", None)
        if not is_xet:
            self.env["HF_HUB_DISABLE_XET"] = "1"

    def start(self, *args):
        return subprocess.Popen([DISTILL, *args], env=self.env, cwd=self.base, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def whole(self, *args):
        """A call that must work; its output and its seconds."""
        begun, call = time.time(), self.start(*args)
        out, err = call.communicate()
        check(f"{args} goes on and works: {err}", call.returncode == 0)
        check("no token is told", TOKEN not in out + err)
        return out, time.time() - begun

    def killed(self, after, *args):
        """Whether a call still ran after so many seconds; it is killed then."""
        call = self.start(*args)
        try:
            call.wait(after)
        except subprocess.TimeoutExpired:
            call.send_signal(signal.SIGKILL)
        out, err = call.communicate()
        check("no token is told", TOKEN not in out + err)
        if call.returncode != -signal.SIGKILL:
            check(f"{args} works where it is not killed: {err}", call.returncode == 0)
        return call.returncode == -signal.SIGKILL

    def get(self, path):
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {TOKEN}"})
        try:
            return json.load(urllib.request.urlopen(request))
        except urllib.error.HTTPError as error:
            check(f"{path}: {error}", error.code == 404)

    def close(self):
        self.server.stdin.close()
        self.server.wait(10)


def cache_state(cache):
    """Checks that no name lies; says how far the pull had come."""
    blobs = list((cache / "blobs").glob("*")) if cache.exists() else []
    for blob in blobs:
        content = blob.read_bytes()
        if len(blob.name) == 64:
            check(f"{blob} is whole", hashlib.sha256(content).hexdigest() == blob.name)
        elif len(blob.name) == 40:
            check(f"{blob} is whole", hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == blob.name)
        else:
            check(f"{blob} says that it is not whole", blob.name.endswith(".incomplete"))
    for path in cache.glob("snapshots/*/**/*"):
        check(f"{path} leads somewhere", path.exists())
    num_whole = sum(not blob.name.endswith(".incomplete") for blob in blobs)
    return "nothing" if not blobs else f"{num_whole} of {len(FILES) - 1} files whole"


def pulls(base, is_xet):
    site = Site(base, is_xet)
    folder = base / "model"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    site.whole("push", "model", "--repo", "tester/m")
    cache = site.home / "hub/models--tester--m"
    _, seconds = site.whole("pull", "tester/m")
    states, num_met = collections.Counter(), 0
    for _ in range(KILLS):
        if DICE.random() < 0.5:
            shutil.rmtree(site.home, ignore_errors=True)  # an early kill leaves none
        is_met = site.killed(DICE.random() * 1.1 * seconds, "pull", "tester/m")
        num_met += is_met
        states[cache_state(cache)] += is_met
        if DICE.random() < 0.3:
            continue  # killed more than once in a row
        out, _ = site.whole("pull", "tester/m")
        cache_state(cache)
        for name, content in FILES.items():
            if name != "README.md":
                check(f"{name} is what was pushed", (pathlib.Path(out.strip()) / name).read_bytes() == content)
        check("nothing is left over", not list(cache.glob("blobs/*.incomplete")))
    site.close()
    return num_met, states


def pushes(base, is_xet):
    site = Site(base, is_xet)
    folder = base / "model"
    folder.mkdir()
    states, num_met, seconds = collections.Counter(), 0, None
    for i in range(KILLS + 1):
        # other content each time: what the store has is not sent again
        for name, content in FILES.items():
            is_weights = name.endswith(".safetensors")
            (folder / name).write_bytes(DICE.randbytes(len(content)) if is_weights else content)
        repo = f"tester/m{i}"
        args = ("push", "model", "--repo", repo)
        if seconds is not None:
            is_met = site.killed(DICE.random() * 1.1 * seconds, *args)
            num_met += is_met
            commits = site.get(f"/api/models/{repo}/commits/main")
            state = "no repository" if commits is None else f"{len(commits) - 1} commits"
            states[state] += is_met
        _, taken = site.whole(*args)
        seconds = seconds or taken
        commits = site.get(f"/api/models/{repo}/commits/main")
        check(f"{len(commits) - 1} commits, and it takes one", len(commits) == 2)
        listed = {e["path"]: e for e in site.get(f"/api/models/{repo}/tree/main?recursive=true")}
        listed.pop(".gitattributes")
        check(f"all files are there: {sorted(listed)}", set(listed) == set(FILES))
        for name, entry in listed.items():
            content = (folder / name).read_bytes()
            check(f"{name} has its size", entry["size"] == len(content))
            oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            sha256 = entry.get("lfs", {}).get("oid")
            check(f"{name} has its hash", sha256 == hashlib.sha256(content).hexdigest() if sha256 else entry["oid"] == oid)
    site.close()
    return num_met, states


for what, kill in (("pull", pulls), ("push", pushes)):
    for is_xet in (True, False):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
            num_met, states = kill(pathlib.Path(base), is_xet)
        seen = ", ".join(f"{state}: {n}" for state, n in sorted(states.items()) if n)
        print(f"{what} over {'Xet' if is_xet else 'LFS'}: {KILLS} kills, {num_met} met a running call ({seen}); every next call completed", flush=True)
