//! Starts one process in a box of its own: new namespaces, a root directory made of nothing but what is listed, another
//! user, no privileges, limits, the outer system call filter. What runs inside is [`super::sandbox`]'s business.
//!
//! The process is made by `clone` with `CLONE_VM | CLONE_VFORK`, as `posix_spawn` does it: the caller may be a trainer with
//! tens of gigabytes and many threads, whose pages must not be copied and whose locks must not be taken. Between `clone`
//! and `execve` the child therefore makes system calls only; every string it needs is made before. It is process 1 of its
//! process namespace: when it ends, the kernel kills whatever is left in there, unmounts the directories that only ever
//! lived in memory, and nothing stays on disk even where this program was killed.

use std::ffi::{CStr, CString};
use std::io::{Error as IoError, Read, Seek};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use libc::{c_char, c_int, c_uint, c_ulong, c_void};
use seccompiler::BpfProgram;

use super::sandbox_layout::{Layout, Step, c_string};

/// Where the child finds its end of the channel and the text to run.
pub const CONTROL_FD: RawFd = 3;
pub const SOURCE_FD: RawFd = 4;

const STACK_BYTES: usize = 256 * 1024;
/// Deep recursion is ordinary in contest programs.
const PROGRAM_STACK_BYTES: u64 = 256 << 20;

/// As whom the boxed process runs, seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// A user number that nobody else has, so that limits count this box alone. Needs root.
    Fresh,
    /// `nobody`, where a container knows only 65,536 users. Needs root.
    Nobody,
    /// The caller's own user in a user namespace of its own. Needs nothing, where the system allows them.
    Namespace,
}

/// What to start.
#[derive(Debug)]
pub struct Command<'a> {
    pub layout: &'a Layout,
    pub program: &'a Path,
    pub arguments: &'a [&'a str],
    pub environment: &'a [(&'a str, &'a str)],
    pub identity: Identity,
    /// What the boxed process finds at [`SOURCE_FD`].
    pub source: &'a OwnedFd,
    pub filters: &'a [BpfProgram],
    /// Bytes of the directory it may write to.
    pub scratch_bytes: u64,
}

/// A started process 1; dropping it kills everything in the box and waits for the end.
#[derive(Debug)]
pub struct Boxed {
    pid: libc::pid_t,
    pidfd: OwnedFd,
    /// Our end of the channel.
    pub channel: UnixStream,
    stderr: std::fs::File,
}

impl Boxed {
    /// What the process wrote to its standard error: why an interpreter did not start.
    pub fn complaint(&mut self) -> String {
        let mut text = Vec::new();
        let read = self.stderr.rewind().is_ok()
            && (&mut self.stderr).take(4096).read_to_end(&mut text).is_ok();
        let text = String::from_utf8_lossy(&text);
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        match last {
            Some(line) if read => line.trim().to_string(),
            _ => "no message".into(),
        }
    }
}

impl Drop for Boxed {
    fn drop(&mut self) {
        // SAFETY: plain system calls on a descriptor and a child that are ours; the child cannot have been reaped before
        unsafe {
            let no_info: *const c_void = std::ptr::null();
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                no_info,
                0,
            );
            while libc::waitpid(self.pid, std::ptr::null_mut(), libc::__WALL) == -1
                && IoError::last_os_error().kind() == std::io::ErrorKind::Interrupted
            {}
        }
    }
}

/// A failed start: what was being done, and what the system said.
#[derive(Debug)]
pub struct Refusal {
    pub doing: &'static str,
    pub source: IoError,
}

