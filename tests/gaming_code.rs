//! Attempts to get a program graded correct without solving the problem, or to reach out of the sandbox: one attack a
//! test, and none may pass. An attack prints the right answer, 42, only where it has got what it was after, so a verdict
//! of correct would mean that it works. What stays on the machine after a run is in `code_sandbox.rs`.

// system calls are made by their x86-64 numbers
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::sync::OnceLock;

use distill::verify::Outcome;
use distill::verify::code::TestOutcome::{self, Error, Fail, Forbidden, Memory, Timeout};
use distill::verify::code::{CodeCase, CodeVerdict, Sandbox, grade};
use serde_json::{Value, json};

fn sandbox() -> &'static Sandbox {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    SANDBOX.get_or_init(|| match Sandbox::open() {
        Ok(sandbox) => sandbox,
        Err(error) => panic!("{error}; {:?}", error.hint()),
    })
}

fn graded(row: Value) -> CodeVerdict {
    let case = CodeCase::from_row(row.as_object().unwrap()).unwrap();
    grade(&case, sandbox()).unwrap()
}

/// The verdict on a program that should print 42 for `6 7`.
fn program(language: &str, source: &str) -> CodeVerdict {
    graded(json!({
        "prediction": format!("```{language}\n{source}\n```"),
        "tests": [{"input": "6 7\n", "output": "42\n"}],
        "timeout_s": 2,
        "memory_mb": 256,
    }))
}

fn assert_fails(verdict: &CodeVerdict, allowed: &[TestOutcome]) {
    assert_ne!(verdict.verdict.outcome, Outcome::Correct, "{verdict:?}");
    assert_eq!(verdict.passed, 0, "{verdict:?}");
    assert!(allowed.contains(&verdict.outcomes[0]), "{verdict:?}");
}

/// `name: outcome, source`: Python.
macro_rules! attacks {
    ($($name:ident: $($outcome:ident)|+, $source:literal;)*) => {$(
        #[test]
        fn $name() {
            assert_fails(&program("python", $source), &[$($outcome),+]);
        }
    )*};
}

#[test]
fn the_honest_program_passes() {
    let honest = "a, b = map(int, input().split())\nprint(a * b)";
    let verdict = program("python", honest);
    assert_eq!(verdict.verdict.outcome, Outcome::Correct, "{verdict:?}");
    assert_eq!(verdict.outcomes, [TestOutcome::Pass]);
}

// ---- the answer without the work

