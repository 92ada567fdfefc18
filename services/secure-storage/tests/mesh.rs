//! Gateways as processes of their own on a real bus, with no other rights than the contract's, and two S3 clients of
//! other makers in front of them.
//!
//! | variable | meaning | default |
//! | --- | --- | --- |
//! | `CONTINUUM_CYCLES` | gateways killed while they write | 6 |
//! | `CONTINUUM_LARGE_BYTES` | size of the largest object | 40,000,000 |

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]

#[path = "mesh/tools.rs"]
mod tools;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use mesh_bus::Bus;
use mesh_core::{Outgoing, Stored};
use mesh_kit::Settings;
use mesh_proto::{
    AnyEvent, Timestamp, derived_id,
    object::{ObjectStored, ScrubEnded},
    storage::{Location, LocationRegistered, RegisterLocation, RequestScrub, RetireLocation},
};
use mesh_test::TestBus;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

/// A test waits for anything at most this long.
const PATIENCE: Duration = Duration::from_secs(120);
const OWNER: &str = "local";

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn python() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/test/bin/python");
    if !path.is_file() {
        println!("SKIPPED: secure-storage: no .tools/test/bin/python (run `make setup-test`)");
        return None;
    }
    Some(path)
}

/// A bus, a person on it, and the data folder that the gateways of one site share.
struct Site {
    test_bus: TestBus,
    person: Bus,
    asked: std::sync::atomic::AtomicU64,
}

struct Gateway {
    child: Child,
    endpoint: String,
}

impl Site {
    /// `None`, with a printed line, without a nats-server or clients. Every write is synced: what is acknowledged is kept.
    async fn start(test: &str) -> Option<Self> {
        python()?;
        let test_bus = TestBus::start_with(&format!("secure-storage, {test}"), |_| {}).await?;
        let person = test_bus.connect("person").await;
        Some(Self { test_bus, person, asked: 0.into() })
    }

    fn data(&self) -> PathBuf {
        self.test_bus.folder().join("storage")
    }

    fn location(&self, name: &str) -> PathBuf {
        self.data().join("locations").join(name)
    }

