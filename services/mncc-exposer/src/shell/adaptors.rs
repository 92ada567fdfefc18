//! Adaptors: they make the calls that libraries ask for.

pub mod http;
mod l2sm;
pub mod linux;
mod sys_out;
mod tfs;

use serde_json::Value;

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Owner and network intent that it is for.
    pub id: &'a str,
    /// What to do.
    pub operation: &'a str,
    /// Where.
    pub target: &'a str,
    /// With what.
    pub body: &'a Value,
}

/// Why a call was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The call itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The other side is not there, or does not speak as it should.
    #[error("{0}")]
    Unreachable(String),
    /// The other side refused.
    #[error("{0}")]
    Refused(String),
    /// This process may not do it.
    #[error("{0}")]
    Forbidden(String),
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Invalid(_) => "correct the intent",
            Self::Unreachable(_) => "see whether the target runs and is reachable from here, then submit again",
            Self::Refused(_) => "see the target's log, then submit again",
            Self::Forbidden(_) => "run the exposer as root or with CAP_NET_ADMIN and CAP_SYS_ADMIN",
        }
        .into()
    }
}

/// Makes calls of one kind. May be asked to make the same call again.
#[tonic::async_trait]
pub trait Adaptor: Send + Sync {
    /// Its name, as libraries use it.
    fn name(&self) -> &str;

    /// Makes a call; says what came of it.
    ///
    /// # Errors
    /// If it was not made.
    async fn call(&self, call: &Call<'_>) -> Result<String, Error>;
}

/// Those that come with the exposer.
pub fn standard(netns_dir: &str) -> Vec<Box<dyn Adaptor>> {
    vec![
        Box::new(sys_out::SysOut),
        Box::new(http::Http),
        Box::new(tfs::Tfs),
        Box::new(l2sm::L2sm),
        Box::new(linux::Linux::new(netns_dir)),
    ]
}

#[cfg(test)]
mod tests;
