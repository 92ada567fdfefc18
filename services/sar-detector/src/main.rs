//! The SAR detector as a process.

fn main() -> std::process::ExitCode {
    mesh_kit::run("sar-detector", sar_detector::start)
}
