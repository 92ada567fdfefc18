use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _};

use age::secrecy::ExposeSecret as _;

use super::*;

/// What a mesh that does not run has kept, in small.
fn mesh(folder: &Path) -> PathBuf {
    let data = folder.join("mesh");
    for (path, text) in [
        ("jetstream/jetstream/BUS/streams/INTENT/msgs/1.blk", "facts"),
        ("state/identity/issuer.keys", "secret of the issuer"),
        ("state/gateway/url", "http://127.0.0.1:1"),
        ("keys/person.nk", "seed of a person"),
        ("nats.conf", "listen: x"),
        ("run/nats-server.log", "of one run"),
        ("endpoints.json", "{}"),
    ] {
        fs::create_dir_all(data.join(path).parent().unwrap()).unwrap();
        fs::write(data.join(path), text).unwrap();
    }
    fs::create_dir_all(data.join("jetstream/jetstream/BUS/streams/INTENT/obs")).unwrap();
    fs::set_permissions(data.join("keys/person.nk"), fs::Permissions::from_mode(0o600)).unwrap();
    data
}

struct Key {
    lock: Lock,
    unlock: Unlock,
}

fn key(folder: &Path, name: &str) -> Key {
    let (text, recipient) = generate();
    let file = folder.join(name);
    fs::write(&file, text.expose_secret()).unwrap();
    Key { lock: Lock::recipients(&[recipient]).unwrap(), unlock: Unlock::identity(&file).unwrap() }
}

fn options() -> Options {
    Options { pause_max: Duration::from_millis(90), keys_apart: None, server_stopped: false, helper: vec![] }
}

/// Files with their content and rights, and folders.
fn contents(root: &Path) -> BTreeMap<PathBuf, (u32, Option<Vec<u8>>)> {
    let (mut all, mut open) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let (path, found) = (entry.path(), entry.metadata().unwrap());
            let below = path.strip_prefix(root).unwrap().to_owned();
            if LEFT_OUT.iter().any(|left| below.starts_with(left)) {
                continue;
            }
            let content = (!found.is_dir()).then(|| fs::read(&path).unwrap());
            if found.is_dir() {
                open.push(path);
            }
            all.insert(below, (found.permissions().mode() & 0o777, content));
        }
    }
    all
}

#[test]
fn what_is_restored_is_what_was_there_without_what_belongs_to_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file, to) = (mesh(dir.path()), dir.path().join("b.age"), dir.path().join("new/mesh"));
    let key = key(dir.path(), "key");
    let made = create(&data, &file, &key.lock, &options()).unwrap();
    assert_eq!((made.files, made.pause_ms, made.attempts), (5, 0.0, 0));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let bytes = fs::read(&file).unwrap();
    assert!(bytes.starts_with(b"age-encryption.org/v1") && !bytes.windows(4).any(|part| part == b"seed"));
    verify(&file, None, &key.unlock).unwrap();
    restore(&file, None, &key.unlock, &to).unwrap();
    assert_eq!(contents(&to), contents(&data));
    assert!(!to.join("run").exists() && !to.join("endpoints.json").exists());
    assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_dir(data.join("run")).unwrap().count(), 1, "nothing decrypted is left");

    let error = restore(&file, None, &key.unlock, &to).unwrap_err();
    assert!(matches!(error, Error::NotEmpty(_)), "{error}");
    let error = create(&data, &file, &key.lock, &options()).unwrap_err();
    assert!(matches!(error, Error::Exists(_)), "{error}");
}

