# What runs inside the sandbox as process 1: a warm Python interpreter that forks one child per test. It holds no expected
# output and compares nothing; it hands back what a program wrote or returned. The Rust side is sandbox.rs.
#
# It is run as one text with values.py, which comes before it. Frames in both directions: a JSON header and a payload of bytes, each behind its length (4 bytes, big endian).

import atexit
import ctypes
import fcntl
import gc
import importlib
import resource
import select
import signal
import stat
import struct
import threading
import time
import traceback
import types

CONTROL = 3
RESULT = 3  # in a child, whose channel is closed
INPUT_PATH = "/tmp/.input"
SCRATCH = "/tmp"

# modes whose answer is what the program writes, not a value
TO_OUTPUT = ("stdio", "native")

EXIT_ERROR = 1
EXIT_SETUP = 76
EXIT_SYNTAX = 78
EXIT_MEMORY = 79

MAX_THREADS = 64
MAX_OPEN_FILES = 64
THREAD_STACK_BYTES = 16 << 20
RECURSION_LIMIT = 50_000
# a program that computes less than this share of the time is waiting, not starved by a busy machine
IDLE_SHARE = 0.03
WALL_FACTOR = 4
STDERR_BYTES = 4096

# names that contest programs use without importing them; `builtins` comes after the others, else `math.pow` hides `pow`
STARRED = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
    " builtins typing"
).split()
IMPORTED = STARRED[:-2] + ["typing", "os", "time", "decimal", "fractions", "queue", "array"]

PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2


def star(name):
    module = importlib.import_module(name)
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    return {n: getattr(module, n) for n in names}


def make_prelude():
    names = {}
    for name in STARRED:
        names.update(star(name))
    for name in IMPORTED:
        names[name] = importlib.import_module(name)
    return names


