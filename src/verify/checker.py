# Runs a checker program, in a box that model code never enters. Standard input: {"checker", "input", "expected",
# "actual"}; standard output: `accepted`, `rejected`, or why there is no verdict. The rules are in code_checker.rs.

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
    code = compile(data["checker"], "checker.py", "exec")
except (SyntaxError, ValueError):
    print("no program")
    sys.exit()
try:
    with contextlib.redirect_stdout(said):
        exec(code, names)
except SystemExit as exit:
    status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
words = said.getvalue().lower().split()
function = names.get("check")
if status:
    accepted = False
elif words:
    accepted = words[0].strip(".!:,") in WORDS
    if len(words) == 1:
        with contextlib.suppress(ValueError):
            accepted = float(words[0]) >= 1
elif status is None and callable(function):
    accepted = function(*texts)
    accepted = accepted is True or (isinstance(accepted, (int, float)) and accepted >= 1)
elif status is None and "argv" not in data["checker"]:
    accepted = None
else:
    accepted = True
print("silent" if accepted is None else "accepted" if accepted else "rejected")
