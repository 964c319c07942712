//! What the reader process gives up before it looks at a document: files, the network, other processes and programs. A
//! document that takes over the reader has only the memory that it came in and the pipe to the parent.
//!
//! Only Linux supports this, through Landlock, which removes paths, ports and signals, and seccomp, which removes all
//! system calls except those needed for computing. A kernel without one of them still has the other; [`Lockdown`] says
//! which apply.

/// What a process has given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Lockdown {
    /// It cannot gain privileges, for example by starting a setuid program.
    pub no_new_privileges: bool,
    /// It cannot open files or TCP connections; on older kernels only some of that applies.
    pub landlock: bool,
    /// It cannot make system calls other than those for computing.
    pub seccomp: bool,
}

impl std::fmt::Display for Lockdown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let held =
            [(self.no_new_privileges, "no new privileges"), (self.landlock, "Landlock"), (self.seccomp, "seccomp")];
        let held: Vec<&str> = held.into_iter().filter_map(|(holds, name)| holds.then_some(name)).collect();
        if held.is_empty() { f.write_str("limits alone") } else { f.write_str(&held.join(", ")) }
    }
}

/// Gives up what this thread and the threads it starts do not need. This cannot be undone.
#[cfg(target_os = "linux")]
pub(super) fn lock_down() -> Lockdown {
    Lockdown {
        no_new_privileges: rustix::thread::set_no_new_privs(true).is_ok(),
        landlock: take_paths().unwrap_or(false),
        seccomp: take_calls().is_ok(),
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn lock_down() -> Lockdown {
    Lockdown::default()
}

/// Whether the kernel enforces at least part of it.
#[cfg(target_os = "linux")]
fn take_paths() -> Result<bool, landlock::RulesetError> {
    use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus, Scope};
    // Restrictions unknown to the kernel are skipped.
    let newest = ABI::V6;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(newest))?
        .handle_access(AccessNet::from_all(newest))?
        .scope(Scope::from_all(newest))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// All other calls fail as not permitted, so that a library that tries an optional call continues without it.
#[cfg(target_os = "linux")]
fn take_calls() -> Result<(), Box<dyn std::error::Error>> {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    /// Memory, the pipes, the clock, random numbers, locks, and exiting, with or without a message.
    const COMPUTING: &[i64] = &[
        libc::SYS_brk,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_close,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_fstat,
        libc::SYS_futex,
        libc::SYS_getpid,
        libc::SYS_getrandom,
        libc::SYS_getrusage,
        libc::SYS_gettid,
        libc::SYS_lseek,
        libc::SYS_madvise,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_nanosleep,
        libc::SYS_read,
        libc::SYS_restart_syscall,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_yield,
        libc::SYS_sigaltstack,
        libc::SYS_tgkill,
        libc::SYS_write,
        libc::SYS_writev,
    ];
    let allowed = COMPUTING.iter().map(|&call| (call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(allowed, refuse, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(seccompiler::apply_filter(&program)?)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{
        fs::File,
        net::{TcpListener, TcpStream, UdpSocket},
        process::Command,
    };

    use super::*;

    #[test]
    fn what_was_given_up_is_gone_and_computing_goes_on() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        // Both apply to one thread and the threads it starts.
        let thread = std::thread::spawn(move || {
            let held = lock_down();
            let mut reached = Vec::new();
            let mut tried = |what: &'static str, succeeded: bool| reached.extend(succeeded.then_some(what));
            tried("a file", File::open("/etc/passwd").is_ok());
            tried("itself", File::open("/proc/self/environ").is_ok());
            tried("a new file", File::create(std::env::temp_dir().join("lockdown")).is_ok());
            tried("TCP", TcpStream::connect(address).is_ok());
            tried("UDP", UdpSocket::bind("127.0.0.1:0").is_ok());
            tried("a program", Command::new("/bin/true").spawn().is_ok());
            tried("a thread", std::thread::Builder::new().spawn(|| {}).is_ok());
            let sum: u64 = (0..1_000_000_u64).collect::<Vec<_>>().iter().sum();
            (held, reached, sum)
        });
        let (held, reached, sum) = thread.join().expect("it computes");
        assert_eq!(sum, 499_999_500_000);
        assert!(held.no_new_privileges);
        if held.seccomp {
            assert!(reached.is_empty(), "{reached:?}");
        }
        if held.landlock {
            assert!(!reached.iter().any(|what| what.contains("file")), "{reached:?}");
        }
    }
}
