//! The network exposer as a process.

mesh_kit::allocator!();

fn main() -> std::process::ExitCode {
    mesh_kit::run("mncc-exposer", mncc_exposer::start)
}
