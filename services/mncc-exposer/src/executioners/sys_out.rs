//! `sys_out`: writes the translation to the log, secrets redacted.

use super::{Error, Executioner, Order};
use crate::domain::intents::redact;

pub(super) struct SysOut;

#[tonic::async_trait]
impl Executioner for SysOut {
    fn name(&self) -> &'static str {
        "sys_out"
    }

    async fn call(&self, order: &Order<'_>) -> Result<String, Error> {
        tracing::info!(network = order.id, translation = redact(order.body).to_string(), "translated");
        Ok("written to the log".into())
    }
}
