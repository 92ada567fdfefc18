//! The storage gateway as a process of its own.

mesh_kit::allocator!();

fn main() -> std::process::ExitCode {
    mesh_kit::run("secure-storage", secure_storage::start)
}
