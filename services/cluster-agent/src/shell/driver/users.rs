//! A user and a folder of its own for each instance, in so far as the agent may give them.
//!
//! Where the agent is root, an instance gets a user id out of a range, by a folder that has its number: making the folder
//! takes the id, for all agents of the host that use the same parent folder. What is noted in it says whose it is, so that
//! an agent that starts again finds its own, and what an agent left that is gone for good is released. Elsewhere, instances
//! have a folder below the agent's, and run as the agent's user.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    ops::RangeInclusive,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    thread,
};

use mesh_kit::{ReadableBy, write_atomic};
use mesh_proto::{derived_id, is_key};
use nix::errno::Errno;
use rustix::thread::{CapabilitySet, capabilities};
use serde::{Deserialize, Serialize};

use crate::shell::table::Table;

/// Users of instances if nothing else is configured: no user of a host, container or service manager is here by custom.
pub const RANGE: RangeInclusive<u32> = 1_900_000_000..=1_900_065_535;
/// Their folders if nothing else is configured.
pub const FOLDER: &str = "/var/lib/continuum-workloads";
/// What an agent needs to give instances users of their own, and to end and clear away what they leave.
const NEEDED: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP);
/// Ids that are tried before an instance is refused.
const TRIES_MAX: u32 = 4_096;
/// Says whose an id is.
const LEASE: &str = "lease.json";
/// The instance's own.
const HOME: &str = "home";
/// Prefixes of folders that are being made and removed; a number is an id in use.
const CLAIM: &str = ".claim-";
const GONE: &str = ".gone-";

/// Why there are no users or folders.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configured range cannot be used.
    #[error(
        "workload_users {from}-{to} cannot be used: {reason}; run the agent as root, or set workload_users to `auto`"
    )]
    Refused {
        /// First id.
        from: u32,
        /// Last id.
        to: u32,
        /// Why.
        reason: String,
    },
    /// A folder that workloads have to pass is closed to them.
    #[error(
        "workloads cannot enter {0}; set workload_dir to a folder that everybody may enter, or open it with `chmod o+x`"
    )]
    Closed(PathBuf),
    /// Others could replace what is in the folder.
    #[error("{0} belongs to another user, or others may write in it; set workload_dir to a folder of the agent's user")]
    Foreign(PathBuf),
    /// Everybody may read a key.
    #[error("everybody may read the key {0}, and so may workloads; close it with `chmod 600`")]
    OpenKey(PathBuf),
    /// Something could not be done with a file.
    #[error("{what} {path}")]
    File {
        /// What.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Every id that was tried is in use.
    #[error("no user id is free: {tried} tried from {from}; set workload_users to a larger range")]
    Exhausted {
        /// Ids tried.
        tried: u32,
        /// The first of them.
        from: u32,
    },
    /// The instance's id is not the name of a folder.
    #[error("{0:?} is not a valid instance id")]
    Instance(String),
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File { what, path: path.to_owned(), source }
}

/// Which users, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Ids to give; `None` to run everything as the agent's user.
    pub range: Option<RangeInclusive<u32>>,
    /// Is an agent that may not give them an error?
    pub required: bool,
    /// Where instances with users of their own have their folders.
    pub folder: PathBuf,
    /// The agent's own folder. An agent whose folder is gone does not come again.
    pub agent_folder: PathBuf,
    /// Keys of the agent, which workloads with users of their own must not read.
    pub keys: Vec<PathBuf>,
}

/// What one instance runs as, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its user, and group, id; `None` for the agent's.
    pub user: Option<u32>,
    /// Its folder.
    pub home: PathBuf,
}

/// What is noted in the folder of an id.
#[derive(Debug, Deserialize, Serialize)]
struct Lease {
    agent: String,
    agent_folder: PathBuf,
    instance: String,
}

/// The users and folders of one agent's instances.
#[derive(Debug)]
pub struct Users {
    agent: String,
    /// `None` where all run as the agent's user.
    range: Option<RangeInclusive<u32>>,
    /// Why the agent gives no users, if it would.
    refused: Option<String>,
    base: PathBuf,
    agent_folder: PathBuf,
    accounts: BTreeMap<String, Account>,
    removed: u32,
}

