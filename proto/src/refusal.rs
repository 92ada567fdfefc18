//! Why a command was not done, as a value; and the one table that says how each interface answers it.

use crate::{AnyEvent, wording};

pub use crate::continuum::mesh::v1::RefusalCode;

/// Why a command was not done: it is published as the area's refusal. Programs decide on `code`, people read the rest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; {hint}")]
pub struct Refusal {
    /// Its class.
    pub code: RefusalCode,
    /// What stands against it.
    pub reason: String,
    /// What to do instead.
    pub hint: String,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $code:ident),* $(,)?) => {
        impl Refusal {$(
            $(#[$doc])*
            pub fn $name(reason: impl Into<String>, hint: impl Into<String>) -> Self {
                Self::new(RefusalCode::$code, reason, hint)
            }
        )*}
    };
}

constructors! {
    /// The command itself is malformed or contradicts itself.
    invalid => Invalid,
    /// What the command is about does not exist.
    not_found => NotFound,
    /// Its name or id is taken.
    exists => AlreadyExists,
    /// Its name is taken, by the same owner.
    owned => AlreadyOwned,
    /// The state it is in does not allow the command.
    state => WrongState,
    /// It has changed since the sender read it.
    stale => Stale,
    /// The sender may not do this.
    denied => Denied,
    /// A limit on number or rate is reached.
    exhausted => Exhausted,
    /// A limit on size is exceeded.
    too_large => TooLarge,
    /// Nothing here can do what is asked for.
    unsupported => Unsupported,
    /// It cannot be done now, but may be later.
    unavailable => Unavailable,
    /// Something else still uses it.
    in_use => InUse,
}

impl Refusal {
    /// A refusal of this class, with its reason and hint.
    pub fn new(code: RefusalCode, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, reason: wording::text(reason), hint: wording::text(hint) }
    }

    /// The refusal that a fact of the contract carries; `None` if the fact refuses nothing.
    pub fn of(fact: &dyn AnyEvent) -> Option<Self> {
        fact.refusal().map(|(_, refusal)| refusal)
    }

    /// The refusal that an encoded fact carries, by the full name of its message; `None` if the fact refuses nothing or
    /// cannot be decoded.
    pub fn decode(message: &str, body: &[u8]) -> Option<Self> {
        crate::decode_refusal(message, body)
    }
}

/// How one class of refusals is answered by each interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The class.
    pub code: RefusalCode,
    /// Its name in `ErrorInfo.reason`, in problem documents and on the error pages.
    pub name: &'static str,
    /// The code of gRPC (grpc.io/docs/guides/status-codes).
    pub grpc: tonic::Code,
    /// The status of HTTP (RFC 9110).
    pub http: u16,
    /// The error code of S3.
    pub s3: &'static str,
    /// The exit code of the command line: sysexits.h where it has one that fits.
    pub exit: u8,
}

const fn row(
    code: RefusalCode,
    name: &'static str,
    grpc: tonic::Code,
    http: u16,
    s3: &'static str,
    exit: u8,
) -> Mapping {
    Mapping { code, name, grpc, http, s3, exit }
}

/// The table: one row for each class.
pub const MAPPINGS: [Mapping; 13] = {
    use RefusalCode as C;
    use tonic::Code as G;
    [
        row(C::Unspecified, "REFUSED", G::FailedPrecondition, 409, "OperationAborted", 1),
        row(C::Invalid, "INVALID", G::InvalidArgument, 422, "InvalidArgument", 65),
        row(C::NotFound, "NOT_FOUND", G::NotFound, 404, "NoSuchKey", 66),
        row(C::AlreadyExists, "ALREADY_EXISTS", G::AlreadyExists, 409, "BucketAlreadyExists", 73),
        row(C::AlreadyOwned, "ALREADY_OWNED", G::AlreadyExists, 409, "BucketAlreadyOwnedByYou", 73),
        row(C::WrongState, "WRONG_STATE", G::FailedPrecondition, 409, "OperationAborted", 1),
        row(C::Stale, "STALE", G::Aborted, 412, "PreconditionFailed", 1),
        row(C::Denied, "DENIED", G::PermissionDenied, 403, "AccessDenied", 77),
        row(C::Exhausted, "EXHAUSTED", G::ResourceExhausted, 429, "SlowDown", 75),
        row(C::TooLarge, "TOO_LARGE", G::InvalidArgument, 413, "EntityTooLarge", 65),
        row(C::Unsupported, "UNSUPPORTED", G::Unimplemented, 422, "NotImplemented", 69),
        row(C::Unavailable, "UNAVAILABLE", G::Unavailable, 503, "ServiceUnavailable", 75),
        row(C::InUse, "IN_USE", G::FailedPrecondition, 409, "BucketNotEmpty", 1),
    ]
};

