//! Storage locations: mounted file systems of local devices, and folders that the configuration names.
//!
//! Each folder is a probe of its own, so that one that hangs (a network file system that is gone) holds up no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use mesh_proto::Timestamp;
use nix::sys::statvfs::{FsFlags, statvfs};
use procfs::{FromRead as _, process::MountInfos};

use super::{Entity, Probe, Reading, Roots, Value, host};
use crate::domain::measure::catalog;

/// File systems on devices of this host; those elsewhere may hang and are read only where they are named.
const LOCAL: [&str; 14] = [
    "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "nilfs2", "ntfs3", "ubifs", "vfat", "xfs",
    "zfs",
];
/// Locations that are read.
const LOCATIONS_MAX: usize = 128;

struct Location {
    folder: PathBuf,
    /// Device, where it is known.
    device: Option<String>,
}

/// Reads storage locations.
pub struct Storage {
    /// The only one; `None` for what is mounted.
    named: Option<(String, PathBuf)>,
    roots: Roots,
    locations: BTreeMap<String, Location>,
    /// Readings that failed, by location; they are kept while it is away.
    errors: BTreeMap<String, u64>,
    /// Why locations could not be found.
    lost: Option<String>,
}

impl Storage {
    /// Every mounted file system of a local device, by its first mount point.
    pub fn mounted(roots: Roots) -> Self {
        Self { named: None, roots, locations: BTreeMap::new(), errors: BTreeMap::new(), lost: None }
    }

    /// One folder, by a name.
    pub fn folder(name: String, folder: PathBuf, roots: Roots) -> Self {
        Self { named: Some((name, folder)), ..Self::mounted(roots) }
    }

    fn find(&mut self) -> Result<(), String> {
        let path = self.roots.proc.join("self/mountinfo");
        let mounts = MountInfos::from_file(&path).map_err(|error| format!("read {}: {error}", path.display()));
        if let Some((name, folder)) = &self.named {
            let (name, folder) = (name.clone(), folder.clone());
            // The last one mounted above it.
            let device = mounts.ok().and_then(|mounts| {
                let above = mounts.0.into_iter().filter(|mount| folder.starts_with(&mount.mount_point));
                above.max_by_key(|mount| mount.mount_point.components().count())?.mount_source
            });
            self.locations = BTreeMap::from([(name, Location { folder, device })]);
            return Ok(());
        }
        let mut mounts = mounts?.0;
        mounts.retain(|mount| LOCAL.contains(&mount.fs_type.as_str()));
        mounts.sort_by_key(|mount| mount.mount_point.as_os_str().len());
        let mut devices = BTreeSet::new();
        self.locations = mounts
            .into_iter()
            .filter(|mount| devices.insert(mount.majmin.clone()))
            .take(LOCATIONS_MAX)
            .map(|mount| {
                let name = mount.mount_point.to_string_lossy().into_owned();
                (name, Location { folder: mount.mount_point, device: mount.mount_source })
            })
            .collect();
        Ok(())
    }

    fn look(&mut self, name: &str) -> Result<Vec<Value>, String> {
        let location = self.locations.get(name).ok_or_else(|| {
            let why = self.lost.clone().unwrap_or_else(|| "it is not mounted any more".to_owned());
            format!("{name}: {why}")
        })?;
        let folder = &location.folder;
        let failed = |error: nix::Error| format!("ask for the space of {}: {error}", folder.display());
        let space = statvfs(folder).map_err(failed)?;
        let unit = space.fragment_size();
        let bytes = |blocks: u64| blocks.saturating_mul(unit) as f64;
        let limit = space.blocks();
        // Of what is free, some may be kept for root: nobody else can write there.
        let free = space.blocks_available().min(limit);
        let reserved = space.blocks_free().saturating_sub(free);
        let used = limit - free;
        let mut values = vec![
            catalog::FILESYSTEM_USAGE.value(bytes(free), &["free"]),
            catalog::FILESYSTEM_USAGE.value(bytes(used), &["used"]),
            catalog::FILESYSTEM_LIMIT.value(bytes(limit), &[]),
            catalog::FILESYSTEM_RESERVED.value(bytes(reserved), &[]),
            catalog::FILESYSTEM_READ_ONLY.value(f64::from(space.flags().contains(FsFlags::ST_RDONLY)), &[]),
            catalog::FILESYSTEM_ERRORS.value(self.errors.get(name).copied().unwrap_or(0) as f64, &["probe"]),
        ];
        if limit > 0 {
            values.push(catalog::FILESYSTEM_UTILIZATION.value(used as f64 / limit as f64, &[]));
        }
        let (inodes, free) = (space.files(), space.files_free());
        if inodes > 0 {
            values.push(catalog::FILESYSTEM_INODES.value(free as f64, &["free"]));
            values.push(catalog::FILESYSTEM_INODES.value(inodes.saturating_sub(free) as f64, &["used"]));
        }
        let kept = location.device.as_deref().and_then(|device| host::errors_kept(&self.roots.sys, device));
        values.extend(kept.map(|count| catalog::FILESYSTEM_ERRORS.value(count as f64, &["kernel"])));
        Ok(values)
    }
}

impl Probe for Storage {
    fn name(&self) -> &'static str {
        "storage"
    }

    fn entities(&mut self) -> Vec<Entity> {
        self.lost = self.find().err();
        self.locations.keys().map(|name| Entity::of("storage", name)).collect()
    }

    fn read(&mut self, due: &[Entity], _now: Timestamp) -> Vec<Reading> {
        let mut all = vec![];
        for entity in due {
            let read = self.look(&entity.id);
            if read.is_err() && (self.errors.contains_key(&entity.id) || self.errors.len() < LOCATIONS_MAX * 2) {
                *self.errors.entry(entity.id.clone()).or_default() += 1;
            }
            all.push(Reading::from(read));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[Value], name: &str, label: &str) -> f64 {
        let found =
            values.iter().find(|v| v.metric.name == name && v.metric.labels.iter().all(|(_, text)| text == label));
        found.unwrap_or_else(|| panic!("{name} {label}: {values:?}")).value
    }

    #[test]
    fn free_and_used_are_the_whole_of_every_location() {
        let mut storage = Storage::mounted(Roots::default());
        let entities = storage.entities();
        assert!(!entities.is_empty());
        for (entity, read) in entities.iter().zip(storage.read(&entities, Timestamp::default())) {
            let (kind, id) = (entity.kind, &entity.id);
            assert_eq!((kind, read.failure.as_deref()), ("storage", None), "{id}");
            let usage = |state| of(&read.values, "system.filesystem.usage", state);
            let limit = of(&read.values, "system.filesystem.limit", "");
            assert!(limit > 0.0 && usage("free") + usage("used") == limit, "{id}");
        }
    }

    #[test]
    fn errors_of_a_folder_are_counted_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("away");
        let mut storage = Storage::folder("data".into(), folder.clone(), Roots::default());
        let entities = storage.entities();
        assert_eq!(entities, [Entity::of("storage", "data")]);
        for _ in 0..3 {
            let read = &storage.read(&entities, Timestamp::default())[0];
            assert!(read.values.is_empty() && read.failure.as_ref().unwrap().contains("away"), "{read:?}");
        }
        std::fs::create_dir(&folder).unwrap();
        let read = &storage.read(&entities, Timestamp::default())[0];
        assert_eq!(read.failure, None);
        assert_eq!(of(&read.values, "system.filesystem.errors", "probe"), 3.0);
    }
}