    /// A gateway process; all of them share keys and locations, as gateways of one site do.
    async fn gateway(&self, set: &[&str]) -> Gateway {
        let settings = Settings {
            data_dir: Some(self.data()),
            log_level: "warn".into(),
            drain_limit_ms: Settings::default().drain_limit_ms,
            ..self.test_bus.settings("secure-storage")
        };
        let address = mesh_test::free_address().to_string();
        let mut arguments = mesh_kit::config::arguments(&settings).unwrap();
        for pair in [format!("s3_listen={address}").as_str()].iter().chain(set) {
            arguments.extend(["--set".to_owned(), (*pair).to_owned()]);
        }
        let log = std::fs::File::options().create(true).append(true).open(self.test_bus.folder().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_secure-storage"))
            .args(arguments)
            // The gateway's own configuration comes by such variables, too.
            .env_remove("CONTINUUM_CYCLES")
            .env_remove("CONTINUUM_LARGE_BYTES")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while tokio::net::TcpStream::connect(&address).await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "the gateway does not answer: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Gateway { child, endpoint: format!("http://{address}") }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.test_bus.folder().join("log")).unwrap_or_default()
    }

    /// Sends a command and gives the one fact that answers it.
    async fn ask(&self, command: &dyn AnyEvent) -> Stored {
        let number = self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let id = derived_id(&["test", &number.to_string()]);
        let log = self.person.log("STORAGE");
        let mut tail = log.tail("storage.>", log.last_sequence().await.unwrap() + 1);
        let message = Outgoing::new(command, id.clone(), Timestamp::from_millis(1_000)).unwrap();
        self.person.publish(&message).await.unwrap();
        let answered = async {
            loop {
                let fact = tail.next().await.unwrap();
                if fact.cause.as_ref().is_some_and(|cause| cause.id == id) {
                    return fact;
                }
            }
        };
        tokio::time::timeout(PATIENCE, answered).await.unwrap_or_else(|_| panic!("no answer\n{}", self.log()))
    }

    async fn register(&self, name: &str, kind: &str, url: &str) {
        let description =
            Some(Location { kind: kind.into(), url: url.into(), credentials: "other".into(), ..Location::default() });
        let fact = self.ask(&RegisterLocation { owner: OWNER.into(), location: name.into(), description }).await;
        assert!(fact.event::<LocationRegistered>().unwrap().is_some(), "{}", String::from_utf8_lossy(&fact.body));
    }

    async fn locations(&self) {
        for (name, kind) in [("e1", "edge"), ("e2", "edge"), ("e3", "edge"), ("c1", "cloud")] {
            self.register(name, kind, &format!("dir:{name}")).await;
        }
    }

    async fn scrub(&self, name: &str, repair: bool, rewrap: bool) -> ScrubEnded {
        self.scrub_of(OWNER, name, repair, rewrap).await
    }

    async fn scrub_of(&self, owner: &str, name: &str, repair: bool, rewrap: bool) -> ScrubEnded {
        self.ask(&RequestScrub { owner: owner.into(), scrub: name.into(), repair, rewrap }).await;
        let mut tail = self.person.log("OBJECT").tail(&format!("object.scrub_ended.v1.{owner}.{name}"), 1);
        let ended = tokio::time::timeout(PATIENCE, tail.next()).await;
        ended.unwrap_or_else(|_| panic!("no scrub\n{}", self.log())).unwrap().event().unwrap().unwrap()
    }

    fn access(&self) -> (String, String) {
        let text = std::fs::read_to_string(self.data().join("access.keys")).unwrap();
        let mut words = text.split_whitespace();
        (words.next().unwrap().into(), words.next().unwrap().into())
    }

    fn client(&self, gateway: &Gateway, suite: &str, argument: &str) -> Command {
        let (access, secret) = self.access();
        let mut command = Command::new(python().unwrap());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients.py");
        command.arg(script).args([suite, &gateway.endpoint, &access, &secret, argument]).kill_on_drop(true);
        command.env("AWS_EC2_METADATA_DISABLED", "true").stdin(Stdio::null());
        command
    }

    /// Runs a suite of the clients; it must hold.
    async fn holds(&self, gateway: &Gateway, suite: &str, argument: &str) -> String {
        let output = tokio::time::timeout(PATIENCE * 5, self.client(gateway, suite, argument).output()).await;
        let output = output.expect("the clients end").unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{suite}:\n{printed}{wrong}\n{}", self.log());
        printed
    }

    async fn objects(&self) -> Vec<ObjectStored> {
        let facts = self.person.log("OBJECT").read("object.stored.v1.>", 1, 10_000).await.unwrap();
        facts.iter().map(|fact| fact.event().unwrap().unwrap()).collect()
    }
}

/// Every fragment file of a location.
fn fragments(location: &Path) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(location).unwrap().map(|entry| entry.unwrap());
    let folders = folders.filter(|entry| entry.file_name().len() == 2);
    folders.flat_map(|folder| std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_s3_clients_work_and_losing_up_to_r_locations_costs_nothing() {
    let Some(site) = Site::start("acceptance").await else { return };
    let gateway = site.gateway(&["linger_ms=0", "location_limit_ms=3000"]).await;
    site.locations().await;
    let large = variable("CONTINUUM_LARGE_BYTES", 40_000_000).to_string();
    for (suite, argument) in [("acceptance", ""), ("large", large.as_str()), ("second", "")] {
        print!("{}", site.holds(&gateway, suite, argument).await);
    }

    // S8: stored bytes of three and one. Of 3,000,000 bytes, headers and tags are less than a hundredth.
    let objects = site.objects().await;
    let kept = objects.iter().rfind(|o| o.key == "kept").unwrap();
    let blob = hex::encode(&kept.parts[0].blob);
    let all = ["e1", "e2", "e3", "c1"].map(|name| site.location(name));
    let files: Vec<PathBuf> =
        all.iter().flat_map(|l| fragments(l)).filter(|f| f.display().to_string().contains(&blob)).collect();
    let stored: u64 = files.iter().map(|f| f.metadata().unwrap().len()).sum();
    assert_eq!(files.len(), 4);
    assert!((stored as f64 / 4_000_000.0 - 1.0).abs() < 0.01, "{stored}");

    // S9: no plain text in any fragment of an encrypted policy.
    for file in all.iter().flat_map(|l| fragments(l)) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(16).any(|w| w == b"something secret"), "{}", file.display());
    }