/// A file in memory with `bytes` in it.
pub fn memory_file(name: &str, bytes: &[u8]) -> std::io::Result<OwnedFd> {
    use std::io::Write;
    let name = c_string(name.as_bytes());
    // SAFETY: the name is a C string; a descriptor that comes back is ours alone
    let fd = unsafe {
        let fd = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(IoError::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// Starts `command` in a new box.
pub fn spawn(command: &Command) -> Result<Boxed, Refusal> {
    let refused = |doing| move |source| Refusal { doing, source };
    let (ours, theirs) = UnixStream::pair().map_err(refused("making a channel"))?;
    let stderr = memory_file("stderr", b"").map_err(refused("making a file in memory"))?;
    // SAFETY: these calls cannot fail
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let (inner_uid, inner_gid) = match command.identity {
        Identity::Fresh => (fresh_uid(), fresh_uid()),
        Identity::Nobody => (NOBODY, NOBODY),
        // never root in there: a program started by another user loses all privileges at `execve`
        Identity::Namespace => (
            if uid == 0 { NOBODY } else { uid },
            if gid == 0 { NOBODY } else { gid },
        ),
    };
    let texts = |values: Vec<String>| -> Vec<CString> {
        values.iter().map(|v| c_string(v.as_bytes())).collect()
    };
    let program = c_string(command.program.as_os_str().as_bytes());
    let arguments = texts(command.arguments.iter().map(|a| a.to_string()).collect());
    let environment = texts(
        command
            .environment
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect(),
    );
    let pointers = |first: Option<&CString>, texts: &[CString]| -> Vec<*const c_char> {
        let all = first.into_iter().chain(texts).map(|text| text.as_ptr());
        all.chain([std::ptr::null()]).collect()
    };
    let mut child = Child {
        steps: &command.layout.steps,
        namespace: command.identity == Identity::Namespace,
        uid: inner_uid,
        gid: inner_gid,
        uid_map: format!("{inner_uid} {uid} 1").into_bytes(),
        gid_map: format!("{inner_gid} {gid} 1").into_bytes(),
        scratch: c_string(
            format!(
                "size={},nr_inodes={MAX_FILES},mode=700",
                command.scratch_bytes
            )
            .as_bytes(),
        ),
        program: program.as_ptr(),
        argv: pointers(Some(&program), &arguments),
        envp: pointers(None, &environment),
        control: theirs.as_raw_fd(),
        source: command.source.as_raw_fd(),
        stderr: stderr.as_raw_fd(),
        filters: command.filters,
        doing: "",
        errno: 0,
    };
    let pidfd: c_int = -1;
    let mut flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    flags |= libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    if child.namespace {
        flags |= libc::CLONE_NEWUSER;
    }
    let mut stack: Vec<u128> = vec![0; STACK_BYTES / size_of::<u128>()];
    // SAFETY: `CLONE_VFORK` suspends this thread until the child has called `execve` or `_exit`, so everything it points
    // to outlives it; it has a stack of its own; all signals are blocked meanwhile, so that no handler of ours runs in it
    let (pid, failure) = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        // another user's memory is not dumpable; the child shares ours until `execve`
        let dumpable = libc::prctl(libc::PR_GET_DUMPABLE);
        let top = stack.as_mut_ptr_range().end.cast::<c_void>();
        let child_pointer = (&raw mut child).cast::<c_void>();
        let pid = libc::clone(enter, top, flags, child_pointer, &raw const pidfd);
        let failure = IoError::last_os_error();
        if dumpable == 1 {
            libc::prctl(libc::PR_SET_DUMPABLE, 1);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        (pid, failure)
    };
    drop((program, arguments, environment, stack));
    if pid < 0 {
        return Err(refused("making namespaces")(failure));
    }
    // SAFETY: the kernel has put a new descriptor there
    let pidfd = unsafe { OwnedFd::from_raw_fd(std::ptr::read_volatile(&raw const pidfd)) };
    let boxed = Boxed {
        pid,
        pidfd,
        channel: ours,
        stderr: stderr.into(),
    };
    // SAFETY: the child has written there before it ended, and is not running in our memory any more
    let errno = unsafe { std::ptr::read_volatile(&raw const child.errno) };
    if errno != 0 {
        return Err(refused(child.doing)(IoError::from_raw_os_error(errno)));
    }
    Ok(boxed)
}

const NOBODY: u32 = 65534;
const MAX_FILES: u32 = 1024;

/// A number above all real users', another one for each box of each process.
fn fresh_uid() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let slot = NEXT.fetch_add(1, Ordering::Relaxed) & 0xff;
    0x4000_0000 | (std::process::id() & 0x3f_ffff) << 8 | slot
}

/// All that the child needs, made before it exists.
struct Child<'a> {
    steps: &'a [Step],
    namespace: bool,
    uid: u32,
    gid: u32,
    uid_map: Vec<u8>,
    gid_map: Vec<u8>,
    scratch: CString,
    program: *const c_char,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    control: RawFd,
    source: RawFd,
    stderr: RawFd,
    filters: &'a [BpfProgram],
    /// What failed, for the parent to read.
    doing: &'static str,
    errno: c_int,
}

extern "C" fn enter(child: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes its own `Child` and sleeps until this process has left its memory
    let child = unsafe { &mut *child.cast::<Child>() };
    // SAFETY: system calls on prepared arguments
    if let Err(doing) = unsafe { child.become_boxed() } {
        child.doing = doing;
        child.errno = IoError::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    }
    // SAFETY: ends this process without running anything of the parent's
    unsafe { libc::_exit(127) }
}

/// `doing` where a system call says -1.
fn check(result: c_int, doing: &'static str) -> Result<(), &'static str> {
    if result == -1 { Err(doing) } else { Ok(()) }
}

impl Child<'_> {
    /// Every step up to `execve`; comes back only with what failed, `errno` telling why.
    unsafe fn become_boxed(&self) -> Result<(), &'static str> {
        unsafe {
            self.default_signals();
            // no signals from the terminal: an interrupted grader must not take the program's end for its own doing
            check(libc::setsid(), "leaving the terminal")?;
            libc::umask(0o022);
            if self.namespace {
                write_file(c"/proc/self/setgroups", b"deny", "forbidding groups")?;
                write_file(c"/proc/self/uid_map", &self.uid_map, "mapping the user")?;
                write_file(c"/proc/self/gid_map", &self.gid_map, "mapping the group")?;
            }
            // where memory runs out, the kernel should take this one and not the trainer
            let _ = write_file(c"/proc/self/oom_score_adj", b"1000", "");
            self.make_root()?;
            self.take_descriptors()?;
            let name = c"sandbox";
            check(libc::sethostname(name.as_ptr(), 7), "naming the host")?;
            self.drop_privileges()?;
            limit(libc::RLIMIT_CORE as i64, 0, 0)?;
            limit(libc::RLIMIT_NOFILE as i64, 256, 256)?;
            limit(libc::RLIMIT_MEMLOCK as i64, 0, 0)?;
            limit(libc::RLIMIT_MSGQUEUE as i64, 0, 0)?;
            limit(
                libc::RLIMIT_STACK as i64,
                PROGRAM_STACK_BYTES,
                PROGRAM_STACK_BYTES,
            )?;
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            let one: c_ulong = 1;
            let zero: c_ulong = 0;
            check(
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, one, zero, zero, zero),
                "giving up new privileges",
            )?;
            for filter in self.filters {
                let program = libc::sock_fprog {
                    len: filter.len() as u16,
                    filter: filter.as_ptr().cast_mut().cast(),
                };
                let loaded = libc::syscall(
                    libc::SYS_seccomp,
                    libc::SECCOMP_SET_MODE_FILTER as c_ulong,
                    zero,
                    &raw const program,
                );
                check(loaded as c_int, "loading the system call filter")?;
            }
            libc::execve(self.program, self.argv.as_ptr(), self.envp.as_ptr());
            Err("starting the interpreter")
        }
    }

    unsafe fn default_signals(&self) {
        unsafe {
            for signal in 1..=64 {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }

    /// A root of its own in memory: the half-made one at `/new`, the host's at `/old` until it is let go.
    unsafe fn make_root(&self) -> Result<(), &'static str> {
        const QUIET: c_ulong = libc::MS_NOSUID | libc::MS_NODEV;
        unsafe {
            mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)
                .map_err(|()| "making mounts private")?;
            let (tmpfs, small) = (Some(c"tmpfs"), Some(c"size=1m,mode=755"));
            mount(tmpfs, c"/tmp", tmpfs, QUIET, small).map_err(|()| "mounting memory at /tmp")?;
            make_dir(c"/tmp/new")?;
            make_dir(c"/tmp/old")?;
            pivot(c"/tmp", c"/tmp/old")?;
            check(libc::chdir(c"/".as_ptr()), "changing to the new root")?;
            mount(tmpfs, c"/new", tmpfs, QUIET, small).map_err(|()| "mounting the new root")?;
            for step in self.steps {
                step.take()?;
            }
            make_dir(c"/new/tmp")?;
            let scratch = Some(self.scratch.as_c_str());
            mount(tmpfs, c"/new/tmp", tmpfs, QUIET | libc::MS_NOEXEC, scratch)
                .map_err(|()| "mounting the scratch directory")?;
            let owned = libc::chown(c"/new/tmp".as_ptr(), self.uid, self.gid);
            check(owned, "giving away the scratch directory")?;
            let detached = libc::umount2(c"/old".as_ptr(), libc::MNT_DETACH);
            check(detached, "letting go of the old root")?;
            check(libc::chdir(c"/new".as_ptr()), "changing to the new root")?;
            pivot(c".", c".")?;
            let detached = libc::umount2(c".".as_ptr(), libc::MNT_DETACH);
            check(detached, "letting go of the first root")?;
            let quiet = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
            set_attributes(c"/", quiet, 0)?;
            check(libc::chdir(c"/tmp".as_ptr()), "changing to /tmp")
        }
    }

    /// The channel, the source and the complaints where the runner looks for them, and nothing else open.
    unsafe fn take_descriptors(&self) -> Result<(), &'static str> {
        const DOING: &str = "arranging descriptors";
        unsafe {
            let mut high = [self.control, self.source, self.stderr];
            for fd in &mut high {
                *fd = libc::fcntl(*fd, libc::F_DUPFD, 16);
                check(*fd, DOING)?;
            }
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            check(null, "opening /dev/null")?;
            for (from, to) in [
                (null, 0),
                (null, 1),
                (high[2], 2),
                (high[0], CONTROL_FD),
                (high[1], SOURCE_FD),
            ] {
                if from != to {
                    check(libc::dup2(from, to), DOING)?;
                }
            }
            let closed = libc::syscall(libc::SYS_close_range, SOURCE_FD + 1, c_uint::MAX, 0);
            check(closed as c_int, DOING)
        }
    }

    unsafe fn drop_privileges(&self) -> Result<(), &'static str> {
        const DOING: &str = "changing the user";
        unsafe {
            for capability in 0..64 {
                libc::prctl(libc::PR_CAPBSET_DROP, capability as c_ulong, 0, 0, 0);
            }
            let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong;
            libc::prctl(libc::PR_CAP_AMBIENT, clear, 0, 0, 0);
            if !self.namespace {
                // raw calls: the C library's wrappers would ask all threads of the parent to follow
                check(
                    libc::syscall(libc::SYS_setgroups, 0, 0 as c_ulong) as c_int,
                    DOING,
                )?;
                let gid = self.gid;
                check(
                    libc::syscall(libc::SYS_setresgid, gid, gid, gid) as c_int,
                    DOING,
                )?;
                let uid = self.uid;
                check(
                    libc::syscall(libc::SYS_setresuid, uid, uid, uid) as c_int,
                    DOING,
                )?;
            }
            let header: [u32; 2] = [0x2008_0522, 0];
            let nothing = [0_u32; 6];
            let set = libc::syscall(libc::SYS_capset, header.as_ptr(), nothing.as_ptr());
            check(set as c_int, "dropping capabilities")
        }
    }
}