#[test]
fn a_cut_and_a_flipped_bit_anywhere_restore_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file, to) = (mesh(dir.path()), dir.path().join("b.age"), dir.path().join("to"));
    // More than one block of the cipher.
    let noise: Vec<u8> = (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(data.join("jetstream/noise"), noise).unwrap();
    let key = key(dir.path(), "key");
    create(&data, &file, &key.lock, &options()).unwrap();
    let whole = fs::read(&file).unwrap();
    let broken = dir.path().join("broken.age");
    let refused = |bytes: &[u8], what: &str| {
        fs::write(&broken, bytes).unwrap();
        let error = restore(&broken, None, &key.unlock, &to).err();
        assert!(matches!(error, Some(Error::Damaged { .. } | Error::WrongKey { .. })), "{what}: {error:?}");
        assert!(!to.exists(), "{what}");
        let left = fs::read_dir(dir.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().path().to_string_lossy().contains(".restore"));
        assert_eq!(left.count(), 0, "{what}");
    };
    for part in 0..40 {
        let at = whole.len() * part / 40;
        refused(&whole[..at], &format!("cut at {at}"));
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (part % 8);
        refused(&flipped, &format!("a bit at {at}"));
    }
    refused(&whole[..whole.len() - 1], "the last byte");
    refused(&[whole.as_slice(), b"x"].concat(), "a byte more");
    fs::write(&broken, &whole).unwrap();
    restore(&broken, None, &key.unlock, &to).unwrap();
}

#[test]
fn a_wrong_key_and_a_wrong_passphrase_restore_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file, to) = (mesh(dir.path()), dir.path().join("b.age"), dir.path().join("to"));
    let (key, other) = (key(dir.path(), "key"), key(dir.path(), "other"));
    create(&data, &file, &key.lock, &options()).unwrap();
    let error = restore(&file, None, &other.unlock, &to).unwrap_err();
    assert!(matches!(error, Error::WrongKey { .. }) && !to.exists(), "{error}");

    let [right, wrong, short] = ["correct horse battery", "correct horse batterie", "short"].map(|text| {
        let file = dir.path().join(text.replace(' ', "-"));
        fs::write(&file, format!("{text}\n")).unwrap();
        file
    });
    assert!(matches!(Lock::passphrase(&short), Err(Error::Key(_))));
    let by_word = dir.path().join("w.age");
    create(&data, &by_word, &Lock::passphrase(&right).unwrap(), &options()).unwrap();
    let error = restore(&by_word, None, &Unlock::passphrase(&wrong).unwrap(), &to).unwrap_err();
    assert!(matches!(error, Error::WrongKey { .. }) && !to.exists(), "{error}");
    restore(&by_word, None, &Unlock::passphrase(&right).unwrap(), &to).unwrap();
    assert_eq!(contents(&to), contents(&data));
}

#[test]
fn keys_may_lie_apart_and_belong_to_one_backup() {
    let dir = tempfile::tempdir().unwrap();
    let (data, to) = (mesh(dir.path()), dir.path().join("to"));
    let key = key(dir.path(), "key");
    let made = ["1", "2"].map(|n| {
        let (file, keys) = (dir.path().join(format!("{n}.age")), dir.path().join(format!("{n}.keys.age")));
        let options = Options { keys_apart: Some(keys.clone()), ..options() };
        create(&data, &file, &key.lock, &options).unwrap();
        (file, keys)
    });
    let [(file, keys), (_, other)] = made;
    let listed = verify(&file, None, &key.unlock).unwrap();
    assert!(!listed.entries.iter().any(|entry| is_key_file(&entry.path)), "{listed:?}");
    let refused = |keys: Option<&Path>| restore(&file, keys, &key.unlock, &to).unwrap_err();
    assert!(matches!(refused(None), Error::KeysApart(_)));
    assert!(matches!(refused(Some(&other)), Error::OtherKeys { .. }));
    assert!(matches!(restore(&keys, None, &key.unlock, &to), Err(Error::Damaged { .. })));
    assert!(!to.exists());
    restore(&file, Some(&keys), &key.unlock, &to).unwrap();
    assert_eq!(contents(&to), contents(&data));
}

