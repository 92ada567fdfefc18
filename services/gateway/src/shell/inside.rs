//! Connections to other services of the mesh: in the clear, or by TLS with the mesh's own certificates.

use anyhow::Context as _;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use mesh_kit::Settings;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// Connects to `http://` addresses in the clear and to `https://` addresses by TLS: it trusts `tls_ca_file` and shows
/// the certificate in `tls_cert_file`, as `serve_tls = mutual` asks for.
///
/// # Errors
/// When a file cannot be read, or does not hold what it should.
pub(crate) fn connector(settings: &Settings, inner: HttpConnector) -> anyhow::Result<HttpsConnector<HttpConnector>> {
    let mut trusted = RootCertStore::empty();
    if let Some(path) = &settings.tls_ca_file {
        let wrong = || format!("read tls_ca_file {}", path.display());
        for certificate in CertificateDer::pem_file_iter(path).with_context(wrong)? {
            trusted.add(certificate.with_context(wrong)?).with_context(wrong)?;
        }
    }
    let config = ClientConfig::builder().with_root_certificates(trusted);
    let config = match (&settings.tls_cert_file, &settings.tls_key_file) {
        (Some(path), Some(key)) => {
            let wrong = || format!("read tls_cert_file {}", path.display());
            let chain = CertificateDer::pem_file_iter(path).with_context(wrong)?;
            let chain = chain.collect::<Result<Vec<_>, _>>().with_context(wrong)?;
            let key = key.read().context("read tls_key_file")?;
            let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes()).context("read tls_key_file")?;
            config.with_client_auth_cert(chain, key).context("use tls_cert_file and tls_key_file")?
        }
        _ => config.with_no_client_auth(),
    };
    let builder = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1();
    Ok(builder.wrap_connector(inner))
}