impl Users {
    /// Finds what the agent of this name gave before, and releases what is nobody's any more.
    ///
    /// # Errors
    /// If the folder cannot be used, or users are required that cannot be given.
    pub fn open(options: &Options, agent: &str) -> Result<Self, Error> {
        let refused = options.range.as_ref().and_then(why_not);
        if let (Some(range), Some(reason), true) = (&options.range, &refused, options.required) {
            return Err(Error::Refused { from: *range.start(), to: *range.end(), reason: reason.clone() });
        }
        let range = options.range.clone().filter(|_| refused.is_none());
        if let (Some(_), Some(open)) = (&range, options.keys.iter().find(|key| is_open(key))) {
            return Err(Error::OpenKey(open.clone()));
        }
        let base = if range.is_some() { options.folder.clone() } else { options.agent_folder.join("workloads") };
        let mut users = Self {
            agent: agent.to_owned(),
            range,
            refused,
            base,
            agent_folder: options.agent_folder.clone(),
            accounts: BTreeMap::new(),
            removed: 0,
        };
        users.make_base()?;
        users.find()?;
        Ok(users)
    }

    /// How it is, in words.
    pub fn text(&self) -> &'static str {
        if self.range.is_some() { "user per instance" } else { "user of the agent" }
    }

    /// Why the agent gives no users; `None` if it does, or shall not.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// What an instance runs as; the same until it is no longer kept.
    ///
    /// # Errors
    /// If no id is free, or its folder cannot be made.
    pub fn account(&mut self, instance: &str) -> Result<Account, Error> {
        if let Some(account) = self.accounts.get(instance).filter(|account| account.home.is_dir()) {
            return Ok(account.clone());
        }
        if !is_key(instance) {
            return Err(Error::Instance(instance.to_owned()));
        }
        let account = match self.range.clone() {
            Some(range) => self.take(instance, &range)?,
            None => {
                let home = self.base.join(instance);
                make_folder(&home, 0o700)?;
                Account { user: None, home }
            }
        };
        self.accounts.insert(instance.to_owned(), account.clone());
        Ok(account)
    }

    /// The user of an instance, if it has one of its own.
    pub fn user_of(&self, instance: &str) -> Option<u32> {
        self.accounts.get(instance)?.user
    }

    /// All users of the agent's instances.
    pub fn all(&self) -> BTreeSet<u32> {
        self.accounts.values().filter_map(|account| account.user).collect()
    }

    /// Releases the users and removes the folders of all instances but these. No process of theirs may be left.
    pub fn keep(&mut self, is_kept: impl Fn(&str) -> bool) {
        let gone: Vec<String> = self.accounts.keys().filter(|instance| !is_kept(instance)).cloned().collect();
        for instance in gone {
            let Some(account) = self.accounts.remove(&instance) else { continue };
            let folder = account.user.map_or(account.home, |user| self.base.join(user.to_string()));
            self.release(&folder);
        }
    }

    fn make_base(&self) -> Result<(), Error> {
        let Some(_) = self.range else { return make_folder(&self.base, 0o700) };
        if let Some(parent) = self.base.parent() {
            fs::create_dir_all(parent).map_err(file("make", parent))?;
        }
        make_folder(&self.base, 0o711)?;
        let found = fs::symlink_metadata(&self.base).map_err(file("look at", &self.base))?;
        if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            return Err(Error::Foreign(self.base.clone()));
        }
        let whole = self.base.canonicalize().map_err(file("find", &self.base))?;
        for folder in whole.ancestors() {
            if fs::metadata(folder).map_err(file("look at", folder))?.mode() & 0o001 == 0 {
                return Err(Error::Closed(folder.to_owned()));
            }
        }
        Ok(())
    }

    /// What is there already.
    fn find(&mut self) -> Result<(), Error> {
        for entry in fs::read_dir(&self.base).map_err(file("read", &self.base))? {
            let entry = entry.map_err(file("read", &self.base))?;
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if name.starts_with(GONE) || name.starts_with(&format!("{CLAIM}{}", self.agent)) {
                remove_later(path);
            } else if self.range.is_none() {
                self.accounts.insert(name, Account { user: None, home: path });
            } else if let (Ok(user), Some(lease)) = (name.parse::<u32>(), Lease::read(&path)) {
                if lease.agent == self.agent {
                    self.accounts.insert(lease.instance, Account { user: Some(user), home: path.join(HOME) });
                } else if !lease.agent_folder.exists() && !is_running(user) {
                    self.release(&path);
                }
            }
        }
        Ok(())
    }

    /// Takes the first free id, looked for from a place that the instance's name gives: two that follow each other seldom
    /// have the same, and so cannot read what the other left elsewhere.
    fn take(&self, instance: &str, range: &RangeInclusive<u32>) -> Result<Account, Error> {
        let staged = self.base.join(format!("{CLAIM}{}", self.agent));
        let (first, count) = (*range.start(), range.end() - range.start() + 1);
        let name = derived_id(&["user", &self.agent, instance]);
        let begin = name.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) % count;
        let tries = count.min(TRIES_MAX);
        for n in 0..tries {
            let user = first + (begin + n) % count;
            let folder = self.base.join(user.to_string());
            if folder.exists() || is_running(user) {
                continue;
            }
            let _none_left = fs::remove_dir_all(&staged);
            make_folder(&staged, 0o711)?;
            let lease = Lease {
                agent: self.agent.clone(),
                agent_folder: self.agent_folder.clone(),
                instance: instance.to_owned(),
            };
            let noted = staged.join(LEASE);
            let text = serde_json::to_vec(&lease).map_err(io::Error::from);
            let written = text.and_then(|text| write_atomic(&noted, &text, ReadableBy::Owner));
            written.map_err(file("write", &noted))?;
            let home = staged.join(HOME);
            make_folder(&home, 0o700)?;
            chown(&home, Some(user), Some(user)).map_err(file("change the owner of", &home))?;
            // Onto a folder that has something in it, as all of them have, this fails: so one agent alone has the id.
            match fs::rename(&staged, &folder) {
                Ok(()) => return Ok(Account { user: Some(user), home: folder.join(HOME) }),
                Err(error)
                    if [Some(Errno::ENOTEMPTY as i32), Some(Errno::EEXIST as i32)].contains(&error.raw_os_error()) => {}
                Err(error) => return Err(file("make", &folder)(error)),
            }
        }
        Err(Error::Exhausted { tried: tries, from: first + begin })
    }

    /// At once for others who look for an id; what is in it is removed beside.
    fn release(&mut self, folder: &Path) {
        self.removed += 1;
        let gone = self.base.join(format!("{GONE}{}-{}-{}", self.agent, std::process::id(), self.removed));
        match fs::rename(folder, &gone) {
            Ok(()) => remove_later(gone),
            Err(error) => tracing::warn!(folder = %folder.display(), %error, "folder of a workload not removed"),
        }
    }
}

