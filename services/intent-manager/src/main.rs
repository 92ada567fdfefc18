//! The intent manager as a process of its own.

mesh_kit::allocator!();

fn main() -> std::process::ExitCode {
    mesh_kit::run("intent-manager", intent_manager::start)
}
