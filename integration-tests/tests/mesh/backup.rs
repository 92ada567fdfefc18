//! A mesh is backed up while intents are submitted, and restored in another folder: it has the same facts, and goes on.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use mesh_core::Stored;
use mesh_proto::{contract::Kind, intent::FulfilmentStatus};
use serde_json::json;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
};

use crate::support::{self, LIMIT, MeshRun, cluster, command_id, document, intent, submit};

/// A command is late once it is acknowledged after this.
const LATE: Duration = Duration::from_millis(100);
/// Longest that the mesh may stand still. `continuum bench backup` has the bound on commands: here others share the machine.
const PAUSE_MAX_MS: f64 = 100.0;

/// All facts of all streams of decided facts, with their positions.
async fn facts(mesh: &MeshRun) -> BTreeMap<String, Vec<Stored>> {
    let mut all = BTreeMap::new();
    for stream in mesh_proto::contract().streams.iter().filter(|stream| stream.kind == Kind::Facts) {
        all.insert(stream.name.clone(), mesh.facts(&stream.name).await);
    }
    all
}

/// The last sequence of each of these streams.
async fn positions(mesh: &MeshRun) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for stream in mesh_proto::contract().streams.iter().filter(|stream| stream.kind == Kind::Facts) {
        all.insert(stream.name.clone(), mesh.bus.log(&stream.name).last_sequence().await.unwrap());
    }
    all
}