impl Lease {
    fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(LEASE)).ok()?).ok()
    }
}

/// May everybody read this file? A folder that others cannot enter closes what is in it.
fn is_open(file: &Path) -> bool {
    let allows = |path: &Path, bit: u32| fs::metadata(path).is_ok_and(|found| found.mode() & bit != 0);
    let whole = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    allows(&whole, 0o004) && whole.ancestors().skip(1).all(|folder| allows(folder, 0o001))
}

fn make_folder(path: &Path, mode: u32) -> Result<(), Error> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        // What the umask took away is given again.
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(file("set the rights of", path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(file("make", path)(error)),
    }
}

/// Has this user a process?
fn is_running(user: u32) -> bool {
    let table = Table::new(Path::new("/proc"));
    table.pids().is_ok_and(|pids| pids.into_iter().any(|pid| table.user(pid) == Some(user)))
}

/// Why the agent cannot give these ids.
fn why_not(range: &RangeInclusive<u32>) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("the agent is not root".to_owned());
    }
    let held = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let missing = NEEDED.difference(held);
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter_names().map(|(name, _)| name).collect();
        return Some(format!("the agent lacks the capabilities {}", names.join(", ")));
    }
    for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        let text = fs::read_to_string(map).unwrap_or_default();
        if !text.lines().any(|line| covers(line, range)) {
            return Some(format!("not all of {}-{} are in {map}", range.start(), range.end()));
        }
    }
    None
}