attacks! {
    exit_early: Fail, "import sys\nsys.exit(0)";
    exit_early_at_once: Fail, "import os\nos._exit(0)";
    exit_by_exception: Fail, "raise SystemExit";
    exit_after_a_part: Fail, "import os\nos.write(1, b'4')\nos._exit(0)";
    nothing_at_all: Fail, "pass";
    the_input_back: Fail, "print(input())";
    answer_then_junk: Fail, "print(42)\nprint('and more')";
    junk_then_answer: Fail, "print('The answer is')\nprint(42)";
    answer_and_another: Fail, "print(42, 43)";
    all_answers: Fail, "print(*range(1000), sep='\\n')";
    all_answers_in_a_line: Fail, "print(*range(1000))";
    answer_overwritten_by_backspace: Fail, "print('41\\b2')";
    answer_overwritten_by_return: Fail, "print('41\\r42')";
    answer_with_a_zero_byte: Fail, "print('42\\0')";
    answer_with_a_zero_width_space: Fail, "print('42\\u200b')";
    answer_in_other_digits: Fail, "print('\\uff14\\uff12')";
    answer_rounded: Fail, "print(42.0000000000000001e0, end='1')";
    answer_in_hexadecimal: Fail, "print('0x2a')";
    not_a_number: Fail, "print(float('nan'))";
    infinity: Fail, "print(float('inf'))";
    no_text: Fail, "import os\nos.write(1, b'\\xff\\xfe42')";
    answer_to_standard_error: Fail, "import sys\nprint(42, file=sys.stderr)";
    answer_to_a_file: Fail, "open('output.txt', 'w').write('42')\nopen('/tmp/stdout', 'w').write('42')";
    answer_to_the_input: Error, "import os\nos.write(0, b'42')";
    answer_to_other_descriptors: Error | Fail, "import os
for fd in range(2, 256):
    try: os.write(fd, b'42\\n')
    except OSError: pass";
    answer_after_a_crash: Error, "print(42)\nraise ValueError";
    answer_and_a_failing_exit_code: Error, "import os\nos.write(1, b'42')\nos._exit(3)";
    standard_output_replaced: Fail, "import sys
class Equal(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
sys.stdout = sys.__stdout__ = Equal('42')";
    standard_output_closed: Fail | Error, "import sys, os\nsys.stdout.close()\nos.close(1)";
    every_descriptor_closed: Fail | Error, "import os\nos.closerange(0, 256)\nprint(42)";
    bare_syntax_error: Error, "print(42";
    zero_byte_in_the_source: Error, "print(42)\n\0";
}

// ---- the grader in the same process

attacks! {
    comparison_patched: Fail, "import builtins, json, operator
builtins.str = builtins.all = builtins.len = lambda *a, **k: True
json.loads = json.dumps = lambda *a, **k: '42'
operator.eq = lambda a, b: True";
    equality_of_text_patched_in_memory: Fail | Error, "import ctypes
class Slots(ctypes.Structure): _fields_ = [('head', ctypes.c_char * 200)]
base = Slots.from_address(id(str))
ctypes.memmove(id(str) + 200, id(int) + 200, 16)
print('42' == 'x' and 42)";
    modules_replaced: Fail, "import sys
for name in list(sys.modules):
    if name not in ('sys', 'builtins'): sys.modules[name] = sys.modules['sys']";
    expected_output_in_objects: Fail, "import gc
for thing in gc.get_objects():
    if isinstance(thing, dict):
        for key in ('output', 'expected', 'tests'):
            if key in thing: print(thing[key])";
    expected_output_in_frames: Fail, "import sys
frame = sys._getframe()
while frame:
    for name, value in list(frame.f_locals.items()) + list(frame.f_globals.items()):
        if isinstance(value, (str, bytes)) and str(value).strip() in ('42', \"b'42'\"): print(42)
    frame = frame.f_back";
    runner_patched_through_frames: Fail | Error, "import sys
frame = sys._getframe()
while frame:
    for name in list(frame.f_globals):
        if name in ('finish', 'send', 'contents', 'supervise', 'encode'):
            frame.f_globals[name] = lambda *a, **k: (0, False, 0, 0, 0)
    frame = frame.f_back";
    frame_of_the_reply: Fail | Error, "import os, struct
head = b'{\"code\": 0, \"late\": false, \"cpu_s\": 0, \"wall_s\": 0, \"peak_bytes\": 0, \"stderr\": \"\", \"clean\": true}'
frame = struct.pack('>I', len(head)) + head + struct.pack('>I', 2) + b'42'
for fd in range(2, 256):
    try: os.write(fd, frame)
    except OSError: pass";
    channel_read: Fail, "import os
for fd in range(3, 256):
    try: print(os.read(fd, 100))
    except OSError: pass";
    tests_read_from_disk: Fail, "import os
for place, folders, files in os.walk('/'):
    folders[:] = [f for f in folders if f not in ('usr', 'lib', 'lib64', 'root')]
    for name in files:
        if 'output' in name or 'expected' in name or 'test' in name or name.endswith('.jsonl'): print(42)";
    only_the_input_lies_there: Fail, "import os\nprint(42 if os.listdir('/tmp') != ['.input'] else '')";
    interpreter_exit_hooked: Fail, "import atexit, os, threading
atexit.register(lambda: os._exit(0))
threading._shutdown = lambda: os._exit(0)";
    run_as_the_runner: Fail | Error, "import os, sys
for fd in range(3, 10):
    try: exec(os.pread(fd, 1 << 20, 0))
    except OSError: pass";
}

// ---- more than its share

attacks! {
    busy_loop: Timeout, "while True: pass";
    busy_loop_in_one_instruction: Timeout, "10 ** 10 ** 10";
    busy_loop_in_a_regular_expression: Timeout, "import re\nre.match('(a+)+$', 'a' * 64 + 'b')";
    busy_threads: Timeout, "import threading
def spin():
    while True: pass
for _ in range(4): threading.Thread(target=spin).start()";
    sleep_for_ever: Timeout, "import time\ntime.sleep(1e6)";
    wait_for_ever: Timeout, "import threading\nthreading.Event().wait()";
    wait_in_the_kernel: Timeout, "import os\nr, w = os.pipe()\nos.read(r, 1)";
    exit_hook_for_ever: Timeout, "import atexit, time\natexit.register(time.sleep, 1e6)\nprint(42)";
    signals_ignored: Timeout, "import signal
for number in range(1, 64):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))
while True: pass";
    exceptions_swallowed: Timeout, "while True:
    try:
        while True: pass
    except BaseException: pass";
    memory_bomb: Memory, "x = []\nwhile True: x.append(bytearray(1 << 20))";
    memory_bomb_at_once: Memory, "x = bytearray(1 << 40)";
    memory_bomb_mapped: Memory | Error, "import mmap
x = []
while True:
    x.append(mmap.mmap(-1, 1 << 26))
    x[-1].write(bytes(1 << 26))";
    memory_bomb_caught: Memory | Error, "x = []
try:
    while True: x.append(bytearray(1 << 20))
except MemoryError:
    x.pop()
    print(42)";
    output_bomb: Error, "while True: print('x' * 10000)";
    output_bomb_by_descriptor: Error, "import os\nwhile True: os.write(1, b'x' * 65536)";
    error_bomb: Error, "import os\nwhile True: os.write(2, b'x' * 65536)";
    disk_bomb: Error, "i = 0
while True:
    open(f'f{i}', 'wb').write(bytes(8 << 20))
    i += 1";
    file_bomb: Error, "i = 0
while True:
    open(f'f{i}', 'w').close()
    i += 1";
    sparse_file: Error, "import os\nf = open('f', 'wb')\nos.truncate('f', 1 << 40)\nprint(42)";
    deep_directories: Error, "import os
while True:
    os.mkdir('d')
    os.chdir('d')";
    descriptor_bomb: Error, "import os\nwhile True: os.dup(0)";
    thread_bomb: Error | Memory, "import threading, time
threading.stack_size(32768)
while True: threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()";
    endless_recursion: Error | Memory, "def f(n): return f(n + 1) + 1\nf(0)";
    recursion_through_the_c_stack: Error | Memory | Timeout, "import sys
sys.setrecursionlimit(10 ** 9)
class A:
    def __getattr__(self, name): return getattr(self, name + 'x')
A().x";
    limits_raised: Memory | Error, "import resource
for what in range(16):
    try: resource.setrlimit(what, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError): pass
x = []
while True: x.append(bytearray(1 << 20))";
    source_that_compiles_for_ever: Timeout | Error | Memory, "x = ((((1 << 1000000) << 1000000) << 1000000) << 1000000) ** 100000";
    huge_number_as_text: Error, "print(10 ** 100000)";
    input_that_never_comes: Error, "input()\ninput()";
}

