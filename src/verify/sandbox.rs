//! Where model code runs: warm Python interpreters, each process 1 of a box that `sandbox_spawn.rs` makes, kept for
//! one case after the other.
//!
//! Why this and not a container or `bwrap`: it needs no package beyond the interpreter, works as root and as an ordinary
//! user, and a test costs a `fork` of a warm interpreter (about two milliseconds) in place of a start (about sixty).
//!
//! What a program finds: its own scratch directory in memory, the interpreter and the system's libraries read-only, no
//! `/proc`, no network, no other process it could make or signal, a cleared environment. What it may use: processor time,
//! waiting time, memory, output, files and threads up to limits. Two layers hold it: namespaces (mount, process, network,
//! IPC, host name, and user where the caller is not root) with a user number of its own, and system call filters
//! (`sandbox_filter.rs`) that kill it when it asks for what only an attack needs. Expected outputs never enter
//! a box with model code in it. Each test is a process; each case is served by a process of its own, so nothing of one answer is left for the next;
//! a box in which anything was left, killed or broken is not used again.
//!
//! What is trusted: the kernel, and the interpreter as installed. Where the machine cannot do all this, [`Sandbox::open`]
//! says why, and nothing is run.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use seccompiler::BpfProgram;
use serde::Deserialize;
use serde_json::{Value, json};

use super::sandbox_filter::{self, Program};
use super::sandbox_layout::Layout;
use super::sandbox_program::{Code, Finished, Limits, MAX_OUTPUT_BYTES, Mode};
use super::sandbox_spawn::{self, Boxed, Identity};
use crate::{Error, Result};

const RUNNER: &str = concat!(include_str!("values.py"), include_str!("runner.py"));
/// The runner is read from an open file, so that no listing of processes shows it as an argument.
const BOOT: &str = "import os; exec(compile(os.pread(4, 1 << 20, 0), 'runner', 'exec'))";
const FIRST_ARGUMENTS: [&str; 7] = ["-S", "-s", "-B", "-X", "utf8", "-c", BOOT];
const ENVIRONMENT: [(&str, &str); 7] = [
    ("HOME", "/tmp"),
    ("TMPDIR", "/tmp"),
    ("LANG", "C.UTF-8"),
    // the same program gets the same verdict
    ("PYTHONHASHSEED", "0"),
    ("OMP_NUM_THREADS", "1"),
    ("OPENBLAS_NUM_THREADS", "1"),
    ("MKL_NUM_THREADS", "1"),
];

/// Of everything that a program writes to its scratch directory, the input of the test included.
const SCRATCH_BYTES: u64 = 192 << 20;
/// Address space is more than memory: stacks and arenas are reserved and never touched.
const ADDRESS_SLACK_BYTES: u64 = 768 << 20;
const COMPILER_OUTPUT_BYTES: u64 = 64 << 20;
const COMPILER_ADDRESS_BYTES: u64 = 4 << 30;
const COMPILER_TIMEOUT_S: f64 = 30.0;
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// On top of a test's own limits, for a machine that is busy with other things.
const REPLY_SLACK_S: f64 = 30.0;

/// Boxes to run model code in. Made once; used from any number of threads.
#[derive(Debug)]
pub struct Sandbox {
    python: Interpreter,
    identity: Identity,
    filters: Vec<BpfProgram>,
    runner: OwnedFd,
    plain: Layout,
    compiler: Option<(PathBuf, Layout)>,
    idle: Mutex<Vec<Worker>>,
}

/// What the installed interpreter says about itself.
#[derive(Debug, Clone, Deserialize)]
struct Interpreter {
    program: PathBuf,
    version: (u32, u32),
    has_ctypes: bool,
    shown: Vec<PathBuf>,
    packages: Vec<PathBuf>,
}

