//! The meta-orchestrator as a process of its own.

mesh_kit::allocator!();

fn main() -> std::process::ExitCode {
    mesh_kit::run("meta-orchestrator", meta_orchestrator::start)
}