impl Step {
    unsafe fn take(&self) -> Result<(), &'static str> {
        let quiet = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        unsafe {
            match self {
                Self::MakeDir(path) => make_dir(path),
                Self::MakeFile(path) => {
                    let fd = libc::open(path.as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o444);
                    check(fd, "making a file in the new root")?;
                    check(libc::close(fd), "making a file in the new root")
                }
                Self::Symlink { target, at } => check(
                    libc::symlink(target.as_ptr(), at.as_ptr()),
                    "making a link in the new root",
                ),
                Self::Bind { from, to } => {
                    mount(Some(from), to, None, libc::MS_BIND | libc::MS_REC, None)
                        .map_err(|()| "showing the interpreter's files")?;
                    set_attributes(to, quiet, libc::AT_RECURSIVE)
                }
                Self::BindDevice { from, to } => {
                    mount(Some(from), to, None, libc::MS_BIND, None)
                        .map_err(|()| "showing a device")?;
                    let quiet = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
                    set_attributes(to, quiet, 0)
                }
            }
        }
    }
}

type Text<'a> = &'a CStr;

unsafe fn mount(
    source: Option<Text>,
    target: Text,
    kind: Option<Text>,
    flags: c_ulong,
    options: Option<Text>,
) -> Result<(), ()> {
    let pointer = |text: Option<Text>| text.map_or(std::ptr::null(), CStr::as_ptr);
    let done = unsafe {
        libc::mount(
            pointer(source),
            target.as_ptr(),
            pointer(kind),
            flags,
            pointer(options).cast(),
        )
    };
    if done == 0 { Ok(()) } else { Err(()) }
}

