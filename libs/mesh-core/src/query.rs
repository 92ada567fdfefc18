//! Queries: their errors, a small closed set mapped to gRPC in one place, and what questions have in common.

mod page;

use std::fmt;

use mesh_proto::wording;

pub use page::{OWNER_DEFAULT, Page, SIZE_DEFAULT, SIZE_MAX, check_key, narrowed_by, owner, size};

/// Why a query was not answered. Says what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such thing.
    #[error("{what} not found; {hint}")]
    NotFound {
        /// What was looked for, with its id.
        what: String,
        /// What to do.
        hint: String,
    },
    /// The question itself is wrong.
    #[error("{what}; {hint}")]
    InvalidArgument {
        /// What is wrong with it.
        what: String,
        /// What to do.
        hint: String,
    },
    /// It cannot be answered now, but may be later.
    #[error("{what}; {hint}")]
    Unavailable {
        /// What is missing.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A limit is reached.
    #[error("{what}; {hint}")]
    Exhausted {
        /// Which limit.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A fault of the service. Its cause is in the log, not in the answer: `mesh_kit::internal` makes this.
    #[error("internal error; see the log of the service")]
    Internal,
}

impl Error {
    /// There is no such thing.
    pub fn not_found(what: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self::NotFound { what: wording::text(what.to_string()), hint: wording::text(hint) }
    }

    /// The question itself is wrong.
    pub fn invalid(what: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self::InvalidArgument { what: wording::text(what.to_string()), hint: wording::text(hint) }
    }

    /// It cannot be answered now.
    pub fn unavailable(what: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self::Unavailable { what: wording::text(what.to_string()), hint: wording::text(hint) }
    }

    /// A limit is reached.
    pub fn exhausted(what: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self::Exhausted { what: wording::text(what.to_string()), hint: wording::text(hint) }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::NotFound { .. } => Self::not_found(text),
            Error::InvalidArgument { .. } => Self::invalid_argument(text),
            Error::Unavailable { .. } => Self::unavailable(text),
            Error::Exhausted { .. } => Self::resource_exhausted(text),
            Error::Internal => Self::internal(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::*;

    #[test]
    fn every_error_has_its_code_and_tells_the_hint() {
        let cases = [
            (Error::not_found("intent local/a", "list them with `continuum intent list`"), Code::NotFound),
            (Error::invalid("page_size -1", "use 1 to 1000"), Code::InvalidArgument),
            (Error::unavailable("the bus is away", "ask again"), Code::Unavailable),
            (Error::exhausted("64 watchers", "close one"), Code::ResourceExhausted),
        ];
        for (error, code) in cases {
            let text = error.to_string();
            let status = Status::from(error);
            assert_eq!((status.code(), status.message()), (code, text.as_str()));
            assert!(text.contains("; "));
        }
        assert_eq!(Status::from(Error::Internal).code(), Code::Internal);
    }
}
