//! What honest programs get: right, wrong and broken ones, in every shape of tests, with the idioms that contest programs
//! use. Attacks are in `gaming_code.rs`.

#![cfg(target_os = "linux")]

use std::sync::OnceLock;

use distill::verify::Outcome::{self, Correct, Unparsable, Wrong};
use distill::verify::code::TestOutcome::{self, Error, Fail, Pass, Timeout};
use distill::verify::code::{CodeCase, CodeVerdict, Sandbox, grade};
use serde_json::{Value, json};

fn graded(row: &Value) -> CodeVerdict {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    let sandbox = SANDBOX.get_or_init(|| match Sandbox::open() {
        Ok(sandbox) => sandbox,
        Err(error) => panic!("{error}; {:?}", error.hint()),
    });
    let case = CodeCase::from_row(row.as_object().unwrap()).unwrap();
    grade(&case, sandbox).unwrap()
}

fn fenced(source: &str) -> String {
    format!("Here it is.\n```python\n{source}\n```\n")
}

fn check(row: Value, outcome: Outcome, outcomes: &[TestOutcome]) {
    let verdict = graded(&row);
    assert_eq!(verdict.verdict.outcome, outcome, "{row} {verdict:?}");
    assert_eq!(verdict.outcomes, outcomes, "{row} {verdict:?}");
    let passed = outcomes.iter().filter(|o| **o == Pass).count();
    assert_eq!((verdict.passed, verdict.total), (passed, outcomes.len()));
}

#[test]
fn idioms_of_contest_programs() {
    for source in [
        "print(sum(map(int, input().split())))",
        "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
        "import sys\ninput = sys.stdin.readline\nprint(sum(map(int, input().split())))",
        "import sys\nprint(sum(map(int, sys.stdin.buffer.readline().split())))",
        "print(sum(map(int, open(0).read().split())))",
        "print(sum(map(int, open('/dev/stdin').read().split())))",
        "import os\nprint(sum(map(int, os.read(0, os.fstat(0).st_size).split())))",
        "import sys\nsys.stdout.write(str(sum(map(int, input().split()))))",
        "import sys\nsys.stdout.buffer.write(str(sum(map(int, input().split()))).encode())",
        // names that nobody imported
        "print(reduce(lambda a, b: a + b, map(int, input().split())))",
        "q = deque(map(int, input().split()))\nprint(q[0] + q[1])",
        "a, b = map(int, input().split())\nprint(int(pow(a, 1, 10 ** 9)) + b * gcd(1, 1))",
        "from typing import List\ndef f(x: List[int]) -> Optional[int]: return sum(x)\nprint(f(list(map(int, input().split()))))",
        // the program's end
        "def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()",
        "import sys\nprint(sum(map(int, input().split())))\nsys.exit()",
        "print(sum(map(int, input().split())))\nexit(0)",
        "print(sum(map(int, input().split())))\nquit()",
        "print(sum(map(int, input().split())))\nraise SystemExit(1)",
        "import threading\ndef main(): print(sum(map(int, input().split())))\nthreading.Thread(target=main).start()",
        "import threading, sys\nthreading.stack_size(128 << 20)\nsys.setrecursionlimit(10 ** 6)\n\
         def main(): print(sum(map(int, input().split())))\nt = threading.Thread(target=main)\nt.start()\nt.join()",
        "import atexit, io, os, sys\nout = io.StringIO()\natexit.register(lambda: os.write(1, out.getvalue().encode()))\n\
         print(sum(map(int, input().split())), file=out)",
        "import resource\nresource.setrlimit(resource.RLIMIT_STACK, (1 << 24, 1 << 24))\nprint(sum(map(int, input().split())))",
        // deep recursion; through the C stack newer interpreters allow little
        "def f(n): return 0 if n == 0 else f(n - 1)\nprint(sum(map(int, input().split())) + f(40000))",
        "from functools import lru_cache\n@lru_cache(None)\ndef f(n): return 0 if n == 0 else f(n - 1)\n\
         print(sum(map(int, input().split())) + f(2000))",
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    y: int\nprint(P(3, 0).x + 4)",
        "import asyncio\nasync def main(): print(sum(map(int, input().split())))\nasyncio.run(main())",
        "open('x', 'w').write(input())\nprint(sum(map(int, open('x').read().split())))",
        "import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x')\nprint(sum(map(int, input().split())))",
    ] {
        let row =
            json!({"prediction": fenced(source), "tests": [{"input": "3 4\n", "output": "7\n"}]});
        check(row, Correct, &[Pass]);
    }
}