impl Sandbox {
    /// Finds the interpreter, makes a first box, and tries in it whether it holds.
    pub fn open() -> Result<Self> {
        let python = Interpreter::find()?;
        let mut sandbox = Self {
            plain: plain_layout(&python),
            compiler: compiler_layout(&python),
            filters: sandbox_filter::outer()?,
            runner: sandbox_spawn::memory_file("runner", RUNNER.as_bytes())
                .map_err(|source| no_box("making a file in memory", &source))?,
            identity: Identity::Namespace,
            idle: Mutex::new(Vec::new()),
            python,
        };
        // SAFETY: cannot fail
        let root = unsafe { libc::geteuid() } == 0;
        let mut identities = vec![Identity::Namespace];
        if root {
            identities.splice(0..0, [Identity::Fresh, Identity::Nobody]);
        }
        let mut refused = None;
        for identity in identities {
            sandbox.identity = identity;
            match sandbox.worker(false) {
                Ok(worker) => {
                    sandbox.put_back(worker);
                    sandbox.try_out()?;
                    return Ok(sandbox);
                }
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| Error::input("no sandbox could be made")))
    }

    /// Runs a harmless and a hostile program: a box that does not hold is not used.
    fn try_out(&self) -> Result<()> {
        let limits = Limits {
            timeout_s: 10.0,
            memory_bytes: 256 << 20,
        };
        let run = |source: &str| -> Result<Finished> {
            let code = Code::Python(source.into());
            self.session(&code)?
                .run(&Mode::Stdio { input: "7\n" }, limits)
        };
        let works = run(
            "import os\nprint(int(input()) * 6, os.path.exists('/proc/self'), os.listdir('/'))",
        )?;
        let said = String::from_utf8_lossy(&works.output);
        if !said.starts_with("42 False ") || said.contains("old") {
            return Err(broken(&format!("{} {}", said.trim(), works.stderr.trim())));
        }
        for attack in ["import socket; socket.socket()", "import os; os.fork()"] {
            let held = run(attack)?;
            if held.code != -libc::SIGSYS {
                return Err(broken(&format!("`{attack}` was not stopped")));
            }
        }
        Ok(())
    }

    /// Whether C++ can be compiled here.
    pub fn has_compiler(&self) -> bool {
        self.compiler.is_some()
    }

    /// An executable out of C++ source, made in a box with the compiler in it; `Ok(Err(..))` holds the compiler's
    /// complaint.
    ///
    /// # Errors
    /// The box fails, not the source.
    pub fn compile(&self, source: &str) -> Result<std::result::Result<Code, String>> {
        let Some((compiler, _)) = &self.compiler else {
            return Ok(Err("no C++ compiler on this machine".into()));
        };
        let request = json!({
            "op": "compile",
            "source": "main.cpp",
            "output": "program",
            "argv": [compiler, "-O2", "-std=c++17", "-pipe", "-o", "program", "main.cpp"],
            "timeout_s": COMPILER_TIMEOUT_S,
            "output_bytes": COMPILER_OUTPUT_BYTES,
            "address_bytes": COMPILER_ADDRESS_BYTES,
        });
        let mut worker = self.worker(true)?;
        let wait = wait_for(COMPILER_TIMEOUT_S);
        let reply = worker
            .begin()
            .and_then(|()| worker.ask(&request, source.as_bytes(), wait));
        Ok(match reply {
            Ok((reply, binary)) => match serde_json::from_value::<Finished>(reply) {
                Ok(finished) if finished.code == 0 && !binary.is_empty() => {
                    Ok(Code::Native(binary))
                }
                Ok(finished) if finished.late => Err("compiling takes too long".into()),
                Ok(finished) => {
                    let mut lines = finished.stderr.lines();
                    let error = lines.find(|line| line.contains("error"));
                    Err(error.unwrap_or("the compiler failed").to_string())
                }
                Err(e) => return Err(Error::input(format!("the compiler's box broke: {e}"))),
            },
            Err(Died) => return Err(Error::input("the compiler's box broke")),
        })
    }

    /// A box with `code` in it, for the tests of one case.
    pub fn session<'a>(&'a self, code: &'a Code) -> Result<Session<'a>> {
        let mut session = Session {
            sandbox: self,
            code,
            worker: None,
        };
        session.ready()?;
        Ok(session)
    }

    fn put_back(&self, worker: Worker) {
        if let Ok(mut idle) = self.idle.lock() {
            idle.push(worker);
        }
    }