/// A backup with this list of contents and these entries, as anybody who knows the recipient can make it.
fn forged(file: &Path, lock: &Lock, list: &serde_json::Value, entries: &[(&str, &[u8])]) {
    let age = lock.encryptor().unwrap().wrap_output(fs::File::create(file).unwrap()).unwrap();
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(age, flate2::Compression::fast()));
    let text = serde_json::to_vec(list).unwrap();
    for (path, content) in [("manifest.json", text.as_slice())].iter().chain(entries) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        let name = header.as_gnu_mut().unwrap();
        name.name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        tar.append(&header, *content).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap().finish().unwrap();
}

#[test]
fn a_forged_backup_writes_nowhere_else_and_a_later_release_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (file, to) = (dir.path().join("f.age"), dir.path().join("to"));
    let key = key(dir.path(), "key");
    let entry = |path: &str| serde_json::json!({"path": path, "folder": false, "mode": 0o777, "bytes": 1, "sha256": hex::encode(<sha2::Sha256 as sha2::Digest>::digest(b"x"))});
    let list = |entries: Vec<serde_json::Value>| serde_json::json!({"format": 1, "id": "i", "release": "0.0.1", "made_at_s": 0, "kind": {"data": {"keys_apart": false}}, "entries": entries});
    for path in ["../up", "/etc/up", "a/b", "run/x", "endpoints.json", "", "./x"] {
        forged(&file, &key.lock, &list(vec![entry(path)]), &[(path, b"x")]);
        let error = restore(&file, None, &key.unlock, &to).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }) && !to.exists(), "{path}: {error}");
    }
    assert!(!dir.path().join("up").exists());
    for (entries, given) in [
        (vec![entry("a"), entry("a")], vec![("a", b"x".as_slice()), ("a", b"x")]),
        (vec![entry("a")], vec![]),
        (vec![entry("a")], vec![("a", b"y".as_slice())]),
        (vec![entry("a")], vec![("a", b"x".as_slice()), ("b", b"x")]),
        (vec![entry("a")], vec![("b", b"x".as_slice())]),
    ] {
        forged(&file, &key.lock, &list(entries), &given);
        let error = restore(&file, None, &key.unlock, &to).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }) && !to.exists(), "{given:?}: {error}");
    }
    for (field, value) in [("format", serde_json::json!(2)), ("release", serde_json::json!("99.0.0"))] {
        let mut list = list(vec![]);
        list[field] = value;
        forged(&file, &key.lock, &list, &[]);
        let error = restore(&file, None, &key.unlock, &to).unwrap_err();
        assert!(matches!(error, Error::Newer { .. }), "{error}");
    }
}

#[test]
fn a_mesh_that_does_not_run_cannot_be_started_while_it_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let data = mesh(dir.path());
    let running = pause::find(&data, false).unwrap();
    assert!(matches!(running, pause::Running::Nothing(_)));
    assert!(fs::File::open(data.join("lock")).unwrap().try_lock().is_err());
    drop(running);
    assert!(fs::File::open(data.join("lock")).unwrap().try_lock().is_ok());
    let error = create(dir.path(), &dir.path().join("b.age"), &key(dir.path(), "k").lock, &options()).unwrap_err();
    assert!(matches!(error, Error::NoMesh(_)), "{error}");
}

/// The same as containers have it, each part in a volume of its own.
fn volumes(folder: &Path) -> PathBuf {
    let data = mesh(folder);
    fs::create_dir_all(data.join("streams/lost+found")).unwrap();
    fs::rename(data.join("jetstream"), data.join("streams/jetstream")).unwrap();
    fs::create_dir_all(data.join("secrets/accounting")).unwrap();
    fs::write(data.join("secrets/accounting/ledger.key"), "of the ledger").unwrap();
    data
}

