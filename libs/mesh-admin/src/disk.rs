//! How much disk there is for streams.

use std::{fs, io, path::Path};

/// Bytes free for this process on the disk that holds a folder, or its nearest ancestor that exists.
pub fn free_disk_bytes(folder: &Path) -> io::Result<u64> {
    let existing = folder.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    let disk = nix::sys::statvfs::statvfs(if existing.as_os_str().is_empty() { Path::new(".") } else { existing })?;
    Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

/// Bytes that a folder may grow to: what is free on its disk, and what it holds already. Unlike what is free, this
/// does not shrink as the folder fills.
pub fn disk_room_bytes(folder: &Path) -> io::Result<u64> {
    let mut held = 0;
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            // Not made yet, or removed since it was listed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Ok(about) if about.is_dir() => open.push(entry.path()),
                Ok(about) => held += about.len(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(free_disk_bytes(folder)?.saturating_add(held))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_of_a_folder_counts_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/b"), vec![1u8; 8 << 20]).unwrap();
        let (free, room) = (free_disk_bytes(folder.path()).unwrap(), disk_room_bytes(folder.path()).unwrap());
        // Others write to the same disk meanwhile, so the sum is not exact.
        assert!(room > free.saturating_sub(1 << 30) && room > 8 << 20);
        assert!(disk_room_bytes(&folder.path().join("not/yet")).unwrap() > 0);
    }
}
