//! The intent manager as a process of its own.

fn main() -> std::process::ExitCode {
    mesh_kit::run("intent-manager", intent_manager::start)
}
