//! Attempts of programs to reach out of the sandbox, to the network, the file system and the kernel, and to be graded
//! correct for what a function only pretends to return: one attack a test, and none may pass. The others are in
//! `gaming_code.rs`.

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

/// The verdict on a function that should return 42, or what `expected` says, for 6 and 7.
fn function(source: &str, expected: Value) -> CodeVerdict {
    graded(json!({
        "prediction": format!("```python\n{source}\n```"),
        "fn_name": "answer",
        "tests": [{"args": [6, 7], "expected": expected}],
        "timeout_s": 2,
    }))
}

fn assert_fails(verdict: &CodeVerdict, allowed: &[TestOutcome]) {
    assert_ne!(verdict.verdict.outcome, Outcome::Correct, "{verdict:?}");
    assert_eq!(verdict.passed, 0, "{verdict:?}");
    assert!(allowed.contains(&verdict.outcomes[0]), "{verdict:?}");
}

/// `name: outcome, source`: Python programs.
macro_rules! attacks {
    ($($name:ident: $($outcome:ident)|+, $source:literal;)*) => {$(
        #[test]
        fn $name() {
            assert_fails(&program("python", $source), &[$($outcome),+]);
        }
    )*};
}

/// `name: outcome, expected, source`: Python functions.
macro_rules! pretences {
    ($($name:ident: $($outcome:ident)|+, $expected:tt, $source:literal;)*) => {$(
        #[test]
        fn $name() {
            assert_fails(&function($source, json!($expected)), &[$($outcome),+]);
        }
    )*};
}

/// `name: outcome, source`: C++ programs.
macro_rules! native {
    ($($name:ident: $($outcome:ident)|+, $source:literal;)*) => {$(
        #[test]
        fn $name() {
            assert!(sandbox().has_compiler(), "these tests need g++");
            assert_fails(&program("cpp", $source), &[$($outcome),+]);
        }
    )*};
}

// ---- the network

attacks! {
    socket_tcp: Forbidden, "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_STREAM)\nprint(42)";
    socket_udp: Forbidden, "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nprint(42)";
    socket_v6: Forbidden, "import socket\nsocket.socket(socket.AF_INET6, socket.SOCK_STREAM)\nprint(42)";
    socket_raw: Forbidden, "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_RAW, 1)\nprint(42)";
    socket_unix: Forbidden, "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('/run/docker.sock')\nprint(42)";
    socket_abstract: Forbidden, "import socket\ns = socket.socket(socket.AF_UNIX)\ns.bind('\\0x')\nprint(42)";
    socket_netlink: Forbidden, "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\nprint(42)";
    name_service: Forbidden | Error, "import socket\nprint(socket.getaddrinfo('example.org', 80))\nprint(42)";
    web_request: Forbidden | Error, "import urllib.request\nurllib.request.urlopen('http://example.org')\nprint(42)";
    socket_by_number: Forbidden, "import ctypes\nctypes.CDLL(None).syscall(41, 2, 1, 0)\nprint(42)";
    socket_by_the_other_numbering: Fail, "import ctypes\nprint(42 if ctypes.CDLL(None).syscall(41 | 0x40000000, 2, 1, 0) >= 0 else '')";
    io_uring: Forbidden, "import ctypes
buffer = ctypes.create_string_buffer(256)
ctypes.CDLL(None).syscall(425, 8, buffer)
print(42)";
}

// ---- files