#[test]
fn fractions_and_reasons() {
    let tests = json!([
        {"input": "1", "output": "1"}, {"input": "2", "output": "4"}, {"input": "3", "output": "9"},
    ]);
    let row = |source: &str| json!({"prediction": fenced(source), "tests": tests, "timeout_s": 1});
    check(
        row("print(int(input()) ** 2)"),
        Correct,
        &[Pass, Pass, Pass],
    );
    check(row("print(int(input()) * 2)"), Wrong, &[Fail, Pass, Fail]);
    check(
        row("print(1 // (int(input()) - 2) ** 2)"),
        Wrong,
        &[Pass, Error, Fail],
    );
    check(
        row("n = int(input())\nwhile n == 2: pass\nprint(n * n)"),
        Wrong,
        &[Pass, Timeout, Pass],
    );
    check(row("print("), Wrong, &[Error, Error, Error]);
    let verdict = graded(&row("print(int('x'))"));
    assert!(verdict.verdict.reason.contains("ValueError"), "{verdict:?}");
    assert_eq!(
        verdict.verdict.extracted.as_deref(),
        Some("print(int('x'))")
    );
}

#[test]
fn what_is_no_program() {
    let row = |prediction: &str| json!({"prediction": prediction, "tests": [{"input": "", "output": "1"}]});
    for prediction in [
        "",
        "<think>```python\nprint(1)\n```",
        "```python\nprint(1)",
        "```rust\nfn main() {}\n```",
        "```python\n```",
        "I cannot solve this problem.",
    ] {
        check(row(prediction), Unparsable, &[Error]);
    }
    check(
        row("<think>```python\nprint(2)\n```</think>```\nprint(1)\n```"),
        Correct,
        &[Pass],
    );
    let mut other = row("```\nprint 1\n```");
    other["language"] = json!("ruby");
    check(other, Unparsable, &[Error]);
}

#[test]
fn calls() {
    let row = |source: &str, tests: Value| json!({"prediction": fenced(source), "fn_name": "f", "tests": tests});
    let twice = json!([{"args": [[1, 2]], "expected": [2, 4]}, {"args": [[]], "expected": []}]);
    for source in [
        "class Solution:\n    def f(self, x: List[int]) -> List[int]: return [2 * v for v in x]",
        "def f(x): return tuple(2 * v for v in x)",
        "def f(x):\n    print('debugging')\n    return [2.0 * v for v in x]",
        "class Solution:\n    @staticmethod\n    def f(x): return [2 * v for v in x]",
        "def g(x): return 2 * x\ndef f(x): return list(map(g, x))\nif __name__ == '__main__':\n    print(f([1]))",
    ] {
        check(row(source, twice.clone()), Correct, &[Pass, Pass]);
    }
    check(
        row("def f(x): return x", twice.clone()),
        Wrong,
        &[Fail, Pass],
    );
    check(row("def f(x): return x[0]", twice), Wrong, &[Fail, Error]);
    let named =
        json!([{"args": {"b": 2, "a": 1}, "expected": {"a": 1, "b": [2, null, true, "x", 0.5]}}]);
    check(
        row(
            "def f(a, b): return {'a': a, 'b': [b, None, True, 'x', 0.5]}",
            named,
        ),
        Correct,
        &[Pass],
    );
    let large = json!([{"args": [9007199254740993_i64], "expected": 9007199254740994_i64}]);
    check(row("def f(x): return x + 1", large), Correct, &[Pass]);
    let lines =
        json!([{"input": "[1, 2]\n\"a\"", "output": "[1, \"a\"]", "testtype": "functional"}]);
    check(
        row("def f(x, y): return [x[0], y]", lines),
        Correct,
        &[Pass],
    );
    let apps = json!({"fn_name": "f", "inputs": [[3]], "outputs": [[9]]});
    check(row("def f(x): return x * x", apps), Correct, &[Pass]);
}

