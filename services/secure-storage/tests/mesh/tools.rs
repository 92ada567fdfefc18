//! Tools that people own, as Debian has them: rclone and restic.

use super::*;

/// A tool of `make setup-test`; says so if it is not there.
fn tool(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/debian/usr/bin").join(name);
    if !path.is_file() {
        println!("SKIPPED: secure-storage, {name}: no .tools/debian/usr/bin/{name} (run `make setup-test`)");
        return None;
    }
    Some(path)
}

/// Some bytes that do not compress, the same each time.
fn made(length: u32) -> Vec<u8> {
    (0..length).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

struct Tool<'a> {
    site: &'a Site,
    program: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Tool<'_> {
    /// Runs it; it must end well, and say nothing of errors.
    async fn run(&self, line: &str) -> String {
        let command = Command::new(&self.program)
            .args(line.split(' '))
            .envs(self.environment.iter().map(|(name, value)| (*name, value.as_str())))
            .env_remove("AWS_CA_BUNDLE")
            .current_dir(self.site.test_bus.folder())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output =
            tokio::time::timeout(PATIENCE, command).await.unwrap_or_else(|_| panic!("{line} does not end")).unwrap();
        let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let wrong = !output.status.success() || printed.contains("ERROR") || printed.contains("Failed");
        assert!(!wrong, "{line}: {printed}\n{}", self.site.log());
        printed
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rclone_copies_over_its_cut_off_and_purges() {
    let (Some(program), Some(_)) = (tool("rclone"), python()) else { return };
    let Some(site) = Site::start("rclone").await else { return };
    let gateway = site.gateway(&[]).await;
    site.locations().await;
    site.holds(&gateway, "policies_only", "").await;
    let (access, secret) = site.access();
    let environment = vec![
        ("RCLONE_CONFIG", "rclone.conf".to_owned()),
        ("RCLONE_CONFIG_MESH_TYPE", "s3".to_owned()),
        ("RCLONE_CONFIG_MESH_PROVIDER", "Other".to_owned()),
        ("RCLONE_CONFIG_MESH_ACCESS_KEY_ID", access),
        ("RCLONE_CONFIG_MESH_SECRET_ACCESS_KEY", secret),
        ("RCLONE_CONFIG_MESH_ENDPOINT", gateway.endpoint.clone()),
        ("RCLONE_CONFIG_MESH_LOCATION_CONSTRAINT", "hybrid".to_owned()),
    ];
    let folder = site.test_bus.folder();
    std::fs::write(folder.join("rclone.conf"), "").unwrap();
    let body = made(12_000_000);
    std::fs::write(folder.join("sent"), &body).unwrap();
    let rclone = Tool { site: &site, program, environment };
    for line in [
        "mkdir mesh:tools",
        "copyto --s3-upload-cutoff 5M --s3-chunk-size 5M sent mesh:tools/a/b",
        // Larger than the cut-off: copied part by part.
        "copyto --s3-copy-cutoff 5M mesh:tools/a/b mesh:tools/a/copy",
        "copyto mesh:tools/a/b mesh:tools/a/whole",
        "moveto mesh:tools/a/whole mesh:tools/moved",
        "check --download mesh:tools/a mesh:tools/a",
        "copyto mesh:tools/a/copy got",
        "copyto mesh:tools/moved moved",
        "cat --offset 5000000 --count 3 mesh:tools/a/copy",
        "size mesh:tools",
    ] {
        rclone.run(line).await;
    }
    assert!(std::fs::read(folder.join("got")).unwrap() == body, "a copy of parts is another object");
    assert!(std::fs::read(folder.join("moved")).unwrap() == body, "what was moved is another object");
    assert_eq!(rclone.run("lsf --recursive mesh:tools").await.lines().count(), 4, "a/, a/b, a/copy, moved");
    rclone.run("purge mesh:tools").await;
    assert_eq!(rclone.run("lsd mesh:").await.trim(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn restic_backs_up_checks_forgets_and_prunes() {
    let (Some(program), Some(_)) = (tool("restic"), python()) else { return };
    let Some(site) = Site::start("restic").await else { return };
    let gateway = site.gateway(&[]).await;
    site.locations().await;
    site.holds(&gateway, "policies_only", "").await;
    let (access, secret) = site.access();
    let folder = site.test_bus.folder();
    let environment = vec![
        ("AWS_ACCESS_KEY_ID", access),
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("RESTIC_REPOSITORY", format!("s3:{}/backups/of/mine", gateway.endpoint)),
        ("RESTIC_PASSWORD", "correct horse".to_owned()),
        ("RESTIC_CACHE_DIR", folder.join("restic-cache").display().to_string()),
        ("AWS_DEFAULT_REGION", "hybrid".to_owned()),
    ];
    let restic = Tool { site: &site, program, environment };
    std::fs::create_dir(folder.join("mine")).unwrap();
    let (first, second) = (made(9_000_000), made(3_000_000));
    std::fs::write(folder.join("mine/first"), &first).unwrap();
    restic.run("init").await;
    restic.run("backup mine").await;
    std::fs::write(folder.join("mine/first"), &second).unwrap();
    std::fs::write(folder.join("mine/second"), &second).unwrap();
    restic.run("backup mine").await;
    assert!(restic.run("check --read-data").await.contains("no errors were found"));
    assert!(restic.run("forget --keep-last 1 --prune").await.contains("keep 1 snapshots"));
    assert!(restic.run("check --read-data").await.contains("no errors were found"));
    restic.run("restore latest --target back").await;
    let back = |name: &str| std::fs::read(folder.join("back").join("mine").join(name)).unwrap();
    assert!(back("first") == second && back("second") == second);
}
