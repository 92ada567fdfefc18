//! One cluster's agent as a process of its own.

mesh_kit::allocator!();

fn main() -> std::process::ExitCode {
    mesh_kit::run("cluster-agent", cluster_agent::start)
}
