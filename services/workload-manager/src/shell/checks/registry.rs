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
use url::Url;

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
        let (mut status, mut headers) = self.head(&uri, None).await?;
        if status == StatusCode::UNAUTHORIZED {
            let Some(challenge) = Challenge::of(&headers) else {
                return Err(Error::Away(format!("{host} asks for an authentication that is unknown here")));
            };
            let Some(authorization) = self.authorize(&challenge, image, key).await? else {
                return Err(denied(image, key.is_some()));
            };
            (status, headers) = self.head(&uri, Some(&authorization)).await?;
        }
        match status {
            StatusCode::OK => is_manifest(&headers, image).map_err(|why| Error::Away(format!("{host} {why}"))),
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
        let Challenge::Bearer { realm, service, scope } = challenge else { return Ok(basic) };
        let away = || Error::Away(format!("the token service of {} has no address", image.registry));
        let mut address = Url::parse(realm).map_err(|_| away())?;
        let own = format!("repository:{}:pull", image.repository);
        {
            let mut query = address.query_pairs_mut();
            if !service.is_empty() {
                query.append_pair("service", service);
            }
            query.append_pair("scope", if scope.is_empty() { &own } else { scope });
        }
        address.set_fragment(None);
        let uri: Uri = address.as_str().parse().map_err(|_| away())?;
        let (status, _, body) = self.send(&uri, Method::GET, basic.as_deref(), TOKEN_BYTES_MAX).await?;
        match status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => return Ok(None),
            other => return Err(Error::Away(format!("the token service of {} answers {other}", image.registry))),
        }
        let token = serde_json::from_slice::<serde_json::Value>(&body).ok().and_then(|value| {
            // One of them, or both with the same; an empty one does not count.
            let field = |name: &str| {
                let text = value.get(name)?.as_str()?;
                (!text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())).then(|| text.to_owned())
            };
            field("token").or_else(|| field("access_token"))
        });
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
                if next.authority() != uri.authority() || next.scheme() != uri.scheme() {
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
    let to = headers.get(header::LOCATION)?;
    let invalid = "redirects to an invalid address".to_owned();
    // Relative to what was asked (RFC 9110 §10.2.2).
    let next =
        to.to_str().ok().and_then(|to| Url::parse(&from.to_string()).ok()?.join(to).ok()).and_then(|mut next| {
            next.set_fragment(None);
            next.as_str().parse().ok()
        });
    Some(next.ok_or(invalid))
}

/// Is what was found a manifest, and the one that was asked for? A page that says so to everybody is not a manifest.
fn is_manifest(headers: &HeaderMap, image: &Image) -> Result<(), String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let kind = text("content-type").unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let digest = text("docker-content-digest");
    let named = ACCEPTED.split(", ").any(|known| known == essence)
        || essence.starts_with("application/vnd.docker.distribution.manifest.v1+");
    // Some name no type, but all name the digest.
    let bare = matches!(essence.as_str(), "" | "application/json" | "application/octet-stream") && digest.is_some();
    if !named && !bare {
        let shown: String = kind.chars().take(64).collect();
        return Err(format!("answers with {shown:?} and not with a manifest: it is no registry"));
    }
    match (&image.digest, digest) {
        (Some(asked), Some(found)) if asked != found => {
            Err(format!("answers with the manifest {found:?}, not with {asked}"))
        }
        _ => Ok(()),
    }
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
    Bearer { realm: String, service: String, scope: String },
}

