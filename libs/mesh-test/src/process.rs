//! A service's program as a process of its own, which can be killed and started again.

use std::process::{Child, Command, Stdio};

use mesh_kit::Settings;

use crate::{TestBus, free_address, until};

/// A program that runs on a test's bus. It is killed when this is dropped.
pub struct Process {
    child: Child,
    command: Command,
    endpoint: String,
}

impl Process {
    /// Starts a program with the rights of an identity, and with these variables beside its settings. It writes to where the
    /// test does.
    pub fn start(test_bus: &TestBus, identity: &str, program: &str, environment: &[(&str, &str)]) -> Self {
        let listen = free_address().to_string();
        let endpoint = format!("http://{listen}");
        let settings = Settings { listen, ..test_bus.settings(identity) };
        let mut command = Command::new(program);
        command.args(mesh_kit::config::arguments(&settings).unwrap());
        command.envs(environment.iter().copied()).stdin(Stdio::null());
        Self { child: command.spawn().unwrap(), command, endpoint }
    }

    /// Where it answers, as a URL. It stays the same when it is started again.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        // It may have ended.
        let _ended = self.child.kill();
        self.child.wait().unwrap();
    }

    /// Kills it, and starts it again as it was.
    pub fn start_again(&mut self) {
        self.kill();
        self.child = self.command.spawn().unwrap();
    }

    /// Waits until it is ready.
    pub async fn ready(&self) {
        let page = async || crate::page(&self.endpoint, "/readyz").await.map(|(status, _)| status);
        until("a process that is ready", page, |status| *status == Some(200)).await;
    }

    /// The figure of a metric with a label, as it shows it; 0 if it does not.
    pub async fn figure(&self, name: &str, label: &str) -> f64 {
        let (_, page) = crate::page(&self.endpoint, "/metrics").await.unwrap();
        let line = page.lines().find(|line| line.starts_with(name) && line.contains(label));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
