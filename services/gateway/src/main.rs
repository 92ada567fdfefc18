//! The gateway as a process.

fn main() -> std::process::ExitCode {
    mesh_kit::run("gateway", gateway::start)
}
