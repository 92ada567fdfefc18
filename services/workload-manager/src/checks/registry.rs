//! Asking registries whether images are there: the OCI distribution API, with its tokens.
//!
//! A chart names the hosts that are asked, and a registry names the host of its tokens and of redirections, so none of
//! them is trusted. Every connection, whoever named it, goes to a public address, unless the configuration lists that
//! host; the address that was looked at is the one that is connected to. By HTTPS, unless listed. Answers are bounded,
//! and bodies are read of tokens only.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{
        Client,
        connect::{HttpConnector, dns::Name},
    },
    rt::TokioExecutor,
};
use tower_service::Service;

use crate::chart::{manifests::Credentials, manifests::Keys, reference::Image};

/// What a manifest may be.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                        application/vnd.docker.distribution.manifest.list.v2+json, \
                        application/vnd.docker.distribution.manifest.v2+json";
/// Redirections of one request.
const REDIRECTS_MAX: usize = 3;
/// Bytes of a token's answer.
const TOKEN_BYTES_MAX: usize = 64 << 10;

/// Why an image is not known to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// It is not there, or not for us: the chart's fault.
    Refused {
        /// What the registry says.
        reason: String,
        /// What to do.
        cure: String,
    },
    /// The registry could not be asked.
    Away(String),
}

/// Who may be asked, and how.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    /// Credentials of known registries.
    pub(crate) keys: Keys,
    /// Hosts that may have private addresses.
    pub(crate) private: BTreeSet<String>,
    /// Hosts that are asked by plain HTTP.
    pub(crate) plain: BTreeSet<String>,
    /// Longest time of one answer.
    pub(crate) limit: Duration,
}

/// Asks registries. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Registries {
    http: Client<HttpsConnector<HttpConnector<Resolver>>, Empty<Bytes>>,
    access: Arc<Access>,
}

impl Registries {
    pub(crate) fn new(access: Access) -> io::Result<Self> {
        let access = Arc::new(access);
        let mut connector = HttpConnector::new_with_resolver(Resolver(access.clone()));
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(access.limit));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_native_roots()?
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        // Connections are not kept: an address that was looked at once is not used for what comes later.
        let http = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Self { http, access })
    }

    /// Is this image there, for somebody with these credentials or those that are configured?
    pub(crate) async fn look_up(&self, image: &Image, keys: &Keys) -> Result<(), Error> {
        let key = keys.get(&image.registry).or_else(|| self.access.keys.get(&image.registry));
        let host = image.host();
        let scheme = if self.access.is_plain(host) { "http" } else { "https" };
        let text = format!("{scheme}://{host}/v2/{}/manifests/{}", image.repository, image.manifest());
        let uri: Uri = text.parse().map_err(|_| Error::Away(format!("{text} is no address")))?;
        let (mut status, headers) = self.head(&uri, None).await?;
        if status == StatusCode::UNAUTHORIZED {
            let challenges = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
            let Some(challenge) = challenges.filter_map(Challenge::parse).next() else {
                return Err(Error::Away(format!("{host} asks for an authentication that is unknown here")));
            };
            let Some(authorization) = self.authorize(&challenge, image, key).await? else {
                return Err(denied(image, key.is_some()));
            };
            (status, _) = self.head(&uri, Some(&authorization)).await?;
        }
        match status {
            StatusCode::OK => Ok(()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(denied(image, key.is_some())),
            StatusCode::NOT_FOUND => {
                let reason = format!("{host} has no {}:{}", image.repository, image.manifest());
                Err(Error::Refused { reason, cure: "push the image, or correct its name and tag".into() })
            }
            other => Err(Error::Away(format!("{host} answers {other}"))),
        }
    }

    /// The value of an `Authorization` header; `None` if the registry gives none for these credentials.
    async fn authorize(
        &self,
        challenge: &Challenge,
        image: &Image,
        key: Option<&Credentials>,
    ) -> Result<Option<String>, Error> {
        let basic = key.map(|k| format!("Basic {}", STANDARD.encode(format!("{}:{}", k.user, k.password))));
        let Challenge::Bearer { realm, service } = challenge else { return Ok(basic) };
        let scope = format!("repository:{}:pull", image.repository);
        let joint = if realm.contains('?') { '&' } else { '?' };
        let text = format!("{realm}{joint}service={}&scope={}", escaped(service), escaped(&scope));
        let uri: Uri = text.parse().map_err(|_| Error::Away("the registry's token service has no address".into()))?;
        let (status, _, body) = self.send(&uri, Method::GET, basic.as_deref(), TOKEN_BYTES_MAX).await?;
        match status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => return Ok(None),
            other => return Err(Error::Away(format!("the token service of {} answers {other}", image.registry))),
        }
        let token = serde_json::from_slice::<serde_json::Value>(&body).ok().and_then(|value| {
            let field = |name: &str| value.get(name).and_then(serde_json::Value::as_str).map(str::to_owned);
            field("token").or_else(|| field("access_token"))
        });
        let token = token.filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic()));
        let token = token.ok_or_else(|| Error::Away(format!("the token service of {} gives none", image.registry)))?;
        Ok(Some(format!("Bearer {token}")))
    }

    async fn head(&self, uri: &Uri, authorization: Option<&str>) -> Result<(StatusCode, HeaderMap), Error> {
        let (status, headers, _) = self.send(uri, Method::HEAD, authorization, 0).await?;
        if status == StatusCode::METHOD_NOT_ALLOWED {
            let (status, headers, _) = self.send(uri, Method::GET, authorization, 0).await?;
            return Ok((status, headers));
        }
        Ok((status, headers))
    }

    /// Sends a request, follows redirections, and reads at most so many bytes of the answer (0: none).
    async fn send(
        &self,
        uri: &Uri,
        method: Method,
        authorization: Option<&str>,
        most: usize,
    ) -> Result<(StatusCode, HeaderMap, Bytes), Error> {
        let mut uri = uri.clone();
        let mut authorization = authorization;
        for _ in 0..=REDIRECTS_MAX {
            self.access.admits(&uri).map_err(Error::Away)?;
            let host = uri.authority().map(|a| a.to_string()).unwrap_or_default();
            let mut request = Request::builder()
                .method(method.clone())
                .uri(uri.clone())
                .header(header::ACCEPT, ACCEPTED)
                .header(header::USER_AGENT, "continuum");
            if let Some(value) = authorization {
                request = request.header(header::AUTHORIZATION, value);
            }
            let request = request.body(Empty::new()).map_err(|error| Error::Away(format!("{host}: {error}")))?;
            let limit = self.access.limit;
            let silent = || Error::Away(format!("{host} did not answer within {} ms", limit.as_millis()));
            let response = tokio::time::timeout(limit, self.http.request(request)).await.map_err(|_| silent())?;
            let response = response.map_err(|error| Error::Away(format!("{host}: {}", chain(&error))))?;
            let (parts, body) = response.into_parts();
            if let Some(next) = redirection(&uri, parts.status, &parts.headers) {
                let next = next.map_err(|reason| Error::Away(format!("{host} {reason}")))?;
                if next.authority() != uri.authority() {
                    authorization = None;
                }
                uri = next;
                continue;
            }
            let body = match most {
                0 => Bytes::new(),
                most => {
                    let collect = Limited::new(body, most).collect();
                    let body = tokio::time::timeout(limit, collect).await.map_err(|_| silent())?;
                    body.map_err(|error| Error::Away(format!("{host}: {error}")))?.to_bytes()
                }
            };
            return Ok((parts.status, parts.headers, body));
        }
        Err(Error::Away(format!("it redirects more than {REDIRECTS_MAX} times")))
    }
}

