//! Who sends a request, and what answers it.

use s3s::{
    S3Request, S3Result,
    auth::{S3Auth, SecretKey},
    s3_error,
};

use super::asked::Caller;
use crate::objects::ObjectStore;

/// Secrets by access key.
pub(crate) struct Auth(pub(crate) ObjectStore);

#[async_trait::async_trait]
impl S3Auth for Auth {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        match self.0.keys.access.get(access_key) {
            Some((_, credentials)) => Ok(SecretKey::from(credentials.secret.as_str())),
            None => Err(s3_error!(InvalidAccessKeyId, "access key {access_key} does not exist")),
        }
    }
}

/// Answers S3 requests.
#[derive(Clone)]
pub(crate) struct Handler(pub(crate) ObjectStore);

/// The owner whose access key signed a request.
pub(crate) fn owner<T>(store: &ObjectStore, request: &S3Request<T>) -> S3Result<String> {
    if let Some(Caller(owner)) = request.extensions.get::<Caller>() {
        return Ok(owner.clone());
    }
    let signed = request.credentials.as_ref().and_then(|c| store.keys.access.get(&c.access_key));
    signed.map(|(owner, _)| owner.clone()).ok_or_else(|| s3_error!(AccessDenied, "the request is not signed"))
}