    // S11: a second read comes from the cache. No location is left to read from; one that was never read fails.
    site.holds(&gateway, "read", "").await;
    for gone in &all {
        std::fs::rename(gone, gone.with_extension("aside")).unwrap();
    }
    print!("{}", site.holds(&gateway, "cached", "").await);
    for gone in &all {
        std::fs::rename(gone.with_extension("aside"), gone).unwrap();
    }

    // S7: any one location may be missing, like a mount that vanished; without two, a clean error. This gateway caches
    // nothing, so that everything is read from locations.
    drop(gateway);
    let gateway = site.gateway(&["cache_bytes=0", "location_limit_ms=3000"]).await;
    for gone in &all {
        let aside = gone.with_extension("aside");
        std::fs::rename(gone, &aside).unwrap();
        site.holds(&gateway, "read", "").await;
        std::fs::rename(&aside, gone).unwrap();
    }
    for gone in &all[..2] {
        std::fs::rename(gone, gone.with_extension("aside")).unwrap();
    }
    print!("{}", site.holds(&gateway, "lost", "").await);
    for gone in &all[..2] {
        std::fs::rename(gone.with_extension("aside"), gone).unwrap();
    }

    // S9: a flipped bit in every fragment of one location is found, read around, and repaired.
    let hurt = fragments(&all[1]);
    for file in &hurt {
        let mut bytes = std::fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        std::fs::write(file, bytes).unwrap();
    }
    site.holds(&gateway, "read", "").await;
    let found = site.scrub("look", false, false).await;
    assert_eq!((found.rotten, found.missing, found.repaired, found.lost), (hurt.len() as u64, 0, 0, 0), "{found:?}");
    let repaired = site.scrub("repair", true, false).await;
    assert_eq!((repaired.rotten, repaired.repaired, repaired.degraded), (hurt.len() as u64, hurt.len() as u64, 0));
    let clean = site.scrub("clean", false, false).await;
    assert_eq!((clean.rotten, clean.missing, clean.degraded), (0, 0, 0), "{clean:?}");

    // A location that is destroyed is unavailable until it is registered again; then a repair fills it.
    std::fs::remove_dir_all(&all[2]).unwrap();
    site.holds(&gateway, "read", "").await;
    let unavailable = site.scrub("away", true, false).await;
    assert!(
        unavailable.missing > 0 && unavailable.repaired == 0 && unavailable.degraded > 0 && unavailable.lost == 0,
        "{unavailable:?}"
    );
    site.register("e3", "edge", "dir:e3").await;
    let filled = site.scrub("filled", true, false).await;
    assert_eq!(
        (filled.missing, filled.repaired, filled.degraded),
        (unavailable.missing, unavailable.missing, 0),
        "{filled:?}"
    );
    std::fs::rename(&all[0], all[0].with_extension("aside")).unwrap();
    site.holds(&gateway, "read", "").await;
    std::fs::rename(all[0].with_extension("aside"), &all[0]).unwrap();

    // A location in use is not retired.
    let refused = site.ask(&RetireLocation { owner: OWNER.into(), location: "e1".into() }).await;
    assert!(refused.subject.starts_with("storage.refused."), "{}", refused.subject);

    // The master key rotates: old objects are read, wrapped again, and then read without the old key. With a wrong key a
    // read is an error without bytes.
    let masters = site.data().join("master.keys");
    let old = std::fs::read_to_string(&masters).unwrap();
    let new = format!("master-2 {}\n", "5a".repeat(32));
    std::fs::write(&masters, format!("{old}{new}")).unwrap();
    drop(gateway);
    let rotated = site.gateway(&["cache_bytes=0"]).await;
    site.holds(&rotated, "read", "").await;
    let wrapped = site.scrub("rewrap", false, true).await;
    assert_eq!((wrapped.rewrapped, wrapped.lost, wrapped.degraded), (wrapped.objects, 0, 0), "{wrapped:?}");
    drop(rotated);
    std::fs::write(&masters, &new).unwrap();
    let renewed = site.gateway(&["cache_bytes=0"]).await;
    site.holds(&renewed, "read", "").await;
    drop(renewed);
    std::fs::write(&masters, format!("master-3 {}\n", "5b".repeat(32))).unwrap();
    let keyless = site.gateway(&["cache_bytes=0"]).await;
    let output = site.client(&keyless, "read", "").output().await.unwrap();
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && printed.contains("no master key named"), "{printed}");
}

