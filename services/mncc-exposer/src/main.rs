//! The network exposer as a process.

fn main() -> std::process::ExitCode {
    mesh_kit::run("mncc-exposer", mncc_exposer::start)
}