/// Does a line of `/proc/self/uid_map` hold all of these?
fn covers(line: &str, range: &RangeInclusive<u32>) -> bool {
    let mut numbers = line.split_whitespace().map_while(|number| number.parse::<u64>().ok());
    let (Some(inside), Some(_), Some(count)) = (numbers.next(), numbers.next(), numbers.next()) else { return false };
    u64::from(*range.start()) >= inside && u64::from(*range.end()) < inside + count
}

/// A workload may have left any number of files: nothing waits for them to be removed.
fn remove_later(folder: PathBuf) {
    let removing = thread::Builder::new().name("remove".to_owned()).spawn(move || {
        if let Err(error) = remove(&folder) {
            tracing::warn!(folder = %folder.display(), %error, "folder of a workload not removed");
        }
    });
    if let Err(error) = removing {
        tracing::warn!(%error, "folder of a workload not removed: no thread");
    }
}

/// Removes a folder. However deep folders lie in each other, they are moved up and removed one after the other.
fn remove(folder: &Path) -> io::Result<()> {
    let (mut moved, mut waiting) = (0u64, vec![folder.to_owned()]);
    while let Some(next) = waiting.pop() {
        fs::set_permissions(&next, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&next)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                fs::remove_file(entry.path())?;
            } else if next == *folder {
                waiting.push(entry.path());
            } else {
                moved += 1;
                let up = folder.join(format!("{GONE}{moved}"));
                fs::rename(entry.path(), &up)?;
                waiting.push(up);
            }
        }
        if next != *folder {
            fs::remove_dir(&next)?;
        }
    }
    fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(folder: &Path, agent_folder: &Path, range: Option<RangeInclusive<u32>>) -> Options {
        Options {
            range,
            required: false,
            folder: folder.join("all"),
            agent_folder: agent_folder.to_owned(),
            keys: vec![],
        }
    }

    /// A folder that others may enter; none if the test may not give users.
    fn open_folder() -> Option<tempfile::TempDir> {
        if let Some(reason) = why_not(&RANGE) {
            println!("SKIPPED: users of their own: {reason}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        Some(dir)
    }

    fn until(what: &str, is_so: impl Fn() -> bool) {
        for _ in 0..2_000 {
            if is_so() {
                return;
            }
            thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("not within 10 s: {what}");
    }

    #[test]
    fn two_agents_never_give_the_same_user() {
        let Some(dir) = open_folder() else { return };
        let range = 1_900_000_000..=1_900_000_005;
        let mut agents: Vec<Users> = ["first", "second"]
            .iter()
            .map(|agent| Users::open(&options(dir.path(), dir.path(), Some(range.clone())), agent).unwrap())
            .collect();
        let mut given = BTreeSet::new();
        for n in 0..3 {
            for agent in &mut agents {
                let account = agent.account(&format!("i{n}")).unwrap();
                assert_eq!(fs::metadata(&account.home).unwrap().uid(), account.user.unwrap());
                assert!(range.contains(&account.user.unwrap()) && given.insert(account.user), "{account:?}");
            }
        }
        let error = agents[0].account("one-more").unwrap_err();
        assert!(matches!(error, Error::Exhausted { tried: 6, .. }), "{error}");
        agents[1].keep(|instance| instance != "i2");
        assert!(agents[0].account("one-more").is_ok(), "what one releases the other can take");
    }

    #[test]
    fn an_agent_that_starts_again_finds_its_own_users() {
        let Some(dir) = open_folder() else { return };
        let options = options(dir.path(), dir.path(), Some(RANGE));
        let before = Users::open(&options, "first").unwrap().account("a").unwrap();
        fs::write(before.home.join("kept"), "x").unwrap();
        let mut again = Users::open(&options, "first").unwrap();
        assert_eq!(again.user_of("a"), before.user);
        assert_eq!(again.account("a").unwrap(), before);
        assert!(before.home.join("kept").exists());
        again.keep(|_| false);
        assert_eq!((again.user_of("a"), before.home.exists()), (None, false));
    }

    #[test]
    fn what_an_agent_left_that_is_gone_for_good_is_released() {
        let Some(dir) = open_folder() else { return };
        let (gone, here) = (dir.path().join("gone"), dir.path().join("here"));
        [&gone, &here].iter().for_each(|folder| fs::create_dir(folder).unwrap());
        let of_gone = Users::open(&options(dir.path(), &gone, Some(RANGE)), "gone").unwrap().account("a").unwrap();
        let of_here = Users::open(&options(dir.path(), &here, Some(RANGE)), "here").unwrap().account("a").unwrap();
        fs::remove_dir(&gone).unwrap();
        Users::open(&options(dir.path(), &here, Some(RANGE)), "third").unwrap();
        assert_eq!((of_gone.home.exists(), of_here.home.exists()), (false, true));
    }

    #[test]
    fn a_folder_that_is_closed_to_workloads_is_refused() {
        let Some(dir) = open_folder() else { return };
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let error = Users::open(&options(dir.path(), dir.path(), Some(RANGE)), "a").unwrap_err();
        assert!(matches!(&error, Error::Closed(closed) if closed == dir.path()), "{error}");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        fs::set_permissions(dir.path().join("all"), fs::Permissions::from_mode(0o777)).unwrap();
        let error = Users::open(&options(dir.path(), dir.path(), Some(RANGE)), "a").unwrap_err();
        assert!(matches!(error, Error::Foreign(_)), "{error}");
    }

    #[test]
    fn a_key_that_workloads_could_read_is_refused() {
        let Some(dir) = open_folder() else { return };
        let key = dir.path().join("agent.nk");
        fs::write(&key, "x").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let mut options = options(dir.path(), dir.path(), Some(RANGE));
        options.keys.push(key.clone());
        let error = Users::open(&options, "a").unwrap_err();
        assert!(matches!(&error, Error::OpenKey(open) if *open == key), "{error}");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Users::open(&options, "a").is_ok());
    }

    #[test]
    fn without_users_of_their_own_instances_have_folders() {
        let dir = tempfile::tempdir().unwrap();
        let mut users = Users::open(&options(dir.path(), dir.path(), None), "a").unwrap();
        let account = users.account("i").unwrap();
        assert_eq!(account, Account { user: None, home: dir.path().join("workloads/i") });
        assert!(matches!(users.account("../up"), Err(Error::Instance(_))));
        users.keep(|_| false);
        until("it is removed", || fs::read_dir(dir.path().join("workloads")).unwrap().count() == 0);
    }

    #[test]
    fn folders_in_each_other_are_removed_however_deep() {
        let dir = tempfile::tempdir().unwrap();
        let (top, outside) = (dir.path().join("top"), dir.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        // Deeper than a path can name.
        fs::create_dir_all((0..1_900).fold(top.clone(), |path, _| path.join("d"))).unwrap();
        for _ in 0..300 {
            let above = dir.path().join("above");
            fs::create_dir(&above).unwrap();
            fs::rename(top.join("d"), above.join("d")).unwrap();
            fs::rename(&above, top.join("d")).unwrap();
        }
        let closed = top.join("closed");
        fs::create_dir(&closed).unwrap();
        fs::write(closed.join("file"), "x").unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        std::os::unix::fs::symlink(&outside, top.join("link")).unwrap();
        remove(&top).unwrap();
        assert!(!top.exists() && outside.join("kept").exists());
    }

    #[test]
    fn a_user_namespace_has_to_hold_the_whole_range() {
        assert!(covers("         0          0 4294967295", &RANGE));
        assert!(!covers("0 100000 65536", &RANGE));
        assert!(covers("0 100000 65536", &(1_000..=65_535)) && !covers("0 100000 65536", &(1_000..=65_536)));
        assert!(!covers("", &RANGE));
    }
}
