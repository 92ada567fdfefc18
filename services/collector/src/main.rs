//! The collector as a process.

fn main() -> std::process::ExitCode {
    mesh_kit::run("collector", collector::start)
}
