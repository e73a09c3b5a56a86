//! Which system calls the sandbox lets through, as seccomp programs built with `seccompiler`.
//!
//! Two layers. The outer one ([`outer`]) is put on before the interpreter starts and stays on everything in the sandbox:
//! a list of what ordinary programs need; what is not on it fails as if the kernel had never heard of it, and what only
//! an attack asks for kills the process. The inner one ([`inner`]) is added by the runner to each child right before
//! model code gets it: no further process, no other program, no signal to anybody. Namespaces, mounts and limits are in
//! `sandbox_spawn.rs`.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::{Error, Result};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What the process in the sandbox is going to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Python source in the child of a warm interpreter: it never needs to start a program.
    Python,
    /// A compiled program: the runner's child becomes it by `execveat` on an open file.
    Native,
}

/// The programs of the outer layer, to be loaded one after the other; the strictest answer counts.
pub fn outer() -> Result<Vec<BpfProgram>> {
    let listed = ALLOWED.iter().chain(ALLOWED_LEGACY);
    let allowed = listed.map(|&call| (call, Vec::new())).collect();
    let mut killed: Rules = KILLED.iter().map(|&call| (call, Vec::new())).collect();
    let new_namespaces = NAMESPACES
        .iter()
        .map(|&flag| rule(0, masked(flag as u64), flag as u64));
    killed.insert(libc::SYS_clone, new_namespaces.collect::<Result<_>>()?);
    Ok(vec![
        program(
            allowed,
            SeccompAction::Errno(libc::ENOSYS as u32),
            SeccompAction::Allow,
        )?,
        program(killed, SeccompAction::Allow, SeccompAction::KillProcess)?,
    ])
}

/// The programs of the inner layer.
pub fn inner(of: Program) -> Result<Vec<BpfProgram>> {
    let mut killed: Rules = KILLED_INSIDE
        .iter()
        .chain(KILLED_INSIDE_LEGACY)
        .map(|&call| (call, Vec::new()))
        .collect();
    // threads are clones that share everything; a clone without that flag is a process
    let thread = libc::CLONE_THREAD as u64;
    killed.insert(libc::SYS_clone, vec![rule(0, masked(thread), 0)?]);
    // limits of itself only, not of the runner
    for call in [libc::SYS_prlimit64, libc::SYS_sched_setaffinity] {
        killed.insert(call, vec![rule(0, SeccompCmpOp::Ne, 0)?]);
    }
    // signals by way of a descriptor's owner
    for (call, commands) in [
        (
            libc::SYS_fcntl,
            [libc::F_SETOWN as u64, F_SETSIG, F_SETOWN_EX],
        ),
        (libc::SYS_ioctl, [FIOSETOWN, SIOCSPGRP, TIOCSTI]),
    ] {
        let rules = commands.map(|command| rule(1, SeccompCmpOp::Eq, command));
        killed.insert(call, rules.into_iter().collect::<Result<_>>()?);
    }
    if of == Program::Python {
        killed.insert(libc::SYS_execveat, Vec::new());
    }
    // `abort` signals itself, and copes with a refusal; the filter cannot tell that from stopping the runner
    let refused = Rules::from([(libc::SYS_tgkill, Vec::new())]);
    Ok(vec![
        program(killed, SeccompAction::Allow, SeccompAction::KillProcess)?,
        program(
            refused,
            SeccompAction::Allow,
            SeccompAction::Errno(libc::EPERM as u32),
        )?,
    ])
}

/// The bytes that `prctl(PR_SET_SECCOMP)` wants to see behind its pointer.
pub fn to_bytes(program: &BpfProgram) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for step in program {
        bytes.extend_from_slice(&step.code.to_ne_bytes());
        bytes.extend_from_slice(&[step.jt, step.jf]);
        bytes.extend_from_slice(&step.k.to_ne_bytes());
    }
    bytes
}

fn program(rules: Rules, otherwise: SeccompAction, listed: SeccompAction) -> Result<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(failed)?;
    let filter = SeccompFilter::new(rules, otherwise, listed, arch).map_err(failed)?;
    BpfProgram::try_from(filter).map_err(failed)
}

