//! The workload manager as a process of its own.

mesh_kit::allocator!();

fn main() -> std::process::ExitCode {
    mesh_kit::run("workload-manager", workload_manager::start)
}
