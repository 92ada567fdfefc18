//! Problem documents: why a request was not fulfilled (RFC 9457).

use mesh_proto::{Refusal, RefusalCode, wording};
use serde::Serialize;
use serde_json::json;

/// Kinds of problems: the last segment of the type, its title, and its status.
const KINDS: [(Kind, &str, &str, u16); 17] = [
    (Kind::Malformed, "malformed", "The request cannot be read", 400),
    (Kind::Unauthenticated, "unauthenticated", "Sign in first", 401),
    (Kind::Forbidden, "forbidden", "Not allowed", 403),
    (Kind::NotFound, "not-found", "Not found", 404),
    (Kind::Method, "method", "This path has other methods", 405),
    (Kind::Timeout, "timeout", "The request came too slowly", 408),
    (Kind::Conflict, "conflict", "Its state does not allow this", 409),
    (Kind::Precondition, "precondition", "It has changed since", 412),
    (Kind::TooLarge, "too-large", "The request is too large", 413),
    (Kind::MediaType, "media-type", "The body is of another type", 415),
    (Kind::Invalid, "invalid", "The content is not valid", 422),
    (Kind::Replayed, "idempotency-key", "The idempotency key was used for something else", 422),
    (Kind::TooMany, "too-many", "Too many requests", 429),
    (Kind::Internal, "internal", "Internal error", 500),
    (Kind::Upstream, "upstream", "The workload does not answer", 502),
    (Kind::Unavailable, "unavailable", "Unavailable at the moment", 503),
    (Kind::Late, "late", "It took too long", 504),
];

/// What kind of problem it is.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Malformed,
    Unauthenticated,
    Forbidden,
    NotFound,
    Method,
    Timeout,
    Conflict,
    Precondition,
    TooLarge,
    MediaType,
    Invalid,
    Replayed,
    TooMany,
    Internal,
    Upstream,
    Unavailable,
    Late,
}

/// One fault of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Path to the field, `intentExpectations[0].expectationVerb`.
    pub path: String,
    /// What is wrong.
    pub reason: String,
    /// What would be right.
    pub hint: String,
}

/// A problem document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}; {hint}")]
pub struct Problem {
    /// Its kind, which fixes type, title and status.
    pub kind: Kind,
    /// What happened this time.
    pub detail: String,
    /// What to do.
    pub hint: String,
    /// Each fault of a document.
    pub faults: Vec<Fault>,
    /// Path of what it is about; empty for the request's own.
    pub instance: String,
    /// After how many seconds it may be tried again.
    pub retry_after_s: Option<u32>,
    /// Class of the refusal, if the service that decides refused a command; `None` for every other problem.
    pub refusal: Option<RefusalCode>,
}

impl From<Refusal> for Problem {
    /// The status is the one that the contract's table gives this class.
    fn from(refusal: Refusal) -> Self {
        let kind = KINDS.iter().find(|(.., status)| *status == refusal.code.http()).map_or(Kind::Conflict, |row| row.0);
        let retry_after_s = matches!(kind, Kind::TooMany | Kind::Unavailable).then_some(1);
        Self { retry_after_s, refusal: Some(refusal.code), ..Self::new(kind, refusal.reason, refusal.hint) }
    }
}

impl Problem {
    /// A problem with what happened and what to do.
    pub fn new(kind: Kind, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            kind,
            detail: wording::text(detail),
            hint: wording::text(hint),
            faults: vec![],
            instance: String::new(),
            retry_after_s: None,
            refusal: None,
        }
    }

    /// Too many requests; the caller may send the next after this many seconds.
    pub fn too_many(wait_s: u32) -> Self {
        let hint = format!("wait {wait_s} s, and send fewer requests");
        Self { retry_after_s: Some(wait_s), ..Self::new(Kind::TooMany, "too many requests", hint) }
    }

    /// The same for a command about something that exists: what the decider did not find is something else that the
    /// command names, a version for example, so that it is a conflict and not a 404.
    pub fn of_existing(self) -> Self {
        match self.refusal {
            Some(RefusalCode::NotFound) => Self { kind: Kind::Conflict, ..self },
            _ => self,
        }
    }

    /// The body cannot be read.
    pub fn malformed(detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(Kind::Malformed, detail, hint)
    }

    /// It does not exist, or the caller may not know of it.
    pub fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(Kind::NotFound, format!("{what} does not exist"), "list what exists, or ask its owner")
    }

    /// One field is wrong.
    pub fn field(path: &str, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        let (reason, hint) = (wording::text(reason), wording::text(hint));
        let fault = Fault { path: path.into(), reason: reason.clone(), hint: hint.clone() };
        Self { faults: vec![fault], ..Self::new(Kind::Invalid, format!("{path}: {reason}"), hint) }
    }

    /// A document has these faults.
    pub fn faults(mut faults: Vec<Fault>) -> Self {
        for fault in &mut faults {
            fault.reason = wording::text(std::mem::take(&mut fault.reason));
            fault.hint = wording::text(std::mem::take(&mut fault.hint));
        }
        let text = |of: fn(&Fault) -> String| faults.iter().map(of).collect::<Vec<_>>().join("; ");
        let detail = text(|f| format!("{}: {}", f.path, f.reason));
        let hint = text(|f| f.hint.clone());
        Self { faults, ..Self::new(Kind::Invalid, detail, hint) }
    }

    /// About this path.
    pub fn at(mut self, instance: impl Into<String>) -> Self {
        self.instance = instance.into();
        self
    }

    fn row(&self) -> (&'static str, &'static str, u16) {
        let row = KINDS.iter().find(|(kind, ..)| *kind == self.kind);
        row.map_or(("internal", "Internal error", 500), |(_, slug, title, status)| (slug, title, *status))
    }

    /// HTTP status.
    pub fn status(&self) -> u16 {
        self.row().2
    }

    /// The document, for a request to this path.
    pub fn document(&self, path: &str) -> serde_json::Value {
        let (slug, title, status) = self.row();
        let instance = if self.instance.is_empty() { path } else { &self.instance };
        let mut document = json!({
            "type": format!("/problems/{slug}"), "title": title, "status": status, "detail": self.detail,
            "instance": instance, "hint": self.hint,
        });
        if !self.faults.is_empty() {
            document["errors"] = json!(self.faults);
        }
        document
    }
}