    /// A new box.
    fn worker(&self, compiler: bool) -> Result<Worker> {
        let layout = match &self.compiler {
            Some((_, layout)) if compiler => layout,
            _ => &self.plain,
        };
        let mut boxed = sandbox_spawn::spawn(&sandbox_spawn::Command {
            layout,
            program: &self.python.program,
            arguments: &FIRST_ARGUMENTS,
            environment: &ENVIRONMENT,
            identity: self.identity,
            source: &self.runner,
            filters: &self.filters,
            scratch_bytes: SCRATCH_BYTES,
        })
        .map_err(|refusal| no_box(refusal.doing, &refusal.source))?;
        let in_hex = |of| -> Result<Vec<String>> {
            let programs = sandbox_filter::inner(of)?;
            let bytes = programs.iter().map(sandbox_filter::to_bytes);
            Ok(bytes.map(hex::encode).collect())
        };
        let filters =
            json!({"python": in_hex(Program::Python)?, "native": in_hex(Program::Native)?});
        let setup = json!({"filters": filters, "packages": self.python.packages});
        let mut worker = Worker { boxed };
        match worker.ask(&setup, b"", START_TIMEOUT) {
            Ok(_) => Ok(worker),
            Err(Died) => {
                boxed = worker.boxed;
                let program = self.python.program.display();
                Err(Error::input(format!(
                    "`{program}` does not start in the sandbox: {}",
                    boxed.complaint()
                ))
                .with_hint("install a Python 3.9 or newer whose files other users may read, and put it first in PATH"))
            }
        }
    }
}

/// A box that serves one case.
#[derive(Debug)]
pub struct Session<'a> {
    sandbox: &'a Sandbox,
    code: &'a Code,
    worker: Option<Worker>,
}

impl Session<'_> {
    /// Runs the program once. A box that breaks is replaced, and the run repeated once: what happens again is the
    /// program's doing.
    pub fn run(&mut self, mode: &Mode, limits: Limits) -> Result<Finished> {
        let native = matches!(self.code, Code::Native(_));
        let mut request = json!({
            "op": "run",
            "mode": if native { "native" } else { "stdio" },
            "timeout_s": limits.timeout_s,
            "output_bytes": MAX_OUTPUT_BYTES,
            "address_bytes": limits.memory_bytes + ADDRESS_SLACK_BYTES,
        });
        let input = match mode {
            Mode::Stdio { input } => input.as_bytes(),
            Mode::Call { fn_name, arguments } => {
                request["mode"] = json!("call");
                request["fn_name"] = json!(fn_name);
                request["arguments"] = json!(arguments);
                b""
            }
            Mode::Names => {
                request["mode"] = json!("names");
                b""
            }
            Mode::Invoke { call } => {
                request["mode"] = json!("invoke");
                request["call"] = json!(call);
                b""
            }
        };
        let (began, wait) = (Instant::now(), wait_for(limits.timeout_s));
        for _ in 0..2 {
            let worker = self.ready()?;
            let Ok((reply, output)) = worker.ask(&request, input, wait) else {
                self.worker = None;
                if began.elapsed() > wait {
                    break;
                }
                continue;
            };
            let Ok(mut finished) = serde_json::from_value::<Finished>(reply) else {
                self.worker = None;
                continue;
            };
            finished.output = output;
            if !finished.clean || finished.code == -libc::SIGSYS {
                self.worker = None;
            }
            return Ok(finished);
        }
        Ok(Finished {
            box_died: true,
            ..Finished::default()
        })
    }

    /// The box with the program loaded.
    fn ready(&mut self) -> Result<&mut Worker> {
        if self.worker.is_none() {
            let idle = self
                .sandbox
                .idle
                .lock()
                .ok()
                .and_then(|mut idle| idle.pop());
            let started = |mut worker: Worker| {
                let loaded = worker.begin().and_then(|()| worker.load(self.code));
                loaded.is_ok().then_some(worker)
            };
            let worker = match idle.and_then(started) {
                Some(worker) => worker,
                None => started(self.sandbox.worker(false)?)
                    .ok_or_else(|| broken("it ends before it has run anything"))?,
            };
            self.worker = Some(worker);
        }
        self.worker.as_mut().ok_or_else(|| broken("no worker"))
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some(mut worker) = self.worker.take()
            && worker.end()
        {
            self.sandbox.put_back(worker);
        }
    }
}

