//! Image references: the grammar of the OCI distribution specification and of the reference implementation, and what a
//! short one stands for.

use std::fmt;

/// Bytes of the longest name, registry included.
const NAME_BYTES_MAX: usize = 255;
/// Registry of images that name none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where that registry answers.
const DEFAULT_HOST: &str = "registry-1.docker.io";

/// An image, with nothing left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Image {
    /// Registry as references name it: `docker.io`, `ghcr.io`, `127.0.0.1:5000`.
    pub registry: String,
    /// Repository in it: `library/nginx`.
    pub repository: String,
    /// Tag; `latest` when neither a tag nor a digest is given.
    pub tag: Option<String>,
    /// Digest, `sha256:...`; outweighs the tag.
    pub digest: Option<String>,
}

impl Image {
    /// Reads a reference.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("the image has no name".into());
        }
        if text.len() > NAME_BYTES_MAX + 300 {
            return Err(format!("the image's name has {} bytes", text.len()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(self::digest(digest)?)),
            None => (text, None),
        };
        // A colon behind the last slash divides name and tag; one before it belongs to the registry's port.
        let path_at = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest.get(path_at..).and_then(|last| last.rfind(':')) {
            Some(colon) => (&rest[..path_at + colon], Some(self::tag(&rest[path_at + colon + 1..])?)),
            None => (rest, None),
        };
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_registry(first) => (first, path.to_owned()),
            _ => (DEFAULT_REGISTRY, name.to_owned()),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        if !is_host(registry) {
            return Err(format!("{} is not a registry's address", super::quoted(registry)));
        }
        let short = registry == DEFAULT_REGISTRY && !path.contains('/');
        let repository = if short { format!("library/{path}") } else { path };
        if let Some(bad) = repository.split('/').find(|component| !is_component(component)) {
            let rule =
                "a part of a repository's name is lower-case letters and digits, divided by `.`, `_`, `__` or `-`";
            return Err(format!("{} is not a part of a repository's name: {rule}", super::quoted(bad)));
        }
        if registry.len() + 1 + repository.len() > NAME_BYTES_MAX {
            return Err(format!("the image's name is longer than {NAME_BYTES_MAX} bytes"));
        }
        let tag = match (&digest, tag) {
            (None, None) => Some("latest".to_owned()),
            (_, tag) => tag,
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// Host and port where its registry answers.
    pub fn host(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY { DEFAULT_HOST } else { &self.registry }
    }

    /// What its manifest is asked for by: the digest, or else the tag.
    pub fn manifest(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// Is the first component a registry rather than a part of a path?
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.chars().any(char::is_uppercase)
}

/// `host`, `host:port`, or an IPv6 address in brackets with or without a port.
fn is_host(text: &str) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|p| p > 0) && port.bytes().all(|b| b.is_ascii_digit());
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        let port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return address.parse::<std::net::Ipv6Addr>().is_ok() && port;
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let is_label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(inner)
    };
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

fn is_component(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().is_some_and(|b| plain(*b)) || !bytes.last().is_some_and(|b| plain(*b)) {
        return false;
    }
    text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

fn tag(text: &str) -> Result<String, String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let first = text.bytes().next().is_some_and(word);
    if first && text.len() <= 128 && text.bytes().all(|b| word(b) || b == b'.' || b == b'-') {
        return Ok(text.to_owned());
    }
    Err(format!("{} is not a tag: use at most 128 letters, digits, `_`, `.` and `-`", super::quoted(text)))
}

fn digest(text: &str) -> Result<String, String> {
    let hex = |t: &str, digits: usize| {
        t.len() == digits && t.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    match text.split_once(':') {
        Some(("sha256", value)) if hex(value, 64) => Ok(text.to_owned()),
        Some(("sha512", value)) if hex(value, 128) => Ok(text.to_owned()),
        _ => Err(format!("{} is not a digest: use sha256: and 64 hexadecimal digits", super::quoted(text))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_short_reference_stands_for_a_long_one() {
        for (short, long) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("index.docker.io/library/nginx", "docker.io/library/nginx:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("ghcr.io/a/b/c:v1.0-rc_1", "ghcr.io/a/b/c:v1.0-rc_1"),
            ("localhost/app", "localhost/app:latest"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest"),
            ("[::1]:5000/app:1", "[::1]:5000/app:1"),
            ("registry.example:443/a__b/c.d---e:x", "registry.example:443/a__b/c.d---e:x"),
        ] {
            assert_eq!(Image::parse(short).map(|i| i.to_string()).as_deref(), Ok(long), "{short}");
        }
        let both = Image::parse(&format!("nginx:1@{DIGEST}")).unwrap();
        assert_eq!((both.manifest(), both.tag.as_deref()), (DIGEST, Some("1")), "the digest outweighs the tag");
        assert_eq!((both.host(), both.registry.as_str()), ("registry-1.docker.io", "docker.io"));
        assert_eq!(Image::parse(&format!("nginx@{DIGEST}")).unwrap().tag, None);
    }

    #[test]
    fn what_is_no_reference_says_why() {
        for (bad, why) in [
            ("", "no name"),
            ("Nginx", "lower-case"),
            ("nginx:", "not a tag"),
            ("nginx:a b", "not a tag"),
            ("nginx:-a", "not a tag"),
            ("a//b", "not a part"),
            ("a/b/", "not a part"),
            ("/a", "not a part"),
            ("a/../b", "not a part"),
            ("a_.b", "not a part"),
            ("a___b", "not a part"),
            ("nginx@sha256:abc", "not a digest"),
            ("nginx@md5:d41d8cd98f00b204e9800998ecf8427e", "not a digest"),
            ("reg.io:0/a", "not a registry"),
            ("reg.io:99999/a", "not a registry"),
            ("-reg.io/a", "not a registry"),
            ("[::1/a.b", "not a registry"),
            ("user:pass@reg.io/a", "not a digest"),
            ("reg.io/a?x=1", "not a part"),
            ("http://reg.io/a", "not a registry"),
            ("{{ .Values.image }}", "not a part"),
        ] {
            let error = Image::parse(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(Image::parse(&format!("reg.io/{}", "a".repeat(300))).unwrap_err().contains("longer than 255"));
    }

    proptest! {
        /// A reference written out is read as itself, and no text makes the reader panic.
        #[test]
        fn a_whole_reference_is_read_as_itself(text in "\\PC{0,40}", name in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,3}") {
            for text in [text.clone(), format!("reg.io/{name}:{text}"), format!("{name}@{text}"), name] {
                if let Ok(image) = Image::parse(&text) {
                    prop_assert_eq!(Image::parse(&image.to_string()), Ok(image));
                }
            }
        }
    }
}
