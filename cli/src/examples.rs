//! Where the example documents lie that come with the program.

use std::path::{Path, PathBuf};

/// A document that tells the folder of examples from another of that name.
const WITNESS: &str = "spinner.workload.yaml";
/// Where packages put the examples, seen from the folder of their programs (`lib/continuum`).
const SHIPPED: &str = "../../share/continuum/examples";

/// The folder with the examples: `examples` in the current folder, as in a checkout; else the one that a package ships.
pub fn folder() -> PathBuf {
    let programs = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_path_buf));
    choose(Path::new("examples"), programs.as_deref())
}

fn choose(here: &Path, programs: Option<&Path>) -> PathBuf {
    if here.join(WITNESS).is_file() {
        return here.to_owned();
    }
    let shipped = programs.and_then(|folder| folder.join(SHIPPED).canonicalize().ok());
    shipped.filter(|folder| folder.join(WITNESS).is_file()).unwrap_or_else(|| here.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn examples_of_the_current_folder_come_before_those_of_a_package() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let (here, programs) = (root.join("examples"), root.join("lib/continuum"));
        let shipped = root.join("share/continuum/examples");
        for made in [&here, &programs, &shipped] {
            fs::create_dir_all(made).unwrap();
        }
        assert_eq!(choose(&here, Some(&programs)), here, "neither holds examples");
        fs::write(shipped.join(WITNESS), "").unwrap();
        assert_eq!(choose(&here, Some(&programs)), shipped);
        assert_eq!(choose(&here, None), here);
        fs::write(here.join(WITNESS), "").unwrap();
        assert_eq!(choose(&here, Some(&programs)), here);
    }
}