/// The box is gone or talks nonsense.
#[derive(Debug)]
struct Died;

impl From<std::io::Error> for Died {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

/// One box and the talk with the runner in it.
#[derive(Debug)]
struct Worker {
    boxed: Boxed,
}

impl Worker {
    fn begin(&mut self) -> std::result::Result<(), Died> {
        self.send(&json!({"op": "case"}), b"")
    }

    fn load(&mut self, code: &Code) -> std::result::Result<(), Died> {
        let (native, bytes) = match code {
            Code::Python(source) => (false, source.as_bytes()),
            Code::Native(binary) => (true, binary.as_slice()),
        };
        self.ask(
            &json!({"op": "load", "native": native}),
            bytes,
            START_TIMEOUT,
        )
        .map(|_| ())
    }

    /// Ends the case; true where the box is as it was before.
    fn end(&mut self) -> bool {
        let reply = self.ask(&json!({"op": "end"}), b"", START_TIMEOUT);
        reply.is_ok_and(|(reply, _)| reply["ended"] == true && reply["clean"] == true)
    }

    fn ask(
        &mut self,
        header: &Value,
        payload: &[u8],
        wait: Duration,
    ) -> std::result::Result<(Value, Vec<u8>), Died> {
        self.boxed.channel.set_read_timeout(Some(wait))?;
        self.send(header, payload)?;
        let header = self.receive()?;
        let payload = self.receive()?;
        Ok((serde_json::from_slice(&header).map_err(|_| Died)?, payload))
    }

    fn send(&mut self, header: &Value, payload: &[u8]) -> std::result::Result<(), Died> {
        let header = header.to_string();
        let mut frame = Vec::with_capacity(header.len() + payload.len() + 8);
        for part in [header.as_bytes(), payload] {
            let length = u32::try_from(part.len()).map_err(|_| Died)?;
            frame.extend_from_slice(&length.to_be_bytes());
            frame.extend_from_slice(part);
        }
        self.boxed.channel.set_write_timeout(Some(START_TIMEOUT))?;
        Ok(self.boxed.channel.write_all(&frame)?)
    }

    fn receive(&mut self) -> std::result::Result<Vec<u8>, Died> {
        let mut length = [0; 4];
        self.boxed.channel.read_exact(&mut length)?;
        let length = u64::from(u32::from_be_bytes(length));
        if length > 2 * COMPILER_OUTPUT_BYTES {
            return Err(Died);
        }
        let mut bytes = Vec::new();
        let read = (&mut self.boxed.channel)
            .take(length)
            .read_to_end(&mut bytes)?;
        if read as u64 == length {
            Ok(bytes)
        } else {
            Err(Died)
        }
    }
}

fn wait_for(timeout_s: f64) -> Duration {
    Duration::from_secs_f64(4.0 * timeout_s + REPLY_SLACK_S)
}

impl Interpreter {
    const QUESTION: &str = "
import json, os, site, sys, sysconfig
try:
    import ctypes
except ImportError:
    ctypes = None
paths = sysconfig.get_paths()
packages = [paths['purelib'], paths['platlib'], *site.getsitepackages()]
shown = [paths['stdlib'], paths['platstdlib'], os.path.join(sys.base_prefix, 'lib'),
         os.path.join(sys.base_exec_prefix, 'lib'), *packages]
unique = lambda paths: [path for path in dict.fromkeys(paths) if os.path.isdir(path)]
print(json.dumps({'program': os.path.realpath(sys.executable), 'version': sys.version_info[:2],
    'has_ctypes': ctypes is not None, 'shown': unique(shown), 'packages': unique(packages)}))
";

    /// The `python3` of PATH, or else the system's.
    fn find() -> Result<Self> {
        Self::ask("python3").or_else(|error| Self::ask("/usr/bin/python3").map_err(|_| error))
    }

