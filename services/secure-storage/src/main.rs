//! The storage gateway as a process of its own.

fn main() -> std::process::ExitCode {
    mesh_kit::run("secure-storage", secure_storage::start)
}