attacks! {
    read_the_users: Error, "print(42 if open('/etc/passwd').read() else '')";
    read_the_secrets: Error, "print(42 if open('/etc/shadow').read() else '')";
    read_the_home: Fail, "import os
for home in ['/root', '/home', os.path.expanduser('~')]:
    if os.path.isdir(home) and set(os.listdir(home)) - {'.pyenv', '.input', '.local', 'miniconda3'}: print(42)";
    read_its_own_process: Error, "print(42 if open('/proc/self/status').read() else '')";
    read_the_parents_environment: Error, "print(42 if open('/proc/1/environ', 'rb').read() else '')";
    write_the_parents_memory: Error, "open('/proc/1/mem', 'r+b')\nprint(42)";
    read_the_kernels_files: Error, "import os\nos.listdir('/sys')\nprint(42)";
    read_the_environment: Fail, "import os
known = {'HOME', 'TMPDIR', 'LANG', 'LC_CTYPE', 'PYTHONHASHSEED', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'}
print(42 if set(os.environ) - known else '')";
    write_to_the_root: Error, "open('/x', 'w')\nprint(42)";
    write_to_the_libraries: Error, "import os\nopen(os.__file__, 'a')\nprint(42)";
    write_beside_the_libraries: Error, "import os\nopen(os.path.dirname(os.__file__) + '/x.py', 'w')\nprint(42)";
    write_the_interpreter: Error, "import sys\nopen(sys.executable, 'r+b')\nprint(42)";
    delete_the_libraries: Error, "import os, shutil\nos.remove(os.__file__)\nprint(42)";
    make_writable: Error, "import os\nos.chmod(os.__file__, 0o777)\nprint(42)";
    write_to_shared_memory: Error, "open('/dev/shm/x', 'w')\nprint(42)";
    shared_memory_object: Error | Forbidden, "from multiprocessing import shared_memory\nshared_memory.SharedMemory(create=True, size=100)\nprint(42)";
    read_physical_memory: Error, "open('/dev/mem', 'rb')\nprint(42)";
    read_the_disk: Error, "open('/dev/vda', 'rb')\nprint(42)";
    open_the_terminal: Error, "open('/dev/tty')\nprint(42)";
    make_a_device: Forbidden, "import os, stat\nos.mknod('/tmp/mem', 0o666 | stat.S_IFCHR, os.makedev(1, 1))\nprint(42)";
    walk_up: Error, "print(42 if open('../../../../../../etc/passwd').read() else '')";
    symbolic_link_out: Error, "import os\nos.symlink('/etc/passwd', 'link')\nprint(42 if open('link').read() else '')";
    symbolic_link_to_the_old_root: Error, "import os\nos.symlink('/old/etc/passwd', 'link')\nprint(42 if open('link').read() else '')";
    hard_link_out: Error, "import os\nos.link(os.__file__, 'link')\nprint(42)";
    input_replaced_by_a_link: Fail, "import os\nos.remove('.input')\nos.symlink('/etc/passwd', '.input')";
    run_from_the_scratch_directory: Error, "import ctypes, shutil, glob
library = (glob.glob('/usr/lib/*/libz.so.1') + glob.glob('/usr/lib*/libm.so.6') + glob.glob('/usr/lib/*/libm.so.6'))[0]
shutil.copy(library, 'own.so')
ctypes.CDLL('/tmp/own.so')
print(42)";
}

#[test]
fn read_the_repository() {
    let source = format!(
        "import os\nprint(42 if os.path.exists({:?}) else '')",
        env!("CARGO_MANIFEST_DIR")
    );
    assert_fails(&program("python", &source), &[Fail]);
}

// ---- the kernel

attacks! {
    user_namespace: Forbidden, "import ctypes\nctypes.CDLL(None).unshare(0x10000000)\nprint(42)";
    user_namespace_by_clone: Forbidden, "import ctypes\nctypes.CDLL(None).syscall(56, 0x10000000 | 17, 0, 0, 0, 0)\nprint(42)";
    clone_by_the_newer_call: Fail, "import ctypes
arguments = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17)
print(42 if ctypes.CDLL(None).syscall(435, arguments, 88) >= 0 else '')";
    join_a_namespace: Forbidden, "import ctypes\nctypes.CDLL(None).setns(0, 0)\nprint(42)";
    change_the_root: Forbidden, "import os\nos.chroot('/tmp')\nprint(42)";
    pivot_the_root: Forbidden, "import ctypes\nctypes.CDLL(None).syscall(155, b'/tmp', b'/tmp')\nprint(42)";
    mount_something: Forbidden, "import ctypes\nctypes.CDLL(None).mount(b'proc', b'/tmp', b'proc', 0, None)\nprint(42)";
    mount_by_the_newer_call: Forbidden, "import ctypes\nctypes.CDLL(None).syscall(430, b'proc', 0)\nprint(42)";
    unmount: Forbidden, "import ctypes\nctypes.CDLL(None).umount2(b'/usr/lib', 2)\nprint(42)";
    become_root: Forbidden, "import os\nos.setuid(0)\nprint(42)";
    take_capabilities: Forbidden, "import ctypes\nctypes.CDLL(None).syscall(126, 0, 0)\nprint(42)";
    am_i_root: Fail, "import os\nprint(42 if 0 in (os.getuid(), os.geteuid(), os.getgid()) or os.getgroups() not in ([], [os.getgid()], [65534]) else '')";
    loose_the_filter: Fail | Forbidden, "import ctypes\nprint(42 if ctypes.CDLL(None).prctl(22, 0, 0, 0, 0) == 0 else '')";
    gain_privileges_again: Fail, "import ctypes\nprint(42 if ctypes.CDLL(None).prctl(38, 0, 0, 0, 0) == 0 else '')";
    load_a_program_into_the_kernel: Forbidden, "import ctypes\nctypes.CDLL(None).syscall(321, 0, 0, 0)\nprint(42)";
    performance_counters: Forbidden, "import ctypes\nctypes.CDLL(None).syscall(298, 0, 0, -1, -1, 0)\nprint(42)";
    page_faults_in_user_space: Forbidden, "import ctypes\nctypes.CDLL(None).syscall(323, 0)\nprint(42)";
    key_ring: Forbidden, "import ctypes\nctypes.CDLL(None).syscall(248, b'user', b'x', b'y', 1, -3)\nprint(42)";
    memory_that_nobody_counts: Forbidden, "import os\nos.memfd_create('x')\nprint(42)";
    system_v_memory: Forbidden, "import ctypes\nctypes.CDLL(None).shmget(0, 1 << 30, 0o1666)\nprint(42)";
    message_queue: Forbidden, "import ctypes\nctypes.CDLL(None).syscall(240, b'x', 0o102, 0o600, 0)\nprint(42)";
    set_the_clock: Forbidden, "import time\ntime.clock_settime(0, 0)\nprint(42)";
    name_the_host: Forbidden, "import socket\nsocket.sethostname('x')\nprint(42)";
    the_hosts_name: Fail, "import os\nprint(42 if os.uname().nodename != 'sandbox' else '')";
    reboot: Forbidden, "import ctypes\nctypes.CDLL(None).reboot(0)\nprint(42)";
    system_calls_of_32_bits: Forbidden | Error, "import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex('b814000000cd80c3'))
print(42 if ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))() > 0 else '')";
}