fn denied(image: &Image, known: bool) -> Error {
    let host = image.host();
    let (reason, cure) = match known {
        true => (
            format!("{host} denies access to {} with the credentials given", image.repository),
            "correct the pull secret, and see that it may read the repository",
        ),
        false => (
            format!("{host} denies access to {}, or has no such repository", image.repository),
            "correct the image's name, or give the chart a Secret of type kubernetes.io/dockerconfigjson",
        ),
    };
    Error::Refused { reason, cure: cure.into() }
}

fn redirection(from: &Uri, status: StatusCode, headers: &HeaderMap) -> Option<Result<Uri, String>> {
    if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let to = headers.get(header::LOCATION)?.to_str().ok()?;
    let absolute = if to.starts_with('/') && !to.starts_with("//") {
        format!("{}://{}{to}", from.scheme_str().unwrap_or("https"), from.authority()?)
    } else {
        to.to_owned()
    };
    Some(absolute.parse().map_err(|_| "redirects to what is no address".to_owned()))
}

impl Access {
    fn is_plain(&self, authority: &str) -> bool {
        lists(&self.plain, authority)
    }

    /// May this be asked, as far as can be told before its name is resolved?
    fn admits(&self, uri: &Uri) -> Result<(), String> {
        let authority = uri.authority().ok_or("an address without a host")?.as_str().to_lowercase();
        if authority.contains('@') {
            return Err(format!("{authority} names a user"));
        }
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") if self.is_plain(&authority) => {}
            _ => return Err(format!("{authority} is not asked without TLS (see registries_plain)")),
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_lowercase();
        let listed = lists(&self.private, &authority);
        // A name that is listed for some of its ports is private: for no other is it asked.
        let of_other_port = !listed && self.private.iter().any(|entry| without_port(entry) == host);
        let private = host.parse::<IpAddr>().is_ok_and(|address| !is_public(address));
        if of_other_port || (private && !listed) {
            return Err(private_address(&authority));
        }
        Ok(())
    }
}

