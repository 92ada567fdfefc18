//! The twin aggregator as a process.

mesh_kit::allocator!();

fn main() -> std::process::ExitCode {
    mesh_kit::run("cmdt-aggregator", cmdt_aggregator::start)
}
