//! A gateway that is a process of its own, on a bus of its own.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use mesh_bus::Bus;
use mesh_client::OWNER;
use mesh_kit::{Secret, Settings};
use mesh_proto::{
    AnyEvent, derived_id,
    storage::{DefinePolicy, Location, Policy, Redundancy, RegisterLocation},
};
use s3_client::{Client as S3, Credentials};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

use super::SHAPE;
use crate::{report::most_held, rig::Rig};

/// Anything of the start takes no longer.
const STEP_LIMIT: Duration = Duration::from_secs(60);

/// A gateway as shipped.
pub(super) struct Gateway {
    child: Child,
    pub(super) address: String,
    person: Bus,
    folder: tempfile::TempDir,
    _rig: Rig,
}

impl Gateway {
    pub(super) async fn start(set: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("continuum-bench-").tempdir().context("make a folder")?;
        let rig = Rig::start().await?;
        let person = rig.bus("person").await?;
        let settings = Settings {
            bus_url: rig.server.url(),
            bus_seed_file: Some(Secret::at(rig.key("secure-storage")?)),
            data_dir: Some(folder.path().to_owned()),
            log_level: "error".into(),
            ..Settings::default()
        };
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let program = std::env::current_exe().context("find this program")?.with_file_name("secure-storage");
        let child = Command::new(&program)
            .args(mesh_kit::config::arguments(&settings)?)
            .args(["--set", &format!("s3_listen={address}")])
            .args(set.iter().flat_map(|pair| ["--set", pair]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}; build it: cargo build -p secure-storage", program.display()))?;
        let begun = Instant::now();
        while TcpStream::connect(&address).await.is_err() {
            ensure!(begun.elapsed() < STEP_LIMIT, "the gateway does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Self { child, address, person, folder, _rig: rig })
    }

    /// MiB that it has held at most.
    pub(super) fn most_held(&self) -> anyhow::Result<f64> {
        let pid = self.child.id().context("the gateway has ended")?;
        most_held(&pid.to_string()).context("read the gateway's memory")
    }

    /// A bucket whose objects are three fragments and one redundant one, in four folders.
    pub(super) async fn bucket(&self) -> anyhow::Result<S3> {
        let mut edge_devices = vec![];
        for number in 0..SHAPE.0 + SHAPE.1 {
            let location = format!("bench-{number}");
            let description =
                Some(Location { kind: "edge".into(), url: format!("dir:{location}"), ..Location::default() });
            self.ask(&RegisterLocation { owner: OWNER.into(), location: location.clone(), description }).await?;
            edge_devices.push(location);
        }
        let redundancy = Some(Redundancy { scheme: "RS".into(), redundant_packets: SHAPE.1 as u32 });
        let definition = Some(Policy { edge_devices, redundancy, ..Policy::default() });
        self.ask(&DefinePolicy { owner: OWNER.into(), policy: "bench".into(), definition }).await?;
        let text = std::fs::read_to_string(self.folder.path().join("access.keys")).context("read the S3 keys")?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let [access, secret, ..] = words[..] else { bail!("the S3 keys are not as expected") };
        let credentials = Credentials { access: access.into(), secret: secret.into() };
        let bucket = S3::new(&format!("http://{}/bench", self.address), "local", credentials, STEP_LIMIT)?;
        bucket.make_bucket("bench").await?;
        Ok(bucket)
    }

    /// Sends a command and waits for the fact that answers it.
    async fn ask(&self, command: &dyn AnyEvent) -> anyhow::Result<()> {
        let id = derived_id(&["bench", &uuid::Uuid::new_v4().to_string()]);
        let log = self.person.log("STORAGE");
        let mut tail = log.tail("storage.>", log.last_sequence().await? + 1);
        self.person.publish(&mesh_core::Outgoing::new(command, id.clone(), mesh_client::now())?).await?;
        let answered = async {
            loop {
                let fact = tail.next().await?;
                if fact.cause.as_ref().is_some_and(|cause| cause.id == id) {
                    ensure!(!fact.subject.starts_with("storage.refused."), "refused: {}", fact.subject);
                    return anyhow::Ok(());
                }
            }
        };
        tokio::time::timeout(STEP_LIMIT, answered).await.context("no answer")?
    }
}