fn private_address(of: &str) -> String {
    format!("{of} has a private address, and those are asked only if they are listed (see registries_private)")
}

fn lists(entries: &BTreeSet<String>, authority: &str) -> bool {
    let authority = authority.to_lowercase();
    entries.contains(&authority) || entries.contains(without_port(&authority))
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
fn is_public(address: IpAddr) -> bool {
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
#[derive(Clone)]
struct Resolver(Arc<Access>);

type Addresses = std::vec::IntoIter<SocketAddr>;

impl Service<Name> for Resolver {
    type Response = Addresses;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Addresses>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let access = self.0.clone();
        Box::pin(async move {
            let host = name.as_str().to_lowercase();
            let listed = access.private.iter().any(|entry| without_port(entry) == host);
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let admitted: Vec<SocketAddr> = found.into_iter().filter(|a| listed || is_public(a.ip())).collect();
            match admitted.is_empty() {
                true => Err(io::Error::other(private_address(&host))),
                false => Ok(admitted.into_iter()),
            }
        })
    }
}

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: String },
}

impl Challenge {
    /// Reads a `WWW-Authenticate` header (RFC 9110 §11.6.1), as far as registries use it.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (String::new(), String::new());
        let mut rest = rest.trim_start();
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').map_or((after, ""), |(value, _)| (value, &after[value.len()..])),
            };
            match name.trim().to_ascii_lowercase().as_str() {
                "realm" => realm = value.to_owned(),
                "service" => service = value.to_owned(),
                _ => {}
            }
            rest = after.trim_start_matches([',', ' ']);
        }
        (!realm.is_empty()).then_some(Self::Bearer { realm, service })
    }
}

/// Percent-encoded for a query.
fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(private: &str, plain: &str) -> Access {
        let (private, plain) = (crate::config::listed(private), crate::config::listed(plain));
        Access { private, plain, limit: Duration::from_secs(5), ..Default::default() }
    }

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
    fn a_private_address_or_one_without_tls_is_asked_only_if_listed() {
        let admits = |access: &Access, uri: &str| access.admits(&uri.parse().unwrap()).is_ok();
        let none = access("", "");
        assert!(admits(&none, "https://ghcr.io/v2/"));
        for bad in
            ["http://ghcr.io/", "https://127.0.0.1/", "https://[::1]:5000/", "https://169.254.169.254/", "https://u@a/"]
        {
            assert!(!admits(&none, bad), "{bad}");
        }
        let local = access("127.0.0.1:5000, registry.lan:443", "127.0.0.1:5000");
        assert!(admits(&local, "http://127.0.0.1:5000/v2/"));
        for bad in ["http://127.0.0.1:4222/", "https://127.0.0.1:4222/", "https://registry.lan:22/"] {
            assert!(!admits(&local, bad), "{bad}: listed for another port");
        }
        assert!(admits(&local, "https://registry.lan:443/"));
        assert!(admits(&access("[::1]:5000", ""), "https://[::1]:5000/"));
    }

    #[tokio::test]
    async fn a_name_of_a_private_address_is_not_connected_to() {
        mesh_bus::install_crypto();
        let image = Image::parse("localhost:1/app").unwrap();
        let error = Registries::new(access("", "")).unwrap().look_up(&image, &Keys::new()).await.unwrap_err();
        assert!(matches!(&error, Error::Away(text) if text.contains("has a private address")), "{error:?}");
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = |realm: &str, service: &str| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.to_owned() })
        };
        let docker = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a:b,c:pull""#;
        assert_eq!(Challenge::parse(docker), bearer("https://auth.docker.io/token", "registry.docker.io"));
        assert_eq!(Challenge::parse("bearer realm=x, service=y"), bearer("x", "y"));
        assert_eq!(Challenge::parse("Basic realm=\"r\""), Some(Challenge::Basic));
        for bad in ["", "Negotiate", "Bearer", "Bearer realm=\"x", "Bearer service=\"y\""] {
            assert_eq!(Challenge::parse(bad), None, "{bad}");
        }
        assert_eq!(escaped("a b:c/d"), "a%20b%3Ac%2Fd");
    }

    #[test]
    fn a_redirection_may_be_a_path_or_an_address() {
        let from: Uri = "https://a.io/v2/x".parse().unwrap();
        let to = |location: &str| {
            let headers = [(header::LOCATION, location.parse().unwrap())].into_iter().collect();
            redirection(&from, StatusCode::FOUND, &headers).map(|r| r.map(|uri| uri.to_string()))
        };
        assert_eq!(to("/v2/y"), Some(Ok("https://a.io/v2/y".into())));
        assert_eq!(to("https://b.io/z"), Some(Ok("https://b.io/z".into())));
        assert!(redirection(&from, StatusCode::OK, &HeaderMap::new()).is_none());
    }
}
