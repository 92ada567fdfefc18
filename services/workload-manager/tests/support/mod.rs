//! Charts to push, archives that do harm, and a real registry.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use chart::sha256;
use flate2::{Compression, write::GzEncoder};
use tar::{EntryType, Header};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

pub const USER: &str = "robot";
pub const PASSWORD: &str = "opensesame";
/// That password as bcrypt, cost 4.
const HTPASSWD: &str = "robot:$2b$04$timoCjbjkT1nbXP6yXgL8uUX94RUWeObPAePCH9KSS7jFV8dJO7by\n";

const CHART: &str = "apiVersion: v2\nname: web\nversion: 1.2.3\n";
const VALUES: &str = "image: IMAGE\nreplicas: 2\nexpose: true\npull: null\n";
const DEPLOYMENT: &str = r#"apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .Release.Name }}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      {{- if .Values.pull }}
      imagePullSecrets: [{name: pull}]
      {{- end }}
      containers:
      - name: web
        image: {{ .Values.image | quote }}
        resources: {requests: {cpu: 150m, memory: 64Mi}}
"#;
const SERVICE_YAML: &str = r#"apiVersion: v1
kind: Service
metadata:
  name: {{ .Release.Name }}
  {{- if .Values.expose }}
  annotations:
    nemo.eu/ingress-expose: "true"
    nemo.eu/ingress-service-port: http
    nemo.eu/ingress-path: /shop
  {{- end }}
spec:
  selector: {app: web}
  ports: [{name: admin, port: 9000}, {name: http, port: 8080}]
"#;
const SECRET: &str = r#"{{- if .Values.pull }}
apiVersion: v1
kind: Secret
metadata: {name: pull}
type: kubernetes.io/dockerconfigjson
data:
  .dockerconfigjson: {{ dict "auths" (dict .Values.pull.registry (dict "username" .Values.pull.user "password" .Values.pull.password)) | toJson | b64enc }}
{{- end }}
"#;

/// The chart `web` 1.2.3: a Deployment of an image, a Service that may be exposed, a pull secret.
pub fn chart(image: &str) -> Vec<u8> {
    chart_with(image, "")
}

/// The same with one more template.
pub fn chart_with(image: &str, template: &str) -> Vec<u8> {
    let values = VALUES.replace("IMAGE", &format!("{image:?}"));
    tgz(&[
        ("web/Chart.yaml", CHART),
        ("web/values.yaml", &values),
        ("web/templates/deployment.yaml", DEPLOYMENT),
        ("web/templates/service.yaml", SERVICE_YAML),
        ("web/templates/secret.yaml", SECRET),
        ("web/templates/more.yaml", template),
    ])
}

/// A gzipped tar file of plain files.
pub fn tgz(files: &[(&str, &str)]) -> Vec<u8> {
    let entries: Vec<_> = files.iter().map(|(path, text)| (*path, EntryType::Regular, text.as_bytes())).collect();
    pack(&entries)
}