/// Digests, conditions, ranges, what is refused rather than dropped, copies of parts, XML, regions, versions, tags, what a bucket
/// answers that is its owner's alone, pages of other origins, forms; and every member of S3's own model.
#[tokio::test(flavor = "multi_thread")]
async fn s3_is_what_its_clients_know_and_nothing_is_dropped() {
    let Some(site) = Site::start("clients know").await else { return };
    let gateway = site.gateway(&[]).await;
    site.locations().await;
    print!("{}", site.holds(&gateway, "clients_know", "").await);

    // No scrub takes fragments of a version for those of nothing, and another gateway reads the same.
    drop(gateway);
    let cleaner = site.gateway(&["orphan_ms=1", "cache_bytes=0", "linger_ms=0"]).await;
    site.holds(&cleaner, "versions_whole", "").await;
    let found = site.scrub("versions", true, true).await;
    assert_eq!((found.missing, found.rotten, found.lost, found.degraded), (0, 0, 0, 0), "{found:?}");
    assert_eq!(site.scrub("again", true, false).await.orphans, 0);
    print!("{}", site.holds(&cleaner, "versions_whole", "").await);
}

/// Two owners, each with a key; the second one has nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_owner_makes_a_bucket_without_further_set_up() {
    let Some(site) = Site::start("owners").await else { return };
    let gateway = site.gateway(&[]).await;
    site.locations().await;
    site.holds(&gateway, "default_policy", "").await;
    drop(gateway);
    let keys = site.data().join("access.keys");
    let before = std::fs::read_to_string(&keys).unwrap();
    std::fs::write(&keys, format!("{before}SECONDKEY secret-of-the-second newcomer\n")).unwrap();
    let gateway = site.gateway(&["cache_bytes=0"]).await;
    print!("{}", site.holds(&gateway, "owners", "SECONDKEY secret-of-the-second").await);
    // Their fragments are in the locations of the first one, and are looked after there.
    let found = site.scrub_of("newcomer", "theirs", true, false).await;
    assert!(found.objects >= 2 && found.missing + found.rotten + found.lost + found.degraded == 0, "{found:?}");
    drop(gateway);
    let alone = site.gateway(&["shared_owner="]).await;
    print!("{}", site.holds(&alone, "owners_alone", "SECONDKEY secret-of-the-second").await);
}

