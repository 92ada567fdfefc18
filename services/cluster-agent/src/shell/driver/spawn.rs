//! The few system calls that Rust cannot check: what happens between fork and exec, and process descriptors.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal},
    },
    unistd::{Pid, getppid, setsid, write},
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capabilities, clear_ambient_capability_set, set_capabilities,
    set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// The first descriptor that is not standard input, output or error.
const FIRST_FD: libc::c_int = 3;
/// `CLOSE_RANGE_CLOEXEC` of `linux/close_range.h`.
const CLOSE_AT_EXEC: libc::c_uint = 1 << 2;
/// The last signal of Linux.
const LAST_SIGNAL: libc::c_int = 64;
/// Of the kernel's set of signals.
const SIGNAL_SET_BYTES: usize = 8;

/// Takes from the process what it does not need, and ties it to the calling thread.
///
/// It has a session and group of its own, is inside control groups, has a limit on its data in bytes, default signals, no
/// files of the agent's, no capabilities that it could have or regain, and another user's id if one is given. The kernel
/// ties the death signal to the thread that forks, so the calling thread must live as long as the process may.
pub(super) fn confine(command: &mut Command, groups: Vec<File>, data_bytes_max: Option<u64>, user: Option<u32>) {
    let parent = Pid::this();
    let before_exec = move || -> io::Result<()> {
        setsid()?;
        for group in &groups {
            write(group, b"0")?;
        }
        // The agent may do without huge pages; what it starts decides for itself.
        prctl::set_thp_disable(false)?;
        if let Some(bytes) = data_bytes_max {
            setrlimit(Resource::RLIMIT_DATA, bytes, bytes)?;
        }
        default_signals()?;
        close_inherited()?;
        drop_privileges(user)?;
        // Last: a change of user clears it.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the line above.
        if getppid() != parent {
            return Err(Errno::ESRCH.into());
        }
        Ok(())
    };
    // SAFETY: after fork only async-signal-safe calls are made: `before_exec` is thin wrappers of setsid, write, setrlimit,
    // getrlimit, pthread_sigmask, prctl, getppid, fcntl and raw system calls; it neither allocates nor locks, and
    // its errors carry a number only.
    unsafe {
        command.pre_exec(before_exec);
    }
}

/// Nothing is ignored or blocked, whatever the agent was started with.
fn default_signals() -> io::Result<()> {
    // The kernel's own form, at least as long as its `struct sigaction`: the C library keeps two signals from its callers,
    // though they too may be ignored. Only zeros: the default action, no flags, an empty mask.
    let default = [0u64; 8];
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: the kernel reads the zeros and writes nothing; it refuses SIGKILL and SIGSTOP, which need nothing.
        let _refused = unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), SIGNAL_SET_BYTES)
        };
    }
    Ok(SigSet::empty().thread_set_mask()?)
}

/// No file but standard input, output and error is open after exec. They stay open until then: one of them tells the agent
/// whether exec succeeded.
fn close_inherited() -> io::Result<()> {
    // SAFETY: the call takes three integers, and marks descriptors of this process, which is about to become another program.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, FIRST_FD, libc::c_uint::MAX, CLOSE_AT_EXEC) };
    if marked == 0 {
        return Ok(());
    }
    // Linux before 5.11 marks them one by one.
    let (open_max, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    for descriptor in FIRST_FD..libc::c_int::try_from(open_max).unwrap_or(libc::c_int::MAX) {
        // SAFETY: as above; a descriptor that is not open is refused.
        let _not_open = unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

/// No capability is left in any set after exec, and none can be had again. With `user`, that user's ids, alone.
///
/// Until exec one capability stays, if there is one: to look up a program in a folder that is closed to the user, such as
/// the home of root. The file itself must be executable for everybody.
fn drop_privileges(user: Option<u32>) -> io::Result<()> {
    clear_ambient_capability_set()?;
    for capability in 0..libc::c_ulong::from(u64::BITS) {
        // SAFETY: the call takes integers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == 0 {
            continue;
        }
        match Errno::last() {
            // The kernel knows no more.
            Errno::EINVAL => break,
            // An agent that is not root may not; what it starts has none, and gains none.
            Errno::EPERM if user.is_none() => break,
            error => return Err(error.into()),
        }
    }
    let mut until_exec = CapabilitySet::empty();
    if let Some(id) = user {
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        set_keep_capabilities(true)?;
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        until_exec = capabilities(None)?.permitted & CapabilitySet::DAC_READ_SEARCH;
    }
    let sets = CapabilitySets { effective: until_exec, permitted: until_exec, inheritable: CapabilitySet::empty() };
    // Where there is nothing to drop, a sandbox around the agent may refuse the call.
    if capabilities(None)? != sets {
        set_capabilities(None, sets)?;
    }
    prctl::set_no_new_privs()?;
    Ok(())
}

/// A descriptor of a process: readable once it has ended, and never of another process that got the same id.
pub(super) fn process_descriptor(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and returns a new descriptor or an error.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let descriptor = i32::try_from(descriptor).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor (close-on-exec); nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Ends the process that a descriptor stands for.
pub(super) fn kill_exactly(process: &OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is open while borrowed; a null `siginfo` is what kill(2) would send.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
