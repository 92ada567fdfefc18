//! Where the workspace names its services: the table of the all-in-one, and the lists of dependencies around it.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Context as _;

use super::{
    MARK, Output,
    model::{Deployment, Mesh},
};

/// Lines between these two are generated.
const BEGIN: &str = "# Services, by `cargo xtask gen`:";
const END: &str = "# End of services.";
/// The crate that runs every service in one process.
const ALL_IN_ONE: &str = "libs/mesh-all";

/// The table and the two lists.
pub(super) fn render(root: &Path, mesh: &Mesh) -> anyhow::Result<Vec<Output>> {
    let packages: Vec<&str> = mesh.services.iter().filter_map(Deployment::package).collect();
    let listed = |line: &dyn Fn(&str) -> String| packages.iter().map(|package| line(package)).collect::<String>();
    let members = listed(&|package| format!("{package} = {{ path = \"services/{package}\" }}\n"));
    let mut all = vec![section(root, "Cargo.toml", &members)?];
    if root.join(ALL_IN_ONE).is_dir() {
        let dependencies = listed(&|package| format!("{package}.workspace = true\n"));
        all.push(section(root, &format!("{ALL_IN_ONE}/Cargo.toml"), &dependencies)?);
        all.push(Output { path: format!("{ALL_IN_ONE}/src/registry.rs"), text: table(mesh) });
    }
    Ok(all)
}

/// A file with the lines between the marks replaced.
fn section(root: &Path, path: &str, lines: &str) -> anyhow::Result<Output> {
    let text = fs::read_to_string(root.join(path)).with_context(|| format!("read {path}"))?;
    let (before, rest) = text.split_once(&format!("{BEGIN}\n")).with_context(|| format!("{path} has no {BEGIN:?}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("{path} has no {END:?}"))?;
    Ok(Output { path: path.to_owned(), text: format!("{before}{BEGIN}\n{lines}{END}{after}") })
}

fn table(mesh: &Mesh) -> String {
    let own: Vec<&Deployment> = mesh.services.iter().filter(|service| service.package().is_some()).collect();
    let apart: Vec<&&Deployment> = own.iter().filter(|service| !service.variants.is_empty()).collect();
    let mut text = format!(
        "// {MARK}

//! The table of services.

use anyhow::bail;
use mesh_kit::{{Joint, Running}};

use crate::services::Member;

/// The services of one machine, in start order. Those that run once per cluster are not among them.
pub const SERVICES: [&str; {}] = [
",
        own.len() - apart.len()
    );
    for service in own.iter().filter(|service| service.variants.is_empty()) {
        let _ = writeln!(text, "    {:?},", service.name);
    }
    text.push_str(
        "];

impl Member {
    /// Joins as tasks of this process, over what its services share.
    pub(crate) async fn join(self, joint: &Joint) -> anyhow::Result<Running> {
        match self.service {
",
    );
    for service in own {
        let module = service.name.replace('-', "_");
        let _ = writeln!(text, "            {:?} => self.join_as(joint, {module}::start).await,", service.name);
    }
    text.push_str(
        "            other => bail!(\"unknown service {other:?}\"),
        }
    }
}
",
    );
    text
}