/// MiB that a process has held at most.
fn most_held(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.child.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// With a quarter of the memory that a gateway has by default, so that its limit matters to few and small objects.
#[tokio::test(flavor = "multi_thread")]
async fn slow_and_silent_clients_hold_no_more_memory_than_they_may() {
    let Some(site) = Site::start("many clients").await else { return };
    let writer = site.gateway(&[]).await;
    site.locations().await;
    site.holds(&writer, "large_ones", "").await;
    drop(writer);
    let memory = 32 << 20;
    let memory_bytes = format!("memory_bytes={memory}");
    let gateway = site.gateway(&["cache_bytes=0", &memory_bytes, "client_wait_ms=4000", "linger_ms=0"]).await;
    let before = most_held(&gateway);
    print!("{}", site.holds(&gateway, "many", "4").await);
    let more = most_held(&gateway) - before;
    println!("{more} MiB more for 48 clients, of which {} MiB may be of bodies and answers", memory >> 20);
    // Connections, threads and the pieces that the allocator keeps are beside it. 24 puts alone held 400 MiB before.
    assert!(more < 100, "{more} MiB more");
}

/// A tool that people own, as it comes: it signs for the region `US`.
#[tokio::test(flavor = "multi_thread")]
async fn s3cmd_works_with_the_region_that_it_comes_with() {
    let Some(s3cmd) = python().map(|python| python.with_file_name("s3cmd")).filter(|path| path.is_file()) else {
        println!("SKIPPED: secure-storage, s3cmd: no .tools/test/bin/s3cmd (run `make setup-test`)");
        return;
    };
    let Some(site) = Site::start("s3cmd").await else { return };
    let gateway = site.gateway(&[]).await;
    site.locations().await;
    site.holds(&gateway, "policies_only", "").await;
    let (access, secret) = site.access();
    let host = gateway.endpoint.trim_start_matches("http://");
    let folder = site.test_bus.folder();
    let config = format!(
        "[default]\naccess_key = {access}\nsecret_key = {secret}\nhost_base = {host}\nhost_bucket = {host}\nuse_https = False\n"
    );
    std::fs::write(folder.join("s3cfg"), config).unwrap();
    let body: Vec<u8> = (0..12_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(folder.join("sent"), &body).unwrap();
    for line in [
        "ls",
        "mb --bucket-location=hybrid s3://cmd",
        "put --multipart-chunk-size-mb=5 sent s3://cmd/a/b%20+c",
        "ls s3://cmd/a/",
        "cp s3://cmd/a/b%20+c s3://cmd/copy",
        "mv s3://cmd/copy s3://cmd/moved",
        "info s3://cmd/moved",
        "get --force s3://cmd/moved got",
        "del --recursive --force s3://cmd",
        "rb s3://cmd",
    ] {
        let output = Command::new(&s3cmd)
            .args(["-c", "s3cfg"])
            .args(line.split(' '))
            .current_dir(folder)
            .env_remove("AWS_CA_BUNDLE")
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && !printed.contains("ERROR"), "s3cmd {line}: {printed}\n{}", site.log());
    }
    assert!(std::fs::read(folder.join("got")).unwrap() == body);
}

/// S10, and crashes: of two gateways one is killed again and again while clients write through both.
#[tokio::test(flavor = "multi_thread")]
async fn gateways_killed_while_writing_lose_nothing_and_show_no_half_object() {
    let Some(site) = Site::start("kill").await else { return };
    let cycles = variable("CONTINUUM_CYCLES", 6);
    let other = site.gateway(&[]).await;
    site.locations().await;
    site.holds(&other, "acceptance", "").await;
    let path = site.test_bus.folder().join("printed");
    let mut printed = std::fs::File::create(&path).unwrap();
    for cycle in 0..cycles {
        let mut victim = site.gateway(&[]).await;
        let mut writers = vec![];
        for writer in 0..2 {
            let mut command = site.client(&victim, "writer", &((cycle * 2 + writer) * 100_000).to_string());
            writers.push(command.stdout(Stdio::piped()).spawn().unwrap());
        }
        let mut lines: Vec<_> = writers.iter_mut().map(|w| BufReader::new(w.stdout.take().unwrap()).lines()).collect();
        for lines in &mut lines {
            // Until each has been acknowledged something; then somewhere in the middle of a put.
            while let Some(line) = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap() {
                writeln!(printed, "{line}").unwrap();
                if line.starts_with("acked") {
                    break;
                }
            }
        }
        // Another place in a put each time.
        tokio::time::sleep(Duration::from_millis((cycle * 379) % 700)).await;
        victim.child.start_kill().unwrap();
        victim.child.wait().await.unwrap();
        for lines in &mut lines {
            while let Some(line) = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap() {
                writeln!(printed, "{line}").unwrap();
            }
        }
    }
    printed.sync_all().unwrap();
    let found = site.holds(&other, "check", path.to_str().unwrap()).await;
    println!("{cycles} gateways killed: {found}");
    assert!(found.contains("acknowledged objects are whole") && !found.contains("ok 0 "), "{found}");
    let scrub = site.scrub("after", true, false).await;
    assert_eq!((scrub.missing, scrub.rotten, scrub.lost, scrub.degraded), (0, 0, 0, 0), "{scrub:?}");
    // What the killed ones left behind is removed once it is old, and nothing else is.
    drop(other);
    let cleaner = site.gateway(&["orphan_ms=1", "cache_bytes=0"]).await;
    let before: usize = ["e1", "e2", "e3", "c1"].iter().map(|name| fragments(&site.location(name)).len()).sum();
    let cleaned = site.scrub("orphans", true, false).await;
    let after: usize = ["e1", "e2", "e3", "c1"].iter().map(|name| fragments(&site.location(name)).len()).sum();
    println!("{} fragments of nothing are removed, {after} are left", cleaned.orphans);
    assert_eq!((before - after) as u64, cleaned.orphans);
    assert_eq!(site.scrub("none", true, false).await.orphans, 0);
    site.holds(&cleaner, "check", path.to_str().unwrap()).await;
}

/// What a location in an S3 bucket has to hold, whoever serves it. Gives the gateway's site and the gateway, all there.
async fn holds_with_a_location_at(url: &str, access: &str, secret: &str) -> Option<(Site, Gateway)> {
    let near = Site::start("s3 location").await?;
    std::fs::write(near.test_bus.folder().join("location.keys"), format!("other {access} {secret}\n")).unwrap();
    let keys = format!("location_keys_file={}", near.test_bus.folder().join("location.keys").display());
    let gateway = near.gateway(&[&keys, "cache_bytes=0", "location_limit_ms=5000"]).await;
    for name in ["e1", "e2", "e3"] {
        near.register(name, "edge", &format!("dir:{name}")).await;
    }
    near.register("c1", "cloud", url).await;
    near.holds(&gateway, "acceptance", "").await;
    // Without one edge, a read needs the S3 location.
    std::fs::rename(near.location("e1"), near.location("e1").with_extension("aside")).unwrap();
    near.holds(&gateway, "read", "").await;
    std::fs::rename(near.location("e1").with_extension("aside"), near.location("e1")).unwrap();
    let clean = near.scrub("clean", true, false).await;
    assert!(clean.objects > 5 && clean.missing + clean.rotten + clean.lost == 0, "{clean:?}");
    Some((near, gateway))
}

/// Of a second, independent deployment of this very gateway.
#[tokio::test(flavor = "multi_thread")]
async fn a_location_may_be_a_bucket_of_another_gateway() {
    let Some(far) = Site::start("s3 location").await else { return };
    let server = far.gateway(&[]).await;
    far.locations().await;
    far.holds(&server, "acceptance", "").await;
    let (access, secret) = far.access();
    let url = format!("{}/open/of-another", server.endpoint);
    let Some((near, gateway)) = holds_with_a_location_at(&url, &access, &secret).await else { return };
    // Without the server, the edges suffice.
    drop(server);
    near.holds(&gateway, "read", "").await;
}

/// Of a server of another maker: moto.
#[tokio::test(flavor = "multi_thread")]
async fn a_location_may_be_a_bucket_of_a_server_of_another_maker() {
    let Some(moto) = python().map(|python| python.with_file_name("moto_server")).filter(|path| path.is_file()) else {
        println!("SKIPPED: secure-storage, s3 location: no .tools/test/bin/moto_server (run `make setup-test`)");
        return;
    };
    let address = mesh_test::free_address().to_string();
    let (host, port) = address.split_once(':').unwrap();
    let mut command = Command::new(moto);
    command.args(["-H", host, "-p", port]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = command.kill_on_drop(true).spawn().unwrap();
    let begun = Instant::now();
    while tokio::net::TcpStream::connect(&address).await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "moto does not answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let make = "import boto3,sys;boto3.client('s3',endpoint_url=sys.argv[1],aws_access_key_id='a',\
                aws_secret_access_key='s',region_name='us-east-1').create_bucket(Bucket='fragments')";
    let made = Command::new(python().unwrap()).args(["-c", make, &format!("http://{address}")]).status().await.unwrap();
    assert!(made.success());
    let url = format!("http://{address}/fragments/here");
    let Some((near, gateway)) = holds_with_a_location_at(&url, "a", "s").await else { return };
    drop(server);
    near.holds(&gateway, "read", "").await;
}