async fn backup(mesh: &MeshRun, arguments: &[&str]) -> serde_json::Value {
    let output = mesh.cli(&[&["-o", "json", "backup"], arguments].concat()).await;
    assert!(output.status.success(), "{arguments:?}: {}", support::text(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_restores_the_same_mesh_which_goes_on() {
    let (rate, seconds, backups) = if support::is_full() { (50, 60, 3) } else { (25, 16, 1) };
    let clusters = [cluster("sim", "simulated", 1_000_000, 1_000_000)];
    let Some(mut mesh) = MeshRun::start("backup", &clusters, &[]).await else { return };
    mesh.register(document("model", "sleep", &["1000000"], json!({"driver": "simulated"}))).await;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (key, file, restored) = (path("key"), path("mesh.age"), path("restored"));
    let made = mesh.cli(&["backup", "key", &key]).await;
    let recipient = support::text(&made).trim().to_owned();

    // Intents at a steady rate, whatever the answers do; the backups fall into the middle.
    let count: u32 = rate * seconds;
    let begun = Instant::now();
    let sending = stream::iter(0..count).map(async |n| {
        let due = begun + Duration::from_secs(1) * n / rate;
        tokio::time::sleep_until(due.into()).await;
        let mut wanted = intent("model", &[("ramUsage", "500")]);
        wanted["observationPeriod"] = json!(5);
        let id = format!("intent-{n}");
        mesh.send(&submit(&id, wanted), &command_id(&id)).await;
        due.elapsed()
    });
    let sending = sending.buffer_unordered(count as usize).collect::<Vec<Duration>>();
    let taking = async {
        let mut all = vec![];
        for n in 0..backups {
            tokio::time::sleep(Duration::from_secs(u64::from(seconds / (backups + 1)))).await;
            let _replaced = std::fs::remove_file(&file);
            let before = positions(&mesh).await;
            let begun = Instant::now();
            let made = backup(&mesh, &["create", &file, "--recipient", &recipient]).await;
            println!("backup {n}: {made} in {:.1} s", begun.elapsed().as_secs_f64());
            all.push((before, made));
        }
        all
    };
    let (mut waited, mut made) = tokio::join!(sending, taking);
    waited.sort_unstable();
    let late = waited.iter().filter(|time| **time > LATE).count();
    println!(
        "{count} commands at {rate}/s: {late} later than {LATE:?}, half within {:?}, the slowest {:?}",
        waited[waited.len() / 2],
        waited.last().unwrap()
    );
    for (_, made) in &made {
        assert!(made["pause_ms"].as_f64().unwrap() <= PAUSE_MAX_MS, "{made}");
    }
    let (before, _) = made.pop().unwrap();
    // Everything that the backup can hold is in here.
    let original = facts(&mesh).await;
    mesh.down().await;

    // Nothing of a backup that is not whole, or with another key.
    let whole = std::fs::read(&file).unwrap();
    let (broken, other) = (path("broken.age"), path("other"));
    assert!(mesh.cli(&["backup", "key", &other]).await.status.success());
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for (bytes, key) in [(&whole[..whole.len() - 70_000], &key), (&flipped, &key), (&whole, &other)] {
        std::fs::write(&broken, bytes).unwrap();
        let refused = support::cli(Path::new(&restored), &["backup", "restore", &broken, "--identity", key]).await;
        assert!(!refused.status.success() && !Path::new(&restored).exists(), "{}", support::text(&refused));
    }

    // Elsewhere.
    let done = support::cli(Path::new(&restored), &["backup", "restore", &file, "--identity", &key]).await;
    assert!(done.status.success(), "{}", support::text(&done));
    mesh.move_to(Path::new(&restored));
    mesh.up_again().await;
    let found = facts(&mesh).await;
    let mut kept = 0;
    for (stream, last) in &before {
        let (found, original) = (&found[stream], &original[stream]);
        // Beyond the moment of the backup it goes its own way.
        let same = found.iter().zip(original).take_while(|(a, b)| is_same(a, b)).count();
        let expected = original.iter().filter(|fact| fact.sequence <= *last).count();
        assert!(same >= expected, "{stream}: the same up to {same}, at least {expected} expected");
        kept += same;
    }
    println!("{kept} facts are the same");

    // It goes on: what was submitted before the backup is fulfilled, and so is what comes now.
    let is_submitted =
        |fact: &&Stored| fact.sequence <= before["INTENT"] && fact.subject.starts_with("intent.submitted.");
    let submitted = original["INTENT"].iter().filter(is_submitted).count();
    assert!(submitted > 0);
    mesh.until("what was submitted is fulfilled", async || {
        let facts = mesh.facts("INTENT").await;
        let is_fulfilled = |fact: &&Stored| {
            support::state_of(fact).is_some_and(|s| s.fulfilment_status() == FulfilmentStatus::Fulfilled)
        };
        let ids: std::collections::BTreeSet<&str> =
            facts.iter().filter(is_fulfilled).filter_map(|fact| fact.subject.rsplit('.').next()).collect();
        (ids.len() >= submitted).then_some(())
    })
    .await;
    tokio::time::timeout(LIMIT, mesh.fulfil("afterwards", "model")).await.unwrap();
}

fn is_same(a: &Stored, b: &Stored) -> bool {
    (a.sequence, &a.subject, &a.message, &a.body) == (b.sequence, &b.subject, &b.message, &b.body)
}

/// The S3 server of a mesh, with a bucket: the variables that name it and its keys.
struct Server {
    endpoint: String,
    access: String,
    secret: String,
}

impl Server {
    async fn of(mesh: &MeshRun, bucket: &str) -> Self {
        let run = async |arguments: &[&str]| {
            let output = mesh.cli(arguments).await;
            assert!(output.status.success(), "{arguments:?}: {}", support::text(&output));
            output.stdout
        };
        run(&["storage", "location", "register", "here", "--url", "dir:here"]).await;
        let policy = mesh.folder().with_extension("policy.json");
        std::fs::write(&policy, json!({"name": "default", "edgeDevices": ["here"]}).to_string()).unwrap();
        run(&["storage", "policy", "define", policy.to_str().unwrap()]).await;
        run(&["storage", "object", "bucket", bucket]).await;
        let health: serde_json::Value =
            serde_json::from_slice(&run(&["-o", "json", "storage", "health"]).await).unwrap();
        let keys = std::fs::read_to_string(mesh.folder().join("state/secure-storage/access.keys")).unwrap();
        let mut keys = keys.split_whitespace().map(str::to_owned);
        let (access, secret) = (keys.next().unwrap(), keys.next().unwrap());
        Self { endpoint: health["s3Endpoint"].as_str().unwrap().to_owned(), access, secret }
    }

    fn variables(&self) -> [(&str, &str); 4] {
        [
            ("AWS_ENDPOINT_URL", &self.endpoint),
            ("AWS_ACCESS_KEY_ID", &self.access),
            ("AWS_SECRET_ACCESS_KEY", &self.secret),
            ("AWS_SESSION_TOKEN", ""),
        ]
    }

    /// The same server behind an address that closes each connection which has sent this many bytes to it.
    async fn cut_after(&self, bytes: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let to = self.endpoint.strip_prefix("http://").unwrap().to_owned();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let to = to.clone();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(to).await.unwrap();
                    let (from_client, mut to_client) = client.split();
                    let (mut from_server, mut to_server) = server.split();
                    let mut from_client = from_client.take(bytes);
                    tokio::select! {
                        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
                    }
                });
            }
        });
        Self { endpoint, access: self.access.clone(), secret: self.secret.clone() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_in_a_bucket_of_another_mesh_is_restored_from_there() {
    let clusters = [cluster("sim", "simulated", 1_000_000, 1_000_000)];
    let Some(mut mesh) = MeshRun::start("backup in a bucket", &clusters, &[]).await else { return };
    mesh.register(document("model", "sleep", &["1000000"], json!({"driver": "simulated"}))).await;
    mesh.fulfil("before", "model").await;
    let storage = mesh.start_beside(&clusters).await;
    let server = Server::of(&storage, "backups").await;
    // More than one part of an upload, and nothing that can be compressed.
    let mut word = 1u64;
    let noise = std::iter::repeat_with(|| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()
    });
    let noise: Vec<u8> = noise.take(2_500_000).flatten().collect();
    std::fs::write(mesh.folder().join("state/noise"), &noise).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (key, other, restored) = (path("key"), path("other"), path("restored"));
    let recipient = support::text(&mesh.cli(&["backup", "key", &key]).await).trim().to_owned();
    assert!(mesh.cli(&["backup", "key", &other]).await.status.success());
    let (file, keys) = ("s3://backups/daily/mesh.age", "s3://backups/daily/keys.age");
    let original = mesh.folder();
    let run = async |folder: &Path, arguments: &[&str], variables: &[(&str, &str)]| {
        support::cli_with(folder, &[&["-o", "json", "backup"], arguments].concat(), variables).await
    };
    let refused = async |arguments: &[&str], variables: &[(&str, &str)], words: &str| {
        let output = run(&original, arguments, variables).await;
        let text = support::text(&output);
        assert!(!output.status.success() && text.contains(words), "{arguments:?}, not {words:?}: {text}");
    };
    let uploads = async |kind: &str| storage.facts("OBJECT").await.iter().filter(|f| f.message.ends_with(kind)).count();
    let create = ["create", file, "--keys-apart", keys, "--recipient", &recipient];

    // What is wrong with the server or its keys is named before anything is copied.
    let with = |name: &'static str, value: &'static str| {
        server.variables().map(|pair| if pair.0 == name { (name, value) } else { pair })
    };
    refused(&create, &with("AWS_ENDPOINT_URL", ""), "give --s3-endpoint").await;
    refused(&create, &with("AWS_ENDPOINT_URL", "nowhere"), "is not a URL; use http(s):").await;
    refused(&create, &with("AWS_ENDPOINT_URL", "http://127.0.0.1:9"), "Connection refused").await;
    refused(&create, &with("AWS_ACCESS_KEY_ID", ""), "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY").await;
    refused(&create, &with("AWS_ACCESS_KEY_ID", "unknown"), "403 Forbidden InvalidAccessKeyId").await;
    refused(&create, &with("AWS_SECRET_ACCESS_KEY", "wrong"), "403 Forbidden SignatureDoesNotMatch").await;
    refused(&create, &with("AWS_SESSION_TOKEN", "some"), "unset AWS_SESSION_TOKEN").await;
    let elsewhere = ["create", "s3://nowhere/mesh.age", "--recipient", &recipient];
    refused(&elsewhere, &server.variables(), "has no bucket /nowhere/").await;
    refused(&["create", "s3://backups", "--recipient", &recipient], &server.variables(), "write s3://BUCKET/NAME")
        .await;
    assert_eq!(uploads(".UploadStarted").await, 0);

    // A connection that ends within a part leaves neither an object nor an upload.
    refused(&create, &server.cut_after(10_000_000).await.variables(), "store s3://backups/daily/mesh.age").await;
    assert_eq!(uploads(".ObjectStored").await, 1, "the keys alone");
    storage.until("the upload is ended", async || (uploads(".UploadEnded").await == 2).then_some(())).await;
    assert_eq!(uploads(".UploadStarted").await, 2);

    let output = run(&original, &create, &server.variables()).await;
    assert!(output.status.success(), "{}", support::text(&output));
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(made["written_bytes"].as_u64().unwrap() > noise.len() as u64, "{made}");
    assert!(uploads(".PartStored").await >= 4, "one of the keys twice, two of the rest");
    let left = std::fs::read_dir(original.join("run")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.filter(|name| name.to_string_lossy().contains("backup")).count(), 0, "nothing is left");
    refused(&create, &server.variables(), "s3://backups/daily/keys.age exists; choose another name").await;

    // What is not whole, not there or not for this key is refused.
    let (whole, cut) = (path("whole.age"), path("cut.age"));
    assert!(storage.cli(&["storage", "object", "get", "backups", "daily/mesh.age", &whole]).await.status.success());
    let bytes = std::fs::read(&whole).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() - 70_000]).unwrap();
    assert!(storage.cli(&["storage", "object", "put", &cut, "backups", "daily/cut.age"]).await.status.success());
    let open = |file: &'static str, identity: &str| {
        ["verify", file, "--keys", keys, "--identity", identity].map(str::to_owned)
    };
    for (file, identity, words) in [
        ("s3://backups/daily/none.age", &key, "daily/none.age does not exist"),
        ("s3://backups/daily/cut.age", &key, "is damaged or cut"),
        (file, &other, "cannot be opened with this key"),
    ] {
        let arguments = open(file, identity);
        refused(&arguments.each_ref().map(String::as_str), &server.variables(), words).await;
    }
    let restore = |file: &'static str| ["restore", file, "--keys", keys, "--identity", &key];
    let output = run(Path::new(&restored), &restore("s3://backups/daily/cut.age"), &server.variables()).await;
    assert!(!output.status.success() && !Path::new(&restored).exists(), "{}", support::text(&output));
    let output = run(&original, &["verify", file, "--keys", keys, "--identity", &key], &server.variables()).await;
    assert!(output.status.success(), "{}", support::text(&output));

    let before = facts(&mesh).await;
    mesh.down().await;
    let output = run(Path::new(&restored), &restore(file), &server.variables()).await;
    assert!(output.status.success(), "{}", support::text(&output));
    assert!(std::fs::read(Path::new(&restored).join("state/noise")).unwrap() == noise);
    mesh.move_to(Path::new(&restored));
    mesh.up_again().await;
    let found = facts(&mesh).await;
    let intents = |facts: &BTreeMap<String, Vec<Stored>>| facts["INTENT"].len();
    assert!(intents(&before) >= 2 && intents(&found) >= 2, "{} before, {} restored", intents(&before), intents(&found));
    assert!(found["INTENT"].iter().zip(&before["INTENT"]).take(2).all(|(a, b)| is_same(a, b)));
    mesh.state("before", |state| state.fulfilment_status() == FulfilmentStatus::Fulfilled).await;
    mesh.fulfil("afterwards", "model").await;
}
