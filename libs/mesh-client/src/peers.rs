//! Where the other services answer gRPC: by the notices that they publish when they start.

use std::{collections::BTreeMap, time::Duration};

use mesh_bus::{Bus, LogError};
use mesh_core::Stored;
use mesh_proto::{Event as _, lifecycle::ServiceChanged};
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Phase of a process that answers no more.
const STOPPING: &str = "stopping";
/// Notices that are read at once.
const PAGE: usize = 1_000;

/// Why a service cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The notices cannot be read.
    #[error("read where {service} answers")]
    Notice {
        /// Which service.
        service: String,
        /// Why.
        #[source]
        source: LogError,
    },
    /// It has not started, or is stopping.
    #[error("{0} has not announced where it answers; see `continuum status`")]
    Unknown(String),
    /// Its address cannot be read.
    #[error("invalid address {0:?}")]
    Address(String),
    /// Nothing answers at its address.
    #[error("connect to {endpoint}")]
    Connect {
        /// The address.
        endpoint: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Where a service answers gRPC, `http://host:port`; `None` while it does not run. Of several processes of a service it is
/// the one that started last and has not announced that it stops.
///
/// # Errors
/// When the notices cannot be read.
pub async fn endpoint(bus: &Bus, service: &str) -> Result<Option<String>, Error> {
    let subject = ServiceChanged::filter(&[service]);
    let wrong = |source| Error::Notice { service: service.to_owned(), source };
    let log = bus.log(ServiceChanged::STREAM);
    let Some(last) = log.last(&subject).await.map_err(wrong)? else { return Ok(None) };
    let notice = |stored: &Stored| stored.event::<ServiceChanged>().ok().flatten();
    let latest = notice(&last).filter(|notice| notice.phase != STOPPING);
    if latest.is_some() {
        return Ok(latest.map(|notice| notice.endpoint).filter(|endpoint| !endpoint.is_empty()));
    }
    // The last notice is of a process that stops; others may run beside it.
    let (mut running, mut from) = (Vec::<ServiceChanged>::new(), 1);
    loop {
        let page = log.read(&subject, from, PAGE).await.map_err(wrong)?;
        let Some(end) = page.last() else { break };
        from = end.sequence + 1;
        for notice in page.iter().filter_map(notice) {
            running.retain(|known| known.process != notice.process);
            if notice.phase != STOPPING {
                running.push(notice);
            }
        }
    }
    Ok(running.pop().map(|notice| notice.endpoint).filter(|endpoint| !endpoint.is_empty()))
}

/// A channel to a gRPC address, `http://host:port`.
///
/// # Errors
/// When nothing answers there.
pub async fn connect(endpoint: &str) -> Result<Channel, Error> {
    let address = Endpoint::from_shared(endpoint.to_owned()).map_err(|_| Error::Address(endpoint.to_owned()))?;
    let connected = address.connect_timeout(CONNECT_LIMIT).connect().await;
    connected.map_err(|source| Error::Connect { endpoint: endpoint.to_owned(), source })
}

/// Channels to services, each made when it is first wanted and kept.
pub struct Peers {
    bus: Bus,
    channels: Mutex<BTreeMap<String, Channel>>,
}

impl Peers {
    /// Without channels yet.
    pub fn new(bus: Bus) -> Self {
        Self { bus, channels: Mutex::default() }
    }

    /// A channel to a service.
    ///
    /// # Errors
    /// When it does not run, as far as is known.
    pub async fn channel(&self, service: &str) -> Result<Channel, Error> {
        let known = self.channels.lock().get(service).cloned();
        if let Some(channel) = known {
            return Ok(channel);
        }
        let found = endpoint(&self.bus, service).await?.ok_or_else(|| Error::Unknown(service.to_owned()))?;
        let address = Endpoint::from_shared(found.clone()).map_err(|_| Error::Address(found))?;
        let channel = address.connect_timeout(CONNECT_LIMIT).tcp_nodelay(true).connect_lazy();
        let mut channels = self.channels.lock();
        Ok(channels.entry(service.to_owned()).or_insert(channel).clone())
    }

    /// Drops a channel that does not answer: the service may run elsewhere by now.
    pub fn forget(&self, service: &str) {
        self.channels.lock().remove(service);
    }
}