    /// An interpreter, asked about itself.
    fn ask(python3: &str) -> Result<Self> {
        let hint = "install Python 3.9 or newer (Debian and Ubuntu: `apt install python3`) and put it first in PATH";
        let output = std::process::Command::new(python3)
            .args(["-c", Self::QUESTION])
            .current_dir("/")
            .stdin(std::process::Stdio::null())
            .output()
            .map_err(|error| {
                Error::input(format!("grading code needs `python3`: {error}")).with_hint(hint)
            })?;
        let python: Self = serde_json::from_slice(&output.stdout).map_err(|_| {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().last().unwrap_or_default().trim().to_string();
            Error::input(format!("`python3` does not work: {last}")).with_hint(hint)
        })?;
        if python.version < (3, 9) {
            let (major, minor) = python.version;
            let old =
                format!("grading code needs Python 3.9 or newer, `python3` is {major}.{minor}");
            return Err(Error::input(old).with_hint(hint));
        }
        if !python.has_ctypes {
            return Err(Error::input(
                "`python3` lacks the module `ctypes`, which puts on the system call filter",
            )
            .with_hint(
                "install the whole standard library (Debian and Ubuntu: `apt install python3`)",
            ));
        }
        Ok(python)
    }
}

/// The interpreter, its libraries and three devices.
fn plain_layout(python: &Interpreter) -> Layout {
    let mut layout = Layout::default();
    for path in [
        "/usr/lib",
        "/usr/lib32",
        "/usr/lib64",
        "/lib",
        "/lib32",
        "/lib64",
        "/usr/local/lib",
        "/usr/share/zoneinfo",
        "/etc/ld.so.cache",
    ] {
        layout.show(Path::new(path));
    }
    show_interpreter(&mut layout, python);
    layout
}

/// The same and the whole of `/usr`, where a C++ compiler is.
fn compiler_layout(python: &Interpreter) -> Option<(PathBuf, Layout)> {
    let path = std::env::var_os("PATH")?;
    let places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let found = ["g++", "c++", "clang++"]
        .iter()
        .flat_map(|name| places.iter().map(move |place| place.join(name)))
        .find(|path| path.is_file() && path.canonicalize().is_ok_and(|p| p.starts_with("/usr")))?;
    let compiler = found.canonicalize().ok()?;
    let mut layout = Layout::default();
    for path in [
        "/usr",
        "/lib",
        "/lib32",
        "/lib64",
        "/bin",
        "/etc/ld.so.cache",
        "/etc/alternatives",
    ] {
        layout.show(Path::new(path));
    }
    show_interpreter(&mut layout, python);
    Some((compiler, layout))
}

fn show_interpreter(layout: &mut Layout, python: &Interpreter) {
    for store in ["/nix/store", "/gnu/store"] {
        if python.program.starts_with(store) {
            layout.show(Path::new(store));
        }
    }
    for path in &python.shown {
        layout.show(path);
    }
    layout.show(&python.program);
    for device in ["/dev/null", "/dev/zero", "/dev/urandom"] {
        layout.show_device(Path::new(device));
    }
    layout.link(Path::new("/dev/stdin"), Path::new("/tmp/.input"));
}

/// The machine refused a step of making a box.
fn no_box(doing: &str, source: &std::io::Error) -> Error {
    let message = format!("this machine cannot sandbox programs: {doing}: {source}");
    Error::input(message).with_hint(
        "code is never run without a sandbox; allow user namespaces (`sysctl user.max_user_namespaces=10000`, on Ubuntu \
         also `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, on old Debian `sysctl \
         kernel.unprivileged_userns_clone=1`), or in a container run it with `--cap-add SYS_ADMIN --security-opt \
         seccomp=unconfined --security-opt apparmor=unconfined`",
    )
}

/// The box could be made and does not do what it must.
fn broken(what: &str) -> Error {
    Error::input(format!("the sandbox does not hold on this machine: {what}"))
        .with_hint("code is never run without a sandbox; a Linux kernel of 5.12 or newer is needed")
}
