//! A disk that truly fills up: a small file system of its own, mounted for one child process and its descendants.

use std::{
    fs::File,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// A small file system in memory. It exists in a mount namespace of its own, so nothing is left behind when the last
/// process in it ends, whatever kills it; no privilege is needed where user namespaces may be made.
#[derive(Debug)]
pub struct Disk {
    mount: PathBuf,
    bytes: u64,
}

impl Disk {
    /// A file system of this size that will be at `mount`, a folder that exists. `None`, with a line that names the
    /// suite, where this machine does not let the test make one.
    pub fn new(suite: &str, mount: &Path, bytes: u64) -> Option<Self> {
        let disk = Self { mount: mount.to_owned(), bytes };
        let tried = disk.command(Path::new("true")).output();
        match tried {
            Ok(output) if output.status.success() => Some(disk),
            Ok(output) => {
                let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                eprintln!("SKIPPED: {suite}: no file system of the test's own: {reason}");
                None
            }
            Err(error) => {
                eprintln!("SKIPPED: {suite}: no file system of the test's own: `unshare` of util-linux: {error}");
                None
            }
        }
    }

    /// A command that runs with the file system mounted; the process that is spawned is the program itself.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("unshare");
        if !nix::unistd::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        let script = r#"mount -t tmpfs -o size="$1",mode=0755 continuum-test "$2" && shift 2 && exec "$@""#;
        command.args(["--mount", "sh", "-c", script, "sh"]);
        command.arg(self.bytes.to_string()).arg(&self.mount).arg(program);
        // Out of the test's process group: a terminal's interrupt is for the test, which stops it in order.
        command.process_group(0);
        command
    }

    /// Where this process finds the file system of a running process that has it mounted.
    pub fn seen_through(&self, pid: u32) -> PathBuf {
        let inside = self.mount.strip_prefix("/").unwrap_or(&self.mount);
        Path::new("/proc").join(pid.to_string()).join("root").join(inside)
    }

    /// Writes a file that takes all the room that is left.
    ///
    /// # Errors
    /// The file cannot be created; a full disk is not an error here.
    pub fn fill(folder: &Path) -> std::io::Result<PathBuf> {
        let path = folder.join("filler");
        let mut file = File::create(&path)?;
        let mut size = 1 << 20;
        let zeroes = vec![0; size];
        while size > 0 {
            match file.write_all(&zeroes[..size]) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => size /= 2,
                Err(error) => return Err(error),
            }
        }
        Ok(path)
    }
}

/// A small file system in memory over a folder of the test, for servers that are killed and started again on it. Only root
/// may make one; it is unmounted when this is dropped.
#[derive(Debug)]
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// A file system of this many bytes at a new folder. `None`, with a line that names the suite, where this machine does not
    /// let the test make one.
    pub(crate) fn new(suite: &str, folder: &Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir(folder).unwrap();
        let size = format!("size={bytes},mode=0755");
        match Command::new("mount").args(["-t", "tmpfs", "-o", &size, "continuum-test"]).arg(folder).output() {
            Ok(mounted) if mounted.status.success() => Some(Self(folder.to_owned())),
            Ok(refused) => {
                eprintln!("SKIPPED: {suite}: no disk of its own: {}", String::from_utf8_lossy(&refused.stderr).trim());
                None
            }
            Err(error) => {
                eprintln!("SKIPPED: {suite}: no disk of its own: `mount` of util-linux: {error}");
                None
            }
        }
    }

    /// Takes all the room that is left.
    pub(crate) fn fill(&self) {
        Disk::fill(&self.0).unwrap();
    }

    /// Gives the room back.
    pub(crate) fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_disk_takes_writes_again_once_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let Some(disk) = Disk::new("mesh-test, a full disk", folder.path(), 1 << 20) else { return };
        let marker = folder.path().join("made");
        let script = format!("touch {} && exec sleep 100", marker.display());
        let mut child = disk.command(Path::new("sh")).args(["-c", &script]).spawn().unwrap();
        let seen = disk.seen_through(child.id());
        crate::until("it is mounted", async || seen.join("made").exists(), |mounted| *mounted).await;
        assert!(!marker.exists(), "this process does not see it at its path");

        let filler = Disk::fill(&seen).unwrap();
        let size = std::fs::metadata(&filler).unwrap().len();
        assert!((1 << 19..=1 << 20).contains(&size), "{size}");
        let refused = std::fs::write(seen.join("more"), "word").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
        std::fs::remove_file(filler).unwrap();
        std::fs::write(seen.join("more"), "word").unwrap();

        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!seen.exists(), "it is gone with its last process");
    }
}
