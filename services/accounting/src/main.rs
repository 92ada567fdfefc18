//! Accounting as a process of its own.

fn main() -> std::process::ExitCode {
    mesh_kit::run("accounting", accounting::start)
}