#[test]
fn checkers() {
    let checker = "import sys
text, expected, actual = (open(path).read() for path in sys.argv[1:4])
a, b = map(int, actual.split())
print(1 if a + b == int(text) else 0)";
    let silent = "import sys
actual = open(sys.argv[3]).read().split()
sys.exit(0 if len(actual) == 2 and sum(map(int, actual)) == 10 else 1)";
    let function =
        "def check(input, expected, actual): return sum(map(int, actual.split())) == int(input)";
    for checker in [checker, silent, function] {
        let row = |source: &str| {
            json!({
                "prediction": fenced(source),
                "tests": [{"input": "10", "output": "5 5"}],
                "checker": checker,
            })
        };
        check(row("print(3, 7)"), Correct, &[Pass]);
        check(row("print(3, 8)"), Wrong, &[Fail]);
        // the graded program cannot put anything in the checker's way
        let attack = "for name in ('json', 'sys', 'os', 'expected'):\n    open(name + '.py', 'w').write('print(1)')\nprint(3, 8)";
        check(row(attack), Wrong, &[Fail]);
    }
    // the first word decides, and a number only where it is alone: the last one may be the program's own
    for (says, accepted) in [
        ("wrong answer: expected 3, found 7", false),
        ("wrong 1", false),
        ("ok 0", true),
        ("OK: 3 lines", true),
        ("0.5", false),
        ("1.0", true),
        ("1 1", false),
    ] {
        let row = json!({
            "prediction": fenced("print(3, 7)"),
            "tests": [{"input": "10", "output": "5 5"}],
            "checker": format!("print({says:?})"),
        });
        assert_eq!(graded(&row).verdict.is_correct(), accepted, "{says}");
    }
    for (checker, reason) in [
        (
            "def is_ok(a, b, c): return True",
            "the checker neither says anything nor reads the output",
        ),
        ("def (", "the checker is no Python program"),
    ] {
        let row = json!({
            "prediction": fenced("print(3, 7)"),
            "tests": [{"input": "10", "output": "5 5"}],
            "checker": checker,
        });
        let verdict = graded(&row);
        assert!(verdict.not_gradable && !verdict.verdict.is_correct());
        assert_eq!(verdict.verdict.reason, reason);
    }
    let broken = json!({
        "prediction": fenced("print(3, 7)"),
        "tests": [{"input": "10", "output": "5 5"}],
        "checker": "raise ValueError('no')",
    });
    check(broken, Wrong, &[Error]);
}

