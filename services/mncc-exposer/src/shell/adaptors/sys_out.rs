//! `sys_out`: writes the translation to the log, secrets redacted.

use super::{Adaptor, Call, Error};
use crate::domain::intents::redact;

pub(super) struct SysOut;

#[tonic::async_trait]
impl Adaptor for SysOut {
    fn name(&self) -> &'static str {
        "sys_out"
    }

    async fn call(&self, call: &Call<'_>) -> Result<String, Error> {
        tracing::info!(network = call.id, translation = redact(call.body).to_string(), "translated");
        Ok("written to the log".into())
    }
}
