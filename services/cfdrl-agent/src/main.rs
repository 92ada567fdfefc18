//! The learner as a process.

mesh_kit::allocator!();

fn main() -> std::process::ExitCode {
    mesh_kit::run("cfdrl-agent", cfdrl_agent::start)
}
