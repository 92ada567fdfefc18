//! `k8s/overlays/backup` and `restore`: jobs that mount every claim of the mesh while its StatefulSets are scaled to zero. A
//! pod under the restricted standard cannot see nats-server's process, so it cannot pause it.

use std::fmt::Write as _;

use super::{CONTAINER, Mesh, NAMES, Output, POD, labels, mebibytes, policy};
use crate::generate::{MARK, model::KEYS_MIB};

/// The claim of nats-server, which is written by hand.
const STREAMS: (&str, &str, &str) = ("data-nats-0", "streams", "20Gi");
/// Where a bucket may be; an overlay may set other ports.
const PORTS: &str = "[{port: 443, protocol: TCP}, {port: 9000, protocol: TCP}]";

/// Both overlays.
pub(super) fn render(mesh: &Mesh) -> Vec<Output> {
    let claims = claims(mesh);
    let create = ["create", "$(PLACE)", "--recipient", "$(RECIPIENT)", "--server-stopped"];
    let restore = ["restore", "$(PLACE)", "--identity", "/key/identity"];
    let backup =
        "# Writes a backup of a mesh whose StatefulSets are scaled to zero; docs/how-to/backup.md has the steps.\n";
    let back = "# Makes the claims of a mesh and restores a backup into them, before the mesh is applied; docs/how-to/backup.md has the
# steps.\n";
    let mut made = String::new();
    for (claim, _, size) in &claims {
        let _ = write!(
            made,
            "---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {claim}}}
spec:
  accessModes: [ReadWriteOnce]
  resources: {{requests: {{storage: {size}}}}}
"
        );
    }
    let overlay = |name: &str, about: &str, command: &[&str], more: &str| {
        let folder = format!("k8s/overlays/{name}");
        let rest = format!(
            "---\n{}  ingress: []\n  egress:\n    # The S3 server.\n    - ports: {PORTS}\n{NAMES}{more}",
            policy(name, name, "Ingress, Egress")
        );
        let kustomization = format!(
            "# {MARK}\napiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: continuum\nresources:\n  - \
             {name}.yaml\n"
        );
        [
            Output {
                path: format!("{folder}/{name}.yaml"),
                text: format!("# {MARK}\n{about}{}{rest}", job(mesh, name, command, &claims)),
            },
            Output { path: format!("{folder}/kustomization.yaml"), text: kustomization },
        ]
    };
    [overlay("backup", backup, &create, ""), overlay("restore", back, &restore, &made)].into_iter().flatten().collect()
}

/// Each claim, where it is mounted below the data folder, and its size.
fn claims(mesh: &Mesh) -> Vec<(String, String, String)> {
    let (claim, folder, size) = STREAMS;
    let mut all = vec![(claim.to_owned(), folder.to_owned(), size.to_owned())];
    for service in &mesh.services {
        let name = &service.name;
        if let Some(state) = &service.state {
            all.push((format!("data-{name}-0"), format!("state/{name}"), mebibytes(state.size_mib)));
        }
        if !service.keys.is_empty() {
            all.push((format!("secrets-{name}-0"), format!("secrets/{name}"), mebibytes(KEYS_MIB)));
        }
    }
    all
}

fn job(mesh: &Mesh, name: &str, command: &[&str], claims: &[(String, String, String)]) -> String {
    let words = ["--data-dir", "/mesh", "backup"].iter().chain(command).map(|word| format!("\"{word}\""));
    let (mut mounts, mut volumes) = (String::new(), String::new());
    for (claim, folder, _) in claims {
        let _ = writeln!(mounts, "            - {{name: {claim}, mountPath: /mesh/{folder}}}");
        let _ = writeln!(volumes, "        - {{name: {claim}, persistentVolumeClaim: {{claimName: {claim}}}}}");
    }
    format!(
        "apiVersion: batch/v1
kind: Job
metadata:
  name: {name}
  labels: {labels}
spec:
  backoffLimit: 0
  template:
    metadata:
      labels: {labels}
    spec:
      automountServiceAccountToken: false
      restartPolicy: Never
{POD}      containers:
        - name: {name}
          image: continuum/continuum:{version}
          args: [{words}]
          # PLACE, RECIPIENT, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY; to restore, the file `identity`.
          envFrom: [{{secretRef: {{name: backup}}}}]
          resources:
            requests: {{cpu: 100m, memory: 128Mi}}
            limits: {{cpu: \"2\", memory: 512Mi}}
{CONTAINER}          volumeMounts:
{mounts}            # A copy that is not encrypted, until it is written.
            - {{name: run, mountPath: /mesh/run}}
            - {{name: key, mountPath: /key, readOnly: true}}
      volumes:
{volumes}        - {{name: run, emptyDir: {{}}}}
        - name: key
          secret:
            secretName: backup
            defaultMode: 0440
            optional: true
            items: [{{key: identity, path: identity}}]
",
        labels = labels(name),
        version = mesh.version,
        words = words.collect::<Vec<_>>().join(", "),
    )
}