#[test]
fn volumes_are_restored_into_empty_ones_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file, to) = (volumes(dir.path()), dir.path().join("b.age"), dir.path().join("restored"));
    let (key, apart) = (key(dir.path(), "key"), dir.path().join("keys.age"));
    let options = Options { keys_apart: Some(apart.clone()), server_stopped: true, ..options() };
    create(&data, &file, &key.lock, &options).unwrap();
    fs::remove_dir(data.join("streams/lost+found")).unwrap();
    let kept = verify(&file, Some(&apart), &key.unlock).unwrap();
    assert!(!kept.entries.iter().any(|entry| entry.path.contains("ledger.key")), "{kept:?}");

    for volume in ["streams/lost+found", "state/identity", "secrets/accounting", "keys", "run"] {
        fs::create_dir_all(to.join(volume)).unwrap();
    }
    fs::write(to.join("run/fetched"), "kept").unwrap();
    let whole = fs::read(&apart).unwrap();
    fs::write(&apart, &whole[..whole.len() - 9]).unwrap();
    let error = restore(&file, Some(&apart), &key.unlock, &to).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert!(check_empty(&to).unwrap());
    fs::write(&apart, &whole).unwrap();
    // Where something cannot be written, what was written before is removed again.
    fs::create_dir(to.join("nats.conf")).unwrap();
    let error = restore(&file, Some(&apart), &key.unlock, &to).unwrap_err();
    assert!(matches!(error, Error::File { .. }) && check_empty(&to).unwrap(), "{error}");
    fs::remove_dir(to.join("nats.conf")).unwrap();
    restore(&file, Some(&apart), &key.unlock, &to).unwrap();
    fs::remove_dir(to.join("streams/lost+found")).unwrap();
    assert_eq!(contents(&to), contents(&data));
    assert!(to.join("run/fetched").exists());
    let error = restore(&file, Some(&apart), &key.unlock, &to).unwrap_err();
    assert!(matches!(error, Error::NotEmpty(_)), "{error}");
}

#[test]
fn a_volume_without_room_is_named_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir_all(data.join("streams")).unwrap();
    let entry =
        |path: &str, bytes| Entry { path: path.into(), folder: false, mode: 0o600, bytes, sha256: String::new() };
    let small = [entry("streams/jetstream/1.blk", 1_000), entry("state/identity/issuer.keys", 32)];
    check_room(&data, &small).unwrap();
    let large = [entry("streams/jetstream/1.blk", 1 << 60), entry("streams/jetstream/2.blk", 1 << 60)];
    let error = check_room(&data, &large).unwrap_err();
    let Error::NoSpace { folder, free, needed } = error else { panic!("{error}") };
    assert_eq!((folder, needed), (data.join("streams"), SPARE_BYTES + (2 << 60)));
    assert!(free < needed);
}

#[test]
fn volumes_without_a_visible_server_need_the_word_that_it_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (data, key) = (volumes(dir.path()), key(dir.path(), "k"));
    let error = create(&data, &dir.path().join("b.age"), &key.lock, &options()).unwrap_err();
    assert!(matches!(error, Error::NoServerSeen(_)), "{error}");
}

#[test]
fn a_server_that_stands_still_is_continued_later() {
    let mut server = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let pid = nix::unistd::Pid::from_raw(server.id().cast_signed());
    let state = || procfs::process::Process::new(pid.as_raw()).unwrap().stat().unwrap().state;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    while state() != 'T' {
        std::thread::yield_now();
    }
    continue_later(pid.as_raw()).unwrap();
    while state() == 'T' {
        std::thread::yield_now();
    }
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(continue_later(i32::MAX).is_err());
}

#[test]
fn streams_that_change_although_the_server_is_stopped_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (data, key) = (volumes(dir.path()), key(dir.path(), "k"));
    let (file, ended) = (dir.path().join("b.age"), std::sync::atomic::AtomicBool::new(false));
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            let block = data.join("streams/jetstream/jetstream/BUS/streams/INTENT/msgs/1.blk");
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                fs::write(&block, uuid::Uuid::new_v4().to_string()).unwrap();
            }
        });
        let options = Options { server_stopped: true, ..options() };
        let outcome = create(&data, &file, &key.lock, &options);
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
        outcome.unwrap_err()
    });
    assert!(matches!(error, Error::Changed(_)) && !file.exists(), "{error}");
}
