//! HTTP to addresses that somebody else chose: the hosts that a chart names, the callbacks of a subscription.
//!
//! None of them is trusted. Every connection goes to a public address, unless the configuration lists that host; the
//! address that was looked at is the one that is connected to. Redirections are not followed here.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper::body::Body;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{
        Client,
        connect::{HttpConnector, dns::Name},
    },
    rt::TokioExecutor,
};
use tower_service::Service;

/// A client that connects to nothing else than a [`Guard`] admits, once its URI was admitted.
pub type Guarded<B> = Client<HttpsConnector<HttpConnector<Resolver>>, B>;

/// A list of hosts, `host` or `host:port`, as a configuration writes it: divided by commas.
pub fn listed(text: &str) -> BTreeSet<String> {
    text.split(',').map(|part| part.trim().to_lowercase()).filter(|part| !part.is_empty()).collect()
}

/// Is this authority on the list, with its port or without?
pub fn lists(entries: &BTreeSet<String>, authority: &str) -> bool {
    let authority = authority.to_lowercase();
    entries.contains(&authority) || entries.contains(without_port(&authority))
}

/// An error with what led to it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// What may be connected to. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    /// Hosts that may have private addresses.
    private: Arc<BTreeSet<String>>,
    /// Name of the setting that lists them.
    setting: &'static str,
}

impl Guard {
    /// Public addresses, and those of the hosts that a setting lists.
    pub fn new(private: BTreeSet<String>, setting: &'static str) -> Self {
        Self { private: Arc::new(private), setting }
    }

    /// May this be asked, as far as can be told before its name is resolved? A URI must pass before it is given to
    /// [`client`](Self::client): addresses that are written as numbers are resolved by nobody.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn admits(&self, uri: &Uri) -> Result<(), String> {
        let authority = uri.authority().ok_or("an address without a host")?.as_str().to_lowercase();
        if authority.contains('@') {
            return Err(format!("{authority} names a user"));
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_lowercase();
        let listed = lists(&self.private, &authority);
        // A name that is listed for some of its ports is private: for no other is it asked.
        let of_other_port = !listed && self.private.iter().any(|entry| without_port(entry) == host);
        let private = host.parse::<IpAddr>().is_ok_and(|address| !is_public(address));
        if of_other_port || (private && !listed) {
            return Err(self.private_address(&authority));
        }
        Ok(())
    }

    /// A client, by HTTP or HTTPS. Connections are not kept: an address that was looked at once is not used for what
    /// comes later.
    ///
    /// # Errors
    /// When the system's certificates cannot be read.
    pub fn client<B>(&self, connect_limit: Duration) -> io::Result<Guarded<B>>
    where
        B: Body + Send + 'static + Unpin,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut connector = HttpConnector::new_with_resolver(Resolver(self.clone()));
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(connect_limit));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_native_roots()?
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        Ok(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
    }

    fn private_address(&self, of: &str) -> String {
        format!("{of} has a private address, and those are asked only if they are listed (see {})", self.setting)
    }
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(':') => {
            host.trim_start_matches('[').trim_end_matches(']')
        }
        _ => authority.trim_start_matches('[').trim_end_matches(']'),
    }
}

/// Is this an address of the public Internet (IANA's special-purpose registries)?
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (b == 18 || b == 19));
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(inner) = address.to_ipv4_mapped() {
        return is_public_v4(inner);
    }
    let [first, second, ..] = address.segments();
    // Only what is global unicast, less what leads to IPv4 or is for documents.
    (0x2000..0x4000).contains(&first)
        && first != 0x2002
        && !(first == 0x2001 && (second == 0 || second == 0x0db8))
        && !(first == 0x3fff && second < 0x1000)
}

/// Resolves names, to addresses that may be connected to.
#[derive(Clone, Debug)]
pub struct Resolver(Guard);

type Addresses = std::vec::IntoIter<SocketAddr>;

impl Service<Name> for Resolver {
    type Response = Addresses;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Addresses>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let guard = self.0.clone();
        Box::pin(async move {
            let host = name.as_str().to_lowercase();
            let listed = guard.private.iter().any(|entry| without_port(entry) == host);
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let admitted: Vec<SocketAddr> = found.into_iter().filter(|a| listed || is_public(a.ip())).collect();
            match admitted.is_empty() {
                true => Err(io::Error::other(guard.private_address(&host))),
                false => Ok(admitted.into_iter()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "ff02::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in ["1.1.1.1", "104.18.0.1", "2606:4700::1111"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn a_private_address_is_asked_only_if_it_is_listed_for_that_port() {
        let admits = |private: &str, uri: &str| Guard::new(listed(private), "s").admits(&uri.parse().unwrap()).is_ok();
        assert!(admits("", "https://ghcr.io/v2/") && admits("", "http://example.org/"));
        for bad in ["https://127.0.0.1/", "https://[::1]:5000/", "https://169.254.169.254/", "https://u@a/"] {
            assert!(!admits("", bad), "{bad}");
        }
        let local = "127.0.0.1:5000, registry.lan:443";
        assert!(admits(local, "http://127.0.0.1:5000/v2/") && admits(local, "https://registry.lan:443/"));
        for bad in ["http://127.0.0.1:4222/", "https://127.0.0.1:4222/", "https://registry.lan:22/"] {
            assert!(!admits(local, bad), "{bad}: listed for another port");
        }
        assert!(admits("[::1]:5000", "https://[::1]:5000/"));
        let why = Guard::new(listed(""), "the_setting").admits(&"http://10.0.0.1/".parse().unwrap()).unwrap_err();
        assert!(why.contains("10.0.0.1") && why.contains("the_setting"), "{why}");
    }

    #[tokio::test]
    async fn a_name_of_a_private_address_is_not_connected_to() {
        let refused = |private: &str| {
            let guard = Guard::new(listed(private), "s");
            async move { Resolver(guard).call("localhost".parse().unwrap()).await }
        };
        assert!(refused("").await.unwrap_err().to_string().contains("localhost has a private address"));
        // Addresses to the system, though not to a URI.
        for odd in ["127.1", "0x7f.1", "2130706433"] {
            let resolved = Resolver(Guard::default()).call(odd.parse().unwrap()).await;
            assert!(resolved.is_err(), "{odd}");
        }
        assert!(refused("localhost:80").await.unwrap().all(|address| address.ip().is_loopback()));
    }
}
