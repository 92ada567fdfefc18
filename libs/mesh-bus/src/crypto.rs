//! The TLS provider of the process.

/// Installs the one TLS provider of the process, unless there is one already: several are compiled in, and rustls panics
/// at its first use if none was chosen.
pub fn install_crypto() {
    // An error means that one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