/// The page that a problem's type leads to; `None` if there is no such type.
pub fn explain(slug: &str) -> Option<String> {
    let (_, _, title, status) = KINDS.iter().find(|(_, known, ..)| *known == slug)?;
    Some(format!(
        "{title} (HTTP status {status}).\n\nThe document's `detail` describes what happened, `hint` what to do, and `errors`, if \
         present, each field that is wrong.\n"
    ))
}

/// Schema of the document, for OpenAPI.
pub fn schema() -> serde_json::Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": "A problem document (RFC 9457).",
        "required": ["type", "title", "status", "detail", "instance", "hint"],
        "properties": {
            "type": text("Kind of problem, a path of this server that explains it."),
            "title": text("The kind in words."),
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": text("What happened this time."),
            "instance": text("What it is about."),
            "hint": text("What to do."),
            "errors": {"type": "array", "items": {
                "type": "object", "required": ["path", "reason", "hint"],
                "properties": {"path": text("The field."), "reason": text("What is wrong."), "hint": text("What would be right.")},
            }},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_type_and_a_page() {
        for (kind, slug, title, status) in KINDS {
            let problem = Problem::new(kind, "d", "c");
            let document = problem.document("/p");
            assert_eq!(document["type"], format!("/problems/{slug}"));
            assert_eq!((document["status"].as_u64(), problem.status()), (Some(u64::from(status)), status));
            assert!(explain(slug).unwrap().contains(title));
            assert_eq!(KINDS.iter().filter(|(_, other, ..)| *other == slug).count(), 1);
            assert_eq!(KINDS.iter().filter(|(other, ..)| *other == kind).count(), 1);
        }
        assert_eq!(explain("nothing"), None);
    }

    #[test]
    fn a_refusal_has_the_status_that_the_contract_gives_its_class() {
        for (refusal, kind) in [
            (Refusal::invalid("r", "h"), Kind::Invalid),
            (Refusal::not_found("r", "h"), Kind::NotFound),
            (Refusal::exists("r", "h"), Kind::Conflict),
            (Refusal::state("r", "h"), Kind::Conflict),
            (Refusal::stale("r", "h"), Kind::Precondition),
            (Refusal::denied("r", "h"), Kind::Forbidden),
            (Refusal::exhausted("r", "h"), Kind::TooMany),
            (Refusal::too_large("r", "h"), Kind::TooLarge),
            (Refusal::unavailable("r", "h"), Kind::Unavailable),
            (Refusal::in_use("r", "h"), Kind::Conflict),
        ] {
            let (code, problem) = (refusal.code, Problem::from(refusal));
            assert_eq!((problem.kind, problem.status(), problem.refusal), (kind, code.http(), Some(code)));
        }
        let lacking = Problem::from(Refusal::not_found("r", "h")).of_existing();
        assert_eq!((lacking.status(), lacking.refusal), (409, Some(RefusalCode::NotFound)));
        assert_eq!(Problem::not_found("x").of_existing().status(), 404);
        assert_eq!(Problem::not_found("x").refusal, None, "nobody refused a command");
    }

    #[test]
    fn faults_name_their_fields_and_a_hint() {
        let document = Problem::field("a.b", "is 7", "use 8").document("/x");
        assert_eq!(document["errors"][0], json!({"path": "a.b", "reason": "is 7", "hint": "use 8"}));
        assert_eq!((document["detail"].as_str(), document["instance"].as_str()), (Some("a.b: is 7"), Some("/x")));
        assert_eq!(Problem::not_found("x").at("/y").document("/x")["instance"], "/y");
    }
}