/// All bits of `mask` as in the value compared with.
fn masked(mask: u64) -> SeccompCmpOp {
    SeccompCmpOp::MaskedEq(mask)
}

/// Matches where an argument compares so with `value`. Arguments of these calls are 32 bits wide, and the kernel looks at
/// no more.
fn rule(argument: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompRule> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value);
    SeccompRule::new(vec![condition.map_err(failed)?]).map_err(failed)
}

const F_SETSIG: u64 = 10;
const F_SETOWN_EX: u64 = 15;
const TIOCSTI: u64 = 0x5412;
const FIOSETOWN: u64 = 0x8901;
const SIOCSPGRP: u64 = 0x8902;

fn failed(error: seccompiler::BackendError) -> Error {
    Error::input(format!("building the system call filter: {error}"))
        .with_hint("code is graded on x86-64 and aarch64 Linux")
}

const NAMESPACES: [i32; 8] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_PTRACE,
];

/// Only an attack, or a program that has no business in a test, asks for these.
const KILLED: &[c_long] = &[
    // other processes' memory
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_process_madvise,
    // the other way to do file and network operations
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // network; `socketpair` stays, it reaches nobody
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    // namespaces and mounts
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // the kernel itself
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_fanotify_init,
    libc::SYS_mknodat,
    // another user
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    // what outlives a process
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
];

/// What the runner and the compiler still need, and model code does not get.
const KILLED_INSIDE: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    // memory that no limit counts
    libc::SYS_memfd_create,
    libc::SYS_seccomp,
];

#[cfg(target_arch = "x86_64")]
const KILLED_INSIDE_LEGACY: &[c_long] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const KILLED_INSIDE_LEGACY: &[c_long] = &[];

/// What interpreters, compilers and ordinary programs use. `clone3` is absent: its flags lie in memory, where no filter
/// can read them, and the C library falls back to `clone`.
const ALLOWED: &[c_long] = &[
    // files
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_ftruncate,
    libc::SYS_truncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fadvise64,
    libc::SYS_sendfile,
    libc::SYS_copy_file_range,
    libc::SYS_splice,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_umask,
    libc::SYS_utimensat,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_memfd_create,
    // memory
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_brk,
    libc::SYS_membarrier,
    libc::SYS_get_mempolicy,
    // threads and processes
    libc::SYS_clone,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_getpriority,
    libc::SYS_getcpu,
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_personality,
    // who am I
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_getpgid,
    libc::SYS_getsid,
    libc::SYS_capget,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
    // limits and usage
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    libc::SYS_times,
    // signals
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // time and waiting
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getitimer,
    libc::SYS_setitimer,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_delete,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    // a pair of connected sockets within the process, and the runner's channel
    libc::SYS_socketpair,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
];

/// Older spellings that only x86-64 has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_LEGACY: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_creat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getdents,
    libc::SYS_pipe,
    libc::SYS_dup2,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_alarm,
    libc::SYS_pause,
    libc::SYS_time,
    libc::SYS_getpgrp,
    libc::SYS_arch_prctl,
    libc::SYS_getrlimit,
    libc::SYS_setrlimit,
    libc::SYS_fork,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_LEGACY: &[c_long] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_fit_the_kernel_and_keep_their_layout() {
        let all = [outer(), inner(Program::Python), inner(Program::Native)];
        for program in all.into_iter().flat_map(Result::unwrap) {
            // BPF_MAXINSNS
            assert!(program.len() <= 4096, "{}", program.len());
            assert_eq!(to_bytes(&program).len(), program.len() * 8);
        }
    }

    #[test]
    fn nothing_is_both_allowed_and_killed() {
        for call in KILLED {
            assert!(!ALLOWED.contains(call) && !ALLOWED_LEGACY.contains(call));
        }
        // the inner layer takes back what the outer one gives
        for call in KILLED_INSIDE {
            assert!(ALLOWED.contains(call), "{call}");
        }
    }
}
