//! Asking registries whether images are there: the OCI distribution API, with its tokens.
//!
//! A chart names the hosts that are asked, and a registry names the host of its tokens and of redirections, so none of
//! them is trusted: see `mesh_outbound`. By HTTPS, unless listed. Answers are bounded, and bodies are read of tokens only.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use mesh_outbound::{Guard, Guarded, chain, lists};

use chart::{manifests::Credentials, manifests::Keys, reference::Image};

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
        hint: String,
    },
    /// The registry could not be asked.
    Away(String),
}

/// Who may be asked, and how.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    /// Credentials of known registries.
    pub(crate) keys: Keys,
    /// Whose addresses may be connected to.
    pub(crate) guard: Guard,
    /// Hosts that are asked by plain HTTP.
    pub(crate) plain: BTreeSet<String>,
    /// Longest time of one answer.
    pub(crate) limit: Duration,
}

/// Asks registries. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Registries {
    http: Guarded<Empty<Bytes>>,
    access: Arc<Access>,
}

impl Registries {
    pub(crate) fn new(access: Access) -> io::Result<Self> {
        let http = access.guard.client(access.limit)?;
        let access = Arc::new(access);
        Ok(Self { http, access })
    }

    /// Is this image there, for somebody with these credentials or those that are configured?
    pub(crate) async fn look_up(&self, image: &Image, keys: &Keys) -> Result<(), Error> {
        let key = keys.get(&image.registry).or_else(|| self.access.keys.get(&image.registry));
        let host = image.host();
        let scheme = if self.access.is_plain(host) { "http" } else { "https" };
        let text = format!("{scheme}://{host}/v2/{}/manifests/{}", image.repository, image.manifest());
        let uri: Uri = text.parse().map_err(|_| Error::Away(format!("{text} is not an address")))?;
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
                Err(Error::Refused { reason, hint: "push the image, or correct its name and tag".into() })
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

    /// Sends a request, follows redirections, and reads at most this many bytes of the answer (0: none).
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
    let (reason, hint) = match known {
        true => (
            format!("{host} denies access to {} with the credentials given", image.repository),
            "correct the pull secret, and see that it may read the repository",
        ),
        false => (
            format!("{host} denies access to {}, or has no such repository", image.repository),
            "correct the image's name, or give the chart a Secret of type kubernetes.io/dockerconfigjson",
        ),
    };
    Error::Refused { reason, hint: hint.into() }
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
    Some(absolute.parse().map_err(|_| "redirects to an invalid address".to_owned()))
}

impl Access {
    fn is_plain(&self, authority: &str) -> bool {
        lists(&self.plain, authority)
    }

    /// May this be asked, as far as can be told before its name is resolved?
    fn admits(&self, uri: &Uri) -> Result<(), String> {
        let authority = uri.authority().ok_or("an address without a host")?.as_str().to_lowercase();
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") if self.is_plain(&authority) => {}
            _ => return Err(format!("{authority} is not asked without TLS (see registries_plain)")),
        }
        self.guard.admits(uri)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn access(private: &str, plain: &str) -> Access {
        let guard = Guard::new(mesh_outbound::listed(private), "registries_private");
        Access { guard, plain: mesh_outbound::listed(plain), limit: Duration::from_secs(5), ..Default::default() }
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