class FilterProgram(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


class Filter:
    """A seccomp program, ready to be put on with one call."""

    def __init__(self, libc, code):
        self.prctl = libc.prctl
        self.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
        self.code = ctypes.create_string_buffer(code, len(code))
        self.program = FilterProgram(len(code) // 8, ctypes.addressof(self.code))

    def put_on(self):
        pointer = ctypes.addressof(self.program)
        if self.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, pointer, 0, 0) != 0:
            os._exit(EXIT_SETUP)


# ---- the channel


def read_exactly(size):
    parts = []
    while size:
        part = os.read(CONTROL, min(size, 1 << 20))
        if not part:
            os._exit(0)  # the grader is gone
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def receive():
    header = json.loads(read_exactly(struct.unpack(">I", read_exactly(4))[0]))
    return header, read_exactly(struct.unpack(">I", read_exactly(4))[0])


def send(header, payload=b""):
    text = json.dumps(header).encode()
    data = memoryview(struct.pack(">I", len(text)) + text + struct.pack(">I", len(payload)) + payload)
    while data:
        data = data[os.write(CONTROL, data) :]


# ---- a child


class Child:
    """What is prepared before the fork; `run` is called in the child and never comes back."""

    def __init__(self, request, program, filters, prelude, out, err, result):
        self.request, self.program, self.filters = request, program, filters
        self.prelude, self.out, self.err, self.result = prelude, out, err, result

    def run(self):
        code = EXIT_ERROR
        try:
            self.confine()
            modes = {
                "stdio": self.run_stdio,
                "native": self.run_native,
                "call": lambda: self.answer(self.call),
                "names": lambda: self.answer(self.names),
                "invoke": lambda: self.answer(self.invoke),
            }
            code = modes[self.request["mode"]]()
        except MemoryError:
            code = EXIT_MEMORY
        except BaseException:
            pass
        finally:
            os._exit(code)

    def confine(self):
        request = self.request
        os.close(CONTROL)
        source = os.open(INPUT_PATH, os.O_RDONLY)
        os.dup2(source, 0)
        os.dup2(self.out, 1)
        os.dup2(self.err, 2)
        os.dup2(self.result, RESULT)
        keep = RESULT + 1
        if request["mode"] == "native":
            os.dup2(self.program, keep)
            os.set_inheritable(keep, False)
            self.program = keep
            keep += 1
        os.closerange(keep, 256)
        if request["mode"] in TO_OUTPUT:
            os.close(RESULT)
        cpu = int(request["timeout_s"]) + 2
        for what, value in (
            (resource.RLIMIT_CPU, cpu),
            (resource.RLIMIT_FSIZE, request["output_bytes"]),
            (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
            (resource.RLIMIT_NPROC, MAX_THREADS),
            (resource.RLIMIT_AS, request["address_bytes"]),
        ):
            hard = resource.getrlimit(what)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(what, (value, value))
        for program in self.filters["native" if request["mode"] == "native" else "python"]:
            program.put_on()

    def run_native(self):
        # Python ignores these, and what is ignored stays so
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.execve(self.program, ["program"], {"PATH": "/usr/bin:/bin", "HOME": SCRATCH, "TMPDIR": SCRATCH})

    def load(self):
        """Runs the program as `__main__`; None where it ran to its end, else an exit code."""
        module = types.ModuleType("__main__")
        names = vars(module)
        names.update(self.prelude)
        names.update(__name__="__main__", __builtins__=__builtins__, __file__="solution.py")
        sys.modules["__main__"] = module
        sys.argv = ["solution.py"]
        sys.setrecursionlimit(RECURSION_LIMIT)
        try:
            code = compile(self.program, "solution.py", "exec", dont_inherit=True)
        except MemoryError:
            return names, EXIT_MEMORY
        except BaseException as error:
            sys.stderr.write("".join(traceback.format_exception_only(type(error), error)))
            return names, EXIT_SYNTAX
        return names, attempt(lambda: exec(code, names))

    def run_stdio(self):
        code = self.load()[1]
        return finish(code)

    def answer(self, question):
        """Loads the program and writes down what `question` gives."""
        names, code = self.load()
        if code is not None and code != EXIT_EARLY:
            return finish(code)

        def ask():
            text = memoryview(json.dumps(question(names)).encode())
            while text:
                text = text[os.write(RESULT, text) :]

        return finish(attempt(ask))

    def call(self, names):
        name = self.request["fn_name"]
        solution = names.get("Solution")
        if isinstance(solution, type) and hasattr(solution, name):
            function = getattr(solution(), name)
        else:
            function = self.own(names, name)
        arguments = json.loads(self.request["arguments"])
        return encode(function(**arguments) if isinstance(arguments, dict) else function(*arguments))

    def names(self, names):
        own = {name: value for name, value in names.items() if value is not self.prelude.get(name)}
        return {n: isinstance(v, type) for n, v in own.items() if not n.startswith("__") and callable(v)}

    def invoke(self, names):
        name, init, method, arguments, named = json.loads(self.request["call"])
        target = self.own(names, name)
        if method is not None:
            target = getattr(target(*decode(init[0]), **decode(init[1])), method)
        return encode(target(*decode(arguments), **decode(named)))

    def own(self, names, name):
        function = names.get(name)
        if function is None or function is self.prelude.get(name):
            raise NameError(f"the program defines no function `{name}`")
        return function


EXIT_EARLY = 0


def attempt(action):
    """None where `action` came to its end, 0 after `sys.exit`, else what to exit with."""
    try:
        action()
    except SystemExit:
        return EXIT_EARLY
    except MemoryError:
        return EXIT_MEMORY
    except BaseException:
        try:
            traceback.print_exc(limit=-5)  # of 50,000 frames nobody reads the rest
        except BaseException:
            pass
        return EXIT_ERROR
    return None


def finish(code):
    """What an interpreter does at its end: waits for threads, runs exit handlers, writes what is buffered."""
    for step in (threading._shutdown, atexit._run_exitfuncs, lambda: sys.stdout.flush(), lambda: sys.stderr.flush()):
        failed = attempt(step)
        # a closed standard output is the program's own wish
        if failed and not code and not getattr(sys.stdout, "closed", True):
            code = failed
    return code or 0


# ---- process 1


def memory_file(name):
    return os.memfd_create(name, os.MFD_CLOEXEC)


def contents(fd, limit):
    size = min(os.fstat(fd).st_size, limit)
    return os.pread(fd, size, 0)


def tail(fd):
    size = os.fstat(fd).st_size
    return os.pread(fd, STDERR_BYTES, max(0, size - STDERR_BYTES)).decode("utf-8", "replace")


def supervise(pid, limit):
    """Waits for a child within its limits: (exit status, timed out, usage). Nothing is left running afterwards."""
    began = time.monotonic()
    clock = (~pid << 3) | 2  # the processor time clock of that process
    pidfd = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.register(CONTROL, 0)
    late = False
    while True:
        wall = time.monotonic() - began
        try:
            cpu = time.clock_gettime(clock)
        except OSError:
            cpu = 0.0
        idle = wall >= limit + 1 and cpu < wall * IDLE_SHARE
        late = cpu >= limit or idle or wall >= limit * WALL_FACTOR + 1
        if late:
            break
        events = poller.poll(1000 * min(max(limit - cpu, 0.005), max(limit + 1 - wall, 0.05)))
        if any(fd == CONTROL for fd, _ in events):
            os._exit(0)
        if events:
            break
    os.close(pidfd)
    sweep()
    _, status, usage = os.wait4(pid, 0)
    sweep()
    cpu = usage.ru_utime + usage.ru_stime
    return os.waitstatus_to_exitcode(status), late or cpu >= limit, cpu, time.monotonic() - began, usage.ru_maxrss


def sweep():
    """Kills and reaps whatever else lives in this process namespace."""
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        return


def reap():
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass


def clean():
    """Empties the scratch directory; False where that cannot be done simply."""
    try:
        os.chdir(SCRATCH)
        left = os.listdir(SCRATCH)
        for name in left:
            path = os.path.join(SCRATCH, name)
            if not stat.S_ISREG(os.lstat(path).st_mode):
                return False
            os.unlink(path)
        return not os.listdir(SCRATCH)
    except OSError:
        return False


def write_file(path, data):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        data = memoryview(data)
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


class Case:
    """A child of process 1 that serves one case: what a program and its tests leave in memory ends with it, so that the
    next case, maybe another answer to the same problem, finds nothing of it."""

    def __init__(self, filters, prelude):
        self.filters, self.prelude = filters, prelude
        self.program = None

    def serve(self):
        operations = {"load": self.load, "run": self.run, "compile": self.compile}
        while True:
            header, payload = receive()
            if header["op"] == "end":
                os._exit(0)
            operations[header["op"]](header, payload)

    def load(self, header, payload):
        if header["native"]:
            self.program = os.memfd_create("program", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            data = memoryview(payload)
            while data:
                data = data[os.write(self.program, data) :]
            fcntl.fcntl(self.program, 1033, 0x0F)  # F_ADD_SEALS: nobody changes it any more
        else:
            self.program = payload
        send({})

    def run(self, header, payload):
        clean_before = clean()
        write_file(INPUT_PATH, payload)
        out, err, result = memory_file("stdout"), memory_file("stderr"), memory_file("result")
        child = Child(header, self.program, self.filters, self.prelude, out, err, result)
        pid = os.fork()
        if pid == 0:
            child.run()
        code, late, cpu, wall, peak = supervise(pid, header["timeout_s"])
        limit = header["output_bytes"]
        wanted = contents(out if header["mode"] in TO_OUTPUT else result, limit)
        reply = {"code": code, "late": late, "cpu_s": cpu, "wall_s": wall, "peak_bytes": peak * 1024}
        reply["stderr"] = tail(err)
        for fd in (out, err, result):
            os.close(fd)
        reply["clean"] = clean() and clean_before
        send(reply, wanted)

    def compile(self, header, payload):
        clean()
        write_file(os.path.join(SCRATCH, header["source"]), payload)
        err = memory_file("stderr")
        pid = os.fork()
        if pid == 0:
            try:
                os.close(CONTROL)
                os.dup2(err, 1)
                os.dup2(err, 2)
                os.closerange(3, 256)
                for what, value in (
                    (resource.RLIMIT_CPU, int(header["timeout_s"]) + 2),
                    (resource.RLIMIT_FSIZE, header["output_bytes"]),
                    (resource.RLIMIT_NPROC, MAX_THREADS),
                    (resource.RLIMIT_AS, header["address_bytes"]),
                ):
                    resource.setrlimit(what, (value, value))
                for number in (signal.SIGPIPE, signal.SIGXFSZ):
                    signal.signal(number, signal.SIG_DFL)
                os.execve(header["argv"][0], header["argv"], {"PATH": "/usr/bin:/bin", "TMPDIR": SCRATCH, "LC_ALL": "C"})
            finally:
                os._exit(EXIT_SETUP)
        code, late, cpu, wall, peak = supervise(pid, header["timeout_s"])
        reap()
        data = b""
        if code == 0 and not late:
            fd = os.open(os.path.join(SCRATCH, header["output"]), os.O_RDONLY | os.O_NOFOLLOW)
            data = contents(fd, header["output_bytes"])
            os.close(fd)
        reply = {"code": code, "late": late, "cpu_s": cpu, "wall_s": wall, "peak_bytes": peak * 1024}
        reply["stderr"] = os.pread(err, STDERR_BYTES, 0).decode("utf-8", "replace")
        os.close(err)
        reply["clean"] = clean()
        send(reply, data)


def main():
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    header, _ = receive()
    # what `site` would have added
    builtins = importlib.import_module("builtins")
    builtins.exit = builtins.quit = sys.exit
    sys.path[:] = [path for path in sys.path if path] + header["packages"]
    libc = ctypes.CDLL(None)
    filters = {
        name: [Filter(libc, bytes.fromhex(code)) for code in codes] for name, codes in header["filters"].items()
    }
    prelude = make_prelude()
    threading.stack_size(THREAD_STACK_BYTES)
    gc.collect()
    gc.freeze()
    send({"version": list(sys.version_info[:3])})
    while True:
        receive()  # a case begins; what it holds is read by its own process
        pid = os.fork()
        if pid == 0:
            try:
                Case(filters, prelude).serve()
            finally:
                os._exit(EXIT_SETUP)
        _, status = os.waitpid(pid, 0)
        sweep()
        reap()
        send({"ended": status == 0, "clean": clean()})


main()