#[test]
fn assertions() {
    let row = |source: &str, tests: Value| json!({"prediction": fenced(source), "tests": tests});
    let list = json!([
        "assert f((3, 4)) == (4, 3)",
        "assert set(f((1, 2))) == {1, 2}"
    ]);
    check(
        row("def f(x): return x[::-1]", list.clone()),
        Correct,
        &[Pass, Pass],
    );
    check(
        row("def f(x): return x", list.clone()),
        Wrong,
        &[Fail, Pass],
    );
    check(
        row("def f(x): return list(x[::-1])", list),
        Wrong,
        &[Fail, Pass],
    );
    let candidate = json!({"assertions": "def check(candidate):\n    assert candidate(2.0, n=3) == 8.0\n    \
         assert abs(candidate(2, n=0.5) - 1.414) < 1e-3\n\ncheck(power)"});
    check(
        row("def power(x, n): return x ** n", candidate.clone()),
        Correct,
        &[Pass],
    );
    check(
        row("def power(x, n): return x * n", candidate.clone()),
        Wrong,
        &[Fail],
    );
    let method = json!({"functional": "def check(candidate):\n    assert candidate(nums = [3, 1], k = 2) == 5\n\ncheck(Solution().f)"});
    check(
        row(
            "class Solution:\n    def f(self, nums, k): return sum(nums) + k // 2",
            method,
        ),
        Correct,
        &[Pass],
    );
    // no call, no verdict: HumanEval's `test` without its last line
    let uncalled = json!({"assertions": "def check(candidate):\n    assert candidate(2, 3) == 8"});
    check(
        row("def power(x, n): return x ** n", uncalled),
        Wrong,
        &[Error],
    );
    // nor without an assertion, nor by a value that is nothing
    check(row("def f(): return 0", json!(["f()"])), Wrong, &[Error]);
    check(
        row("def f(): return object()", json!(["assert f()"])),
        Wrong,
        &[Fail],
    );
    // where the row says which function it is about, others are not the program's to give
    let helped = "def same(a, b): return True\ndef f(): return 0";
    for (entry, outcome) in [(json!("f"), Wrong), (json!(null), Correct)] {
        let mut row = row(helped, json!(["assert same(f(), 3)"]));
        row["entry_point"] = entry;
        assert_eq!(graded(&row).verdict.outcome, outcome);
    }
    // names of `typing` are the test's
    let counters =
        json!(["from collections import Counter\nassert Counter(f('ab')) == Counter('ba')"]);
    let unimported = json!(["assert Counter(f('ab')) == Counter('ba')"]);
    for (source, tests, passes) in [
        ("def f(x): return x", &counters, true),
        (
            "def f(x): return 'a'\ndef Counter(x): return 0",
            &counters,
            false,
        ),
        (
            "def f(x): return 'a'\ndef Counter(x): return 0",
            &unimported,
            false,
        ),
        (
            "def f(x): return 'a'\nclass Counter:\n    def __init__(self, x): pass\n    def __eq__(self, o): return True",
            &unimported,
            false,
        ),
    ] {
        let verdict = graded(&row(source, tests.clone()));
        assert_eq!(
            verdict.verdict.is_correct(),
            passes,
            "{source}: {verdict:?}"
        );
    }
    // numbers longer than Python prints by default
    check(
        row(
            "def f(n): return 10 ** n",
            json!(["assert f(6000) % 7 == 1 and len(str(f(6000))) == 6001"]),
        ),
        Correct,
        &[Pass],
    );
    for attack in [
        "class Any:\n    def __eq__(self, o): return True\n    __sub__ = __lt__ = __abs__ = lambda *a: 0\ndef power(x, n): return Any()",
        "def abs(x): return 0\ndef power(x, n): return 8.0",
        "import builtins\nbuiltins.abs = lambda x: 0\ndef power(x, n): return 8.0",
        "def check(candidate): pass\ndef power(x, n): return 0",
        "AssertionError = None\ndef power(x, n): return 0",
        "import os\ndef power(x, n): os._exit(0)",
        "import os\nos.write(1, b'{\"passed\": true}')\nos._exit(0)",
        "import os\nos.write(3, b'{\"passed\": true}')\nos._exit(0)",
        "import sys\ndef power(x, n): sys.exit(0)",
    ] {
        let verdict = graded(&row(attack, candidate.clone()));
        assert_eq!(verdict.passed, 0, "{attack}: {verdict:?}");
    }
}

#[test]
fn compiled_programs() {
    let row = |source: &str| {
        json!({
            "prediction": format!("```cpp\n{source}\n```"),
            "tests": [{"input": "3 4\n", "output": "7\n"}, {"input": "1 1\n", "output": "2\n"}],
        })
    };
    let sum = "#include <bits/stdc++.h>\nusing namespace std;\nint main() { int a, b; cin >> a >> b; cout << a + b << endl; }";
    check(row(sum), Correct, &[Pass, Pass]);
    check(
        row(&sum.replace("a + b", "a * b + 0 * b")),
        Wrong,
        &[Fail, Fail],
    );
    check(row("int main() { return x; }"), Wrong, &[Error, Error]);
    let deep = "#include <cstdio>\nint f(int n) { return n == 0 ? 0 : f(n - 1) + (n & 1) - (n & 1); }\n\
         int main() { int a, b; scanf(\"%d%d\", &a, &b); printf(\"%d\\n\", a + b + f(1000000)); }";
    check(row(deep), Correct, &[Pass, Pass]);
    let mut calls = row("int f(int x) { return x; }");
    calls["fn_name"] = json!("f");
    calls["tests"] = json!([{"args": [1], "expected": 1}]);
    check(calls, Unparsable, &[Error]);
}

#[test]
fn verdicts_are_read_by_other_programs() {
    let verdict = graded(
        &json!({"prediction": "```python\nprint(1)\n```", "tests": [{"input": "", "output": "1"}]}),
    );
    let json = serde_json::to_value(&verdict).unwrap();
    assert_eq!(json["verdict"], "correct");
    assert_eq!(json["outcomes"], json!(["pass"]));
    assert_eq!((&json["passed"], &json["total"]), (&json!(1), &json!(1)));
}