impl RefusalCode {
    /// How each interface answers it.
    pub fn mapping(self) -> &'static Mapping {
        // The rows stand in the order of the enum; a test holds them there.
        MAPPINGS.get(self as usize).unwrap_or(&MAPPINGS[0])
    }

    /// The code of gRPC.
    pub fn grpc(self) -> tonic::Code {
        self.mapping().grpc
    }

    /// The status of HTTP.
    pub fn http(self) -> u16 {
        self.mapping().http
    }

    /// The error code of S3.
    pub fn s3(self) -> &'static str {
        self.mapping().s3
    }

    /// The exit code of the command line.
    pub fn exit(self) -> u8 {
        self.mapping().exit
    }
}

impl From<Refusal> for tonic::Status {
    /// With the class in the metadata `continuum-refusal`, as `ErrorInfo.reason` would carry it.
    fn from(refusal: Refusal) -> Self {
        let mapping = refusal.code.mapping();
        let mut status = Self::new(mapping.grpc, refusal.to_string());
        status.metadata_mut().insert("continuum-refusal", tonic::metadata::MetadataValue::from_static(mapping.name));
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Event as _, contract, intent::IntentRefused, intent::IntentSubmitted, pool};

    #[test]
    fn each_class_has_its_row_at_its_place_in_the_table() {
        let codes = pool().get_enum_by_name("continuum.mesh.v1.RefusalCode").unwrap();
        assert_eq!(codes.values().len(), MAPPINGS.len());
        for value in codes.values() {
            let row = MAPPINGS[value.number() as usize];
            assert_eq!(row.code as i32, value.number());
            let name = if value.number() == 0 { "REFUSED" } else { value.name().trim_start_matches("REFUSAL_CODE_") };
            assert_eq!(row.name, name);
        }
    }

    #[test]
    fn the_contracts_refusals_and_nothing_else_carry_a_refusal() {
        let fact = IntentRefused {
            command_id: "c".into(),
            code: RefusalCode::Stale.into(),
            reason: "it has changed".into(),
            hint: "read it again".into(),
            ..Default::default()
        };
        let refusal = Refusal::of(&fact).unwrap();
        assert_eq!(refusal, Refusal::stale("it has changed", "read it again"));
        assert_eq!(AnyEvent::refusal(&fact).map(|(command, _)| command), Some("c"));
        assert_eq!(Refusal::of(&IntentSubmitted::default()), None);
        assert_eq!(Refusal::decode(IntentRefused::MESSAGE, &AnyEvent::body(&fact)), Some(refusal));
        assert_eq!(Refusal::decode(IntentSubmitted::MESSAGE, &[]), None);
        for event in contract().events.iter().filter(|e| e.refusal) {
            let message = pool().get_message_by_name(&event.message).unwrap();
            for field in ["command_id", "command", "code", "reason", "hint"] {
                assert!(message.get_field_by_name(field).is_some(), "{} has no {field}", event.message);
            }
        }
    }

    #[test]
    fn a_refusal_of_a_release_without_codes_is_read() {
        let old = IntentRefused { reason: "no".into(), hint: "stop".into(), ..Default::default() };
        let refusal = Refusal::of(&old).unwrap();
        assert_eq!((refusal.code, refusal.code.http()), (RefusalCode::Unspecified, 409));
        let newer = IntentRefused { code: 999, ..old };
        assert_eq!(Refusal::of(&newer).unwrap().code, RefusalCode::Unspecified);
    }
}