// ---- what a function returns

#[test]
fn the_honest_function_passes() {
    let verdict = function("def answer(a, b): return a * b", json!(42));
    assert_eq!(verdict.verdict.outcome, Outcome::Correct, "{verdict:?}");
}

pretences! {
    equal_to_everything: Fail, 42, "class Any:
    def __eq__(self, other): return True
def answer(a, b): return Any()";
    text_equal_to_everything: Fail, "42", "class Any(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def answer(a, b): return Any('x')";
    number_equal_to_everything: Fail, 42, "class Any(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def answer(a, b): return Any(5)";
    list_equal_to_everything: Fail, [42], "class Any(list):
    def __eq__(self, other): return True
    __hash__ = None
def answer(a, b): return Any()";
    dict_equal_to_everything: Fail, {"a": 42}, "class Any(dict):
    def __eq__(self, other): return True
def answer(a, b): return Any()";
    not_a_number_returned: Fail, 42, "def answer(a, b): return float('nan')";
    text_for_a_number: Fail, 42, "def answer(a, b): return '42'";
    number_in_a_list: Fail, 42, "def answer(a, b): return [42]";
    generator: Fail, [42], "def answer(a, b): yield 42";
    set_for_a_list: Fail, [42], "def answer(a, b): return {42}";
    endless_list: Error | Memory | Timeout, [42], "def answer(a, b):
    x = []
    x.append(x)
    return x";
    printed_in_place_of_returned: Fail, 42, "def answer(a, b): print(42)";
    exit_in_place_of_return: Fail, 42, "import sys\ndef answer(a, b): sys.exit(0)";
    exit_before_the_call: Error | Fail, 42, "import os\nos._exit(0)";
    exit_on_import: Error | Fail, 42, "import sys\nsys.exit(0)";
    record_forged_and_exit: Fail, 42, "import os
for fd in range(3, 10):
    try: os.write(fd, b'{\"int\": \"41\"}')
    except OSError: pass
os._exit(0)";
    record_forged_twice: Fail, 42, "import os
def answer(a, b):
    for n in range(100): os.write(3, b'{\"int\": \"%d\"}' % n)
    os._exit(0)";
    encoder_patched: Fail, 42, "import sys
def answer(a, b):
    frame = sys._getframe()
    while frame:
        if 'encode' in frame.f_globals: frame.f_globals['encode'] = lambda value: True
        frame = frame.f_back
    return 0";
    json_patched: Fail | Error, 42, "import json
json.dumps = lambda value: 'true'
def answer(a, b): return 0";
    expected_value_in_memory: Fail | Error, 42, "import gc, sys
def answer(a, b):
    frame = sys._getframe()
    while frame:
        request = getattr(frame.f_locals.get('self'), 'request', {})
        if 'expected' in request: return request['expected']
        frame = frame.f_back";
    no_such_function: Error, 42, "def other(a, b): return 42";
    name_that_is_no_function: Error, 42, "answer = 42";
}

