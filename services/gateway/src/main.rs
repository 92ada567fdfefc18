//! The gateway as a process.

mesh_kit::allocator!();

fn main() -> std::process::ExitCode {
    mesh_kit::run("gateway", gateway::start)
}
