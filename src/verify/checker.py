# Runs a checker program, in a box that model code never enters. Standard input: {"checker", "input", "expected",
# "actual"}; standard output: `accepted` or `rejected`. The rules are in code_checker.rs.

import contextlib
import io
import json
import os
import sys

WORDS = {"ok", "yes", "true", "accepted", "correct", "pass", "passed", "ac"}

data = json.load(sys.stdin)
texts = [data[name] for name in ("input", "expected", "actual")]
paths = ["/tmp/input.txt", "/tmp/expected.txt", "/tmp/actual.txt"]
for path, text in zip(paths, texts):
    with open(path, "w", newline="") as file:
        file.write(text)
sys.argv = ["checker.py", *paths]
names = {"__name__": "__main__"}
status = None
said = io.StringIO()
try:
    with contextlib.redirect_stdout(said):
        exec(compile(data["checker"], "checker.py", "exec"), names)
except SystemExit as exit:
    status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
words = said.getvalue().lower().split()
function = names.get("check")
if status:
    accepted = False
elif words:
    try:
        accepted = float(words[-1]) >= 1
    except ValueError:
        accepted = words[0].strip(".!:,") in WORDS
elif status is None and callable(function):
    accepted = function(*texts)
    accepted = accepted is True or (isinstance(accepted, (int, float)) and accepted >= 1)
else:
    accepted = True
print("accepted" if accepted else "rejected")