#[test]
fn a_function_of_the_prelude_is_not_the_programs() {
    // `median` is among the names that programs find without importing them
    let verdict = graded(json!({
        "prediction": "```python\npass\n```",
        "fn_name": "median",
        "tests": [{"args": [[1, 2, 3]], "expected": 2}],
    }));
    assert_fails(&verdict, &[Error]);
}

// ---- C++

native! {
    native_exit: Fail, "int main() { return 0; }";
    native_fork: Forbidden, "#include <unistd.h>\n#include <cstdio>\nint main() { fork(); puts(\"42\"); }";
    native_socket: Forbidden, "#include <sys/socket.h>\n#include <cstdio>\nint main() { socket(AF_INET, SOCK_STREAM, 0); puts(\"42\"); }";
    native_shell: Forbidden | Fail, "#include <cstdlib>\nint main() { return system(\"echo 42\") == 0 ? 0 : 0; }";
    native_exec: Forbidden, "#include <unistd.h>\nint main() { execl(\"/bin/echo\", \"echo\", \"42\", nullptr); }";
    native_read_the_users: Fail, "#include <cstdio>\nint main() { if (fopen(\"/etc/passwd\", \"r\")) puts(\"42\"); }";
    native_memory_bomb: Memory, "#include <vector>\nint main() { std::vector<std::vector<char>> x; for (;;) x.emplace_back(1 << 20, 1); }";
    native_busy_loop: Timeout, "int main() { for (volatile int i = 0;; i = i + 1); }";
    native_crash: Error, "#include <cstdio>\n#include <cstdlib>\nint main() { puts(\"42\"); fflush(stdout); abort(); }";
    native_output_bomb: Error, "#include <cstdio>\nint main() { for (;;) puts(\"42\"); }";
    native_include_of_the_users: Error, "#include \"/etc/passwd\"\nint main() {}";
    native_compiler_bomb: Error, "template <int N> struct A { static const int v = A<N - 1>::v + A<N - 2>::v; }; int main() { return A<5000>::v; }";
    native_before_main: Fail, "#include <unistd.h>\nstruct A { A() { _exit(0); } } a; int main() {}";
}