impl Challenge {
    /// The challenge to answer, of those that a registry offers in whatever order (RFC 9110 §11.6.1): by a token if it
    /// gives tokens, so that the password goes to its token service alone.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let offered = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let mut found = None;
        for challenge in offered.filter_map(|text| http_auth::parse_challenges(text).ok()).flatten() {
            let parameter = |name: &str| {
                let of = |(known, _): &&(&str, http_auth::ParamValue<'_>)| known.eq_ignore_ascii_case(name);
                challenge.params.iter().find(of).map(|(_, value)| value.to_unescaped()).unwrap_or_default()
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") && !parameter("realm").is_empty() {
                let (realm, service, scope) = (parameter("realm"), parameter("service"), parameter("scope"));
                return Some(Self::Bearer { realm, service, scope });
            }
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                found = Some(Self::Basic);
            }
        }
        found
    }
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

    fn challenge(offered: &[&str]) -> Option<Challenge> {
        let headers = offered.iter().map(|text| (header::WWW_AUTHENTICATE, text.parse().unwrap()));
        Challenge::of(&headers.collect())
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = |realm: &str, service: &str, scope: &str| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.into(), scope: scope.into() })
        };
        let docker = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a:b,c:pull""#;
        let read = bearer("https://auth.docker.io/token", "registry.docker.io", "a:b,c:pull");
        assert_eq!(challenge(&[docker]), read);
        // In any order, in one header or several.
        assert_eq!(challenge(&["Basic realm=\"r\"", docker]), read);
        assert_eq!(challenge(&[docker, "Basic realm=\"r\""]), read);
        assert_eq!(challenge(&[&format!("Basic realm=\"r\", {docker}")]), read);
        assert_eq!(challenge(&[&format!("Negotiate, Basic realm=\"a, Bearer realm=b\", {docker}")]), read);
        assert_eq!(challenge(&["bearer realm=\"x\", service=y"]), bearer("x", "y", ""));
        assert_eq!(challenge(&["Bearer SERVICE=\"y\", REALM=\"a\\\"b\""]), bearer("a\"b", "y", ""));
        assert_eq!(challenge(&["Basic realm=\"r\""]), Some(Challenge::Basic));
        assert_eq!(challenge(&["Basic realm=\"r\", Bearer service=\"y\""]), Some(Challenge::Basic), "without a realm");
        for bad in ["", "Negotiate", "Bearer", "Bearer realm=\"x", "Bearer service=\"y\""] {
            assert_eq!(challenge(&[bad]), None, "{bad}");
        }
    }

    #[test]
    fn only_a_manifest_says_that_an_image_is_there() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let tagged = Image::parse("a.io/b:1").unwrap();
        let judge = |image: &Image, kind: &str, digest: &str| {
            let given =
                [("content-type", kind), ("docker-content-digest", digest)].into_iter().filter(|(_, v)| !v.is_empty());
            let headers =
                given.map(|(name, value)| (name.parse::<header::HeaderName>().unwrap(), value.parse().unwrap()));
            is_manifest(&headers.collect(), image).is_ok()
        };
        for kind in ACCEPTED.split(", ") {
            assert!(
                judge(&tagged, kind, "") && judge(&tagged, &format!("{}; charset=utf-8", kind.to_uppercase()), &digest)
            );
        }
        assert!(judge(&tagged, "application/vnd.docker.distribution.manifest.v1+prettyjws", ""));
        assert!(judge(&tagged, "application/json", &digest) && judge(&tagged, "", &digest));
        for page in
            ["text/html", "text/html; charset=utf-8", "application/json", "text/plain", "", "application/vnd.oci.image"]
        {
            assert!(!judge(&tagged, page, ""), "{page}");
        }
        assert!(!judge(&tagged, "text/html", &digest));
        let exact = Image::parse(&format!("a.io/b@{digest}")).unwrap();
        assert!(judge(&exact, "application/json", &digest));
        assert!(!judge(&exact, "application/json", &format!("sha256:{}", "b".repeat(64))));
    }

    /// A registry and its token service on one port, which answers each request as told; what it was asked.
    async fn registry(
        answers: &'static [(&'static str, &'static str)],
    ) -> (String, Arc<std::sync::Mutex<Vec<String>>>) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (asked, at) = (Arc::new(std::sync::Mutex::new(vec![])), host.clone());
        let seen = asked.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (mut head, mut byte) = (vec![], [0; 1]);
                while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).await.unwrap_or(0) > 0 {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let found = answers.iter().find(|(wanted, _)| wanted.split('|').all(|part| head.contains(part)));
                let answer = found.map_or("HTTP/1.1 404 Not Found\r\n\r\n", |(_, answer)| answer);
                seen.lock().unwrap().push(head);
                let answer = answer.replace("HOST", &at).replacen("\r\n", "\r\nconnection: close\r\n", 1);
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        (host, asked)
    }

    async fn looked_up(answers: &'static [(&'static str, &'static str)], with_key: bool) -> Result<(), Error> {
        mesh_bus::install_crypto();
        let (host, _) = registry(answers).await;
        let image = Image::parse(&format!("{host}/a/b:1")).unwrap();
        let credentials = Credentials { user: "u".into(), password: "p".into() };
        let keys = Keys::from_iter(with_key.then(|| (host.clone(), credentials)));
        Registries::new(access(&host, &host)).unwrap().look_up(&image, &keys).await
    }

    const FOUND: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.oci.image.manifest.v1+json\r\n\r\n";

    #[tokio::test]
    async fn a_registry_is_asked_as_the_distribution_specification_has_it() {
        const ASKS: &str = "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic realm=\"r\"\r\n\
                            www-authenticate: Bearer realm=\"http://HOST/token?a=b\",service=\"s t\"\r\n\r\n";
        const ONLY_BASIC: &str = "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic realm=\"r\"\r\n\r\n";
        const EMPTY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 36\r\n\r\n{\"token\": \"\", \"access_token\": \"tk\"} ";
        const PAGE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>";
        const MOVED: &str = "HTTP/1.1 307 Temporary Redirect\r\nlocation: ../../c/manifests/1?x=1\r\n\r\n";
        let of = |result: Result<(), Error>| match result {
            Ok(()) => "found".to_owned(),
            Err(Error::Refused { reason, .. }) => format!("refused: {reason}"),
            Err(Error::Away(reason)) => format!("away: {reason}"),
        };
        let by_token: &[(&str, &str)] = &[
            ("HEAD /v2/a/b/manifests/1 |authorization: Bearer tk", FOUND),
            ("HEAD /v2/a/b/manifests/1 ", ASKS),
            ("GET /token?a=b&service=s+t&scope=repository%3Aa%2Fb%3Apull ", EMPTY),
        ];
        assert_eq!(of(looked_up(by_token, false).await), "found");
        let with_password: &[(&str, &str)] = &[
            ("HEAD /v2/a/b/manifests/1 |authorization: Bearer tk", FOUND),
            (
                "HEAD /v2/a/b/manifests/1 |authorization: Basic",
                "HTTP/1.1 500 The password is for the token service\r\n\r\n",
            ),
            ("HEAD /v2/a/b/manifests/1 ", ASKS),
            ("GET /token|authorization: Basic dTpw", EMPTY),
        ];
        assert_eq!(of(looked_up(with_password, true).await), "found");
        let by_password: &[(&str, &str)] =
            &[("HEAD /v2/a/b/manifests/1 |authorization: Basic dTpw", FOUND), ("HEAD", ONLY_BASIC)];
        assert_eq!(of(looked_up(by_password, true).await), "found");
        assert!(of(looked_up(by_password, false).await).starts_with("refused: "));
        let moved: &[(&str, &str)] = &[("HEAD /v2/a/c/manifests/1?x=1 ", FOUND), ("HEAD /v2/a/b/manifests/1 ", MOVED)];
        assert_eq!(of(looked_up(moved, false).await), "found");
        assert!(of(looked_up(&[("HEAD", PAGE)], false).await).contains("text/html"), "a page is no manifest");
        let page_of_tokens: &[(&str, &str)] = &[("HEAD", ASKS), ("GET /token", PAGE)];
        assert!(of(looked_up(page_of_tokens, false).await).contains("gives none"));
        assert!(of(looked_up(&[], false).await).starts_with("refused: "));
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
        assert_eq!(to("y?n=1#top"), Some(Ok("https://a.io/v2/y?n=1".into())));
        assert_eq!(to("../y"), Some(Ok("https://a.io/y".into())));
        assert_eq!(to("?n=2"), Some(Ok("https://a.io/v2/x?n=2".into())));
        assert_eq!(to("//b.io/z"), Some(Ok("https://b.io/z".into())));
        for invalid in ["http://", "https://[::1/"] {
            assert!(matches!(to(invalid), Some(Err(_))), "{invalid}");
        }
        assert!(redirection(&from, StatusCode::OK, &HeaderMap::new()).is_none());
    }
}
