//! The learner as a process.

fn main() -> std::process::ExitCode {
    mesh_kit::run("cfdrl-agent", cfdrl_agent::start)
}