fn pack(entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(vec![], Compression::default()));
    for (path, kind, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        if *kind == EntryType::Symlink {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

/// Archives that would do harm, and a part of why each is refused.
pub fn hostile() -> Vec<(Vec<u8>, &'static str)> {
    let zeros = vec![0u8; 5 << 20];
    let names: Vec<String> = (0..8).map(|n| format!("web/{n}")).collect();
    let bomb: Vec<_> = names.iter().map(|name| (name.as_str(), EntryType::Regular, zeros.as_slice())).collect();
    vec![
        (pack(&[("web/../../etc/cron.d/x", EntryType::Regular, b"x")]), "`..`"),
        (pack(&[("/etc/passwd", EntryType::Regular, b"x")]), "absolute"),
        (pack(&[("web/values.yaml", EntryType::Symlink, b"")]), "it is a link"),
        (pack(&bomb), "unpacks to more than"),
        (b"no archive".to_vec(), "not gzip-compressed"),
    ]
}

/// A program of `.tools`; `None`, loudly, where it is not installed.
pub fn tool(suite: &str, name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().join(".tools").join(name);
    if !path.is_file() {
        println!("SKIPPED: {suite}: no .tools/{name} (run `make servers`)");
        return None;
    }
    Some(path)
}

/// A real registry, and how a request of ours is authorised there.
pub struct Registry {
    process: Child,
    port: u16,
    authorization: String,
    _folder: tempfile::TempDir,
}

impl Registry {
    /// One that asks for a name and a password.
    pub async fn start(suite: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let htpasswd = folder.path().join("htpasswd");
        std::fs::write(&htpasswd, HTPASSWD).unwrap();
        let auth = format!("{{htpasswd: {{realm: test, path: {}}}}}", htpasswd.display());
        let authorization = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
        Self::serve(suite, folder, &auth, authorization).await
    }

    /// One that sends for a token to another server.
    pub async fn start_with_tokens(suite: &str, tokens: &Tokens) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let jwks = folder.path().join("jwks.json");
        std::fs::write(&jwks, tokens.jwks()).unwrap();
        let auth = format!(
            "{{token: {{realm: 'http://{}/token', service: {SERVICE}, issuer: {ISSUER}, jwks: {}}}}}",
            tokens.address,
            jwks.display()
        );
        let authorization = format!("Bearer {}", tokens.signer.token("team/app", &["pull", "push"]));
        Self::serve(suite, folder, &auth, authorization).await
    }

    async fn serve(suite: &str, folder: tempfile::TempDir, auth: &str, authorization: String) -> Option<Self> {
        let program = tool(suite, "go/registry")?;
        let config = folder.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info, formatter: json}}\nstorage: {{inmemory: {{}}}}\nhttp: {{addr: \
             '127.0.0.1:0'}}\nauth: {auth}\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut process = Command::new(program)
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let port = tokio::time::timeout(Duration::from_secs(30), async {
            let mut said = vec![];
            loop {
                let Some(line) = lines.next_line().await.unwrap() else { panic!("the registry ended: {said:?}") };
                if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                    return digits.parse().unwrap();
                }
                said.push(line);
            }
        })
        .await
        .expect("the registry listens");
        // It goes on writing: somebody has to read.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Some(Self { process, port, authorization, _folder: folder })
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub async fn stop(mut self) {
        self.process.kill().await.unwrap();
    }

    /// Puts an image without layers there.
    pub async fn push(&self, repository: &str, tag: &str) {
        let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let digest = format!("sha256:{}", sha256(config));
        let (status, head) = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"").await;
        assert_eq!(status, 202, "{head}");
        let line =
            head.lines().find(|line| line.to_lowercase().starts_with("location:")).expect("a place to upload to");
        let location = line.split_once(':').unwrap().1.trim();
        let path = location.find("/v2/").map(|at| &location[at..]).unwrap();
        let joint = if path.contains('?') { '&' } else { '?' };
        let put = format!("{path}{joint}digest={digest}");
        let (status, head) = self.send("PUT", &put, "application/octet-stream", config).await;
        assert_eq!(status, 201, "{head}");
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{kind}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":{}}},"layers":[]}}"#,
            config.len()
        );
        let path = format!("/v2/{repository}/manifests/{tag}");
        let (status, head) = self.send("PUT", &path, kind, manifest.as_bytes()).await;
        assert_eq!(status, 201, "{head}");
    }

    async fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        let kind = if kind.is_empty() { String::new() } else { format!("Content-Type: {kind}\r\n") };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\n{kind}Content-Length: {}\r\nConnection: \
             close\r\n\r\n",
            self.address(),
            self.authorization,
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }
}

const SERVICE: &str = "registry.test";
const ISSUER: &str = "tokens.test";

/// A token service as the distribution's specification describes it: gives tokens to whoever knows the password.
pub struct Tokens {
    pub address: String,
    signer: Arc<Signer>,
}

struct Signer(Ed25519KeyPair);

impl Tokens {
    pub async fn start() -> Self {
        let signer = Arc::new(Signer(Ed25519KeyPair::generate().unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = signer.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let signer = serving.clone();
                tokio::spawn(async move { signer.answer(stream).await });
            }
        });
        Self { address, signer }
    }

    fn jwks(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.signer.0.public_key().as_ref());
        format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k1","alg":"EdDSA","use":"sig","x":"{x}"}}]}}"#)
    }
}

impl Signer {
    fn token(&self, repository: &str, actions: &[&str]) -> String {
        let now = mesh_test::now().as_nanos() / 1_000_000_000;
        let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","typ":"JWT","kid":"k1"}"#);
        let claims = serde_json::json!({
            "iss": ISSUER, "sub": USER, "aud": SERVICE, "jti": "1",
            "iat": now - 5, "nbf": now - 5, "exp": now + 300,
            "access": [{"type": "repository", "name": repository, "actions": actions}],
        });
        let text = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(text.as_bytes()));
        format!("{text}.{signature}")
    }

    async fn answer(&self, mut stream: TcpStream) {
        let mut asked = vec![];
        while !asked.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                return;
            }
            asked.push(byte[0]);
        }
        let asked = String::from_utf8(asked).unwrap();
        let known = STANDARD.encode(format!("{USER}:{PASSWORD}"));
        let scope = asked.split(['?', '&', ' ']).find_map(|part| part.strip_prefix("scope="));
        let scope = scope.unwrap_or_default().replace("%3A", ":").replace("%2F", "/");
        let mut scope = scope.split(':');
        let (repository, action) = (scope.nth(1).unwrap_or_default(), scope.next().unwrap_or_default());
        let (status, body) = match asked.contains(&format!("Basic {known}")) {
            true => ("200 OK", format!(r#"{{"token":"{}"}}"#, self.token(repository, &[action]))),
            false => ("401 Unauthorized", "{}".to_owned()),
        };
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        let _ = stream.write_all((head + &body).as_bytes()).await;
    }
}