// ---- other processes

attacks! {
    fork_bomb: Forbidden, "import os\nwhile True: os.fork()";
    daemon_by_double_fork: Forbidden, "import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(1000)
print(42)";
    another_program: Forbidden, "import subprocess\nprint(subprocess.run(['/bin/echo', '42'], capture_output=True).stdout)";
    shell: Forbidden, "import os\nprint(42 if os.system('true') == 0 else 0)";
    spawn: Forbidden, "import os, sys\nos.posix_spawn(sys.executable, ['python', '-c', 'print(42)'], {})";
    exec_in_place: Forbidden, "import os, sys\nos.execv(sys.executable, ['python', '-c', 'print(42)'])";
    worker_processes: Forbidden | Error, "import multiprocessing
multiprocessing.set_start_method('fork')
p = multiprocessing.Process(target=print, args=(42,))
p.start()
p.join()";
    kill_the_parent: Forbidden, "import os\nos.kill(os.getppid(), 9)\nprint(42)";
    kill_everything: Forbidden, "import os\nos.kill(-1, 9)\nprint(42)";
    kill_process_one: Forbidden, "import os\nos.kill(1, 9)\nprint(42)";
    stop_the_parent: Error | Fail, "import ctypes, os
p = os.getppid()
print(42 if ctypes.CDLL(None).syscall(234, p, p, 19) == 0 else '')";
    signal_by_file_owner: Forbidden, "import fcntl, os\nfcntl.fcntl(0, 10, 19)\nfcntl.fcntl(0, 8, os.getppid())\nprint(42)";
    limits_of_the_parent: Forbidden, "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))\nprint(42)";
    processors_of_the_parent: Forbidden, "import os\nos.sched_setaffinity(os.getppid(), {0})\nprint(42)";
    memory_of_the_parent: Forbidden, "import ctypes, os\nctypes.CDLL(None).process_vm_readv(os.getppid(), None, 0, None, 0, 0)\nprint(42)";
    trace_the_parent: Forbidden, "import ctypes, os\nctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)\nprint(42)";
    be_traced: Forbidden, "import ctypes\nctypes.CDLL(None).ptrace(0, 0, 0, 0)\nprint(42)";
    descriptor_of_the_parent: Forbidden, "import os\nos.pidfd_open(os.getppid())\nprint(42)";
    more_processes_are_seen: Fail, "import ctypes, os
known = [1, os.getpid(), os.getppid()]
found = [pid for pid in range(1, 3000) if ctypes.CDLL(None).getpgid(pid) > 0 and pid not in known]
print(42 if found else '')";
}
