//! The SAR detector as a process.

mesh_kit::allocator!();

fn main() -> std::process::ExitCode {
    mesh_kit::run("sar-detector", sar_detector::start)
}
