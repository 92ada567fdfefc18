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
        resource::{Resource, setrlimit},
        signal::Signal,
    },
    unistd::{Pid, getppid, setsid, write},
};

/// Makes the process a session and group of its own that dies with the calling thread, inside control groups, with a
/// limit on its data in bytes.
///
/// The kernel ties the death signal to the thread that forks, so the calling thread must live as long as the process
/// may.
pub(super) fn confine(command: &mut Command, groups: Vec<File>, data_bytes_max: Option<u64>) {
    let parent = Pid::this();
    let before_exec = move || -> io::Result<()> {
        setsid()?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the line above.
        if getppid() != parent {
            return Err(Errno::ESRCH.into());
        }
        for group in &groups {
            write(group, b"0")?;
        }
        // The agent may do without huge pages; what it starts decides for itself.
        prctl::set_thp_disable(false)?;
        if let Some(bytes) = data_bytes_max {
            setrlimit(Resource::RLIMIT_DATA, bytes, bytes)?;
        }
        Ok(())
    };
    // SAFETY: after fork only async-signal-safe calls are made: `before_exec` is thin wrappers of setsid, prctl,
    // getppid, write and setrlimit; it neither allocates nor locks, and its errors carry a number only.
    unsafe {
        command.pre_exec(before_exec);
    }
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