unsafe fn make_dir(path: Text) -> Result<(), &'static str> {
    unsafe {
        let made = libc::mkdir(path.as_ptr(), 0o755);
        if made == -1 && IoError::last_os_error().raw_os_error() == Some(libc::EEXIST) {
            return Ok(());
        }
        check(made, "making a directory in the new root")
    }
}

unsafe fn pivot(root: Text, old: Text) -> Result<(), &'static str> {
    let moved = unsafe { libc::syscall(libc::SYS_pivot_root, root.as_ptr(), old.as_ptr()) };
    check(moved as c_int, "changing the root")
}

unsafe fn set_attributes(path: Text, set: u64, flags: c_int) -> Result<(), &'static str> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check(
        done as c_int,
        "making a mount read-only (needs Linux 5.12 or newer)",
    )
}

unsafe fn write_file(path: Text, bytes: &[u8], doing: &'static str) -> Result<(), &'static str> {
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY);
        check(fd, doing)?;
        let written = libc::write(fd, bytes.as_ptr().cast(), bytes.len());
        check(written as c_int, doing)?;
        check(libc::close(fd), doing)
    }
}

/// Lowers a limit; one that is lower already stays.
unsafe fn limit(resource: i64, soft: u64, hard: u64) -> Result<(), &'static str> {
    const DOING: &str = "setting a limit";
    unsafe {
        let mut now: libc::rlimit = std::mem::zeroed();
        check(libc::getrlimit(resource as _, &mut now), DOING)?;
        now.rlim_max = now.rlim_max.min(hard);
        now.rlim_cur = now.rlim_max.min(soft);
        check(libc::setrlimit(resource as _, &now), DOING)
    }
}
