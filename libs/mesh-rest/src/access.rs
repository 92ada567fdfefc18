//! Who may do what: roles, and one table of permissions.

use mesh_proto::{derived_id, is_key};

use crate::{
    problem::{Kind, Problem},
    token::{Claims, texts},
};

/// What somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Runs the mesh.
    Administrator,
    /// Brings clusters in.
    Provider,
    /// Has workloads and intents.
    Owner,
    /// Looks.
    Viewer,
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// See intents and their reports.
    ReadIntents,
    /// Submit, change, suspend, end intents.
    WriteIntents,
    /// See workload documents and instances.
    ReadWorkloads,
    /// Register documents, run and stop instances.
    WriteWorkloads,
    /// See clusters.
    ReadClusters,
    /// Declare clusters.
    WriteClusters,
    /// See measurements, anomalies, observations and twins; those of the infrastructure are everybody's.
    ReadTelemetry,
    /// Make and change accounts of the built-in issuer.
    WriteAccounts,
    /// Know who one is, and sign out.
    OwnSession,
}

/// How far a permission reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Nowhere.
    Nothing,
    /// To objects of one's own owner.
    Own,
    /// To everybody's.
    All,
}

use Action::{
    OwnSession, ReadClusters, ReadIntents, ReadTelemetry, ReadWorkloads, WriteAccounts, WriteClusters, WriteIntents,
    WriteWorkloads,
};
use Reach::{All, Nothing, Own};

/// Roles, in the order of the columns of [`MATRIX`].
pub const ROLES: [(Role, &str); 4] = [
    (Role::Administrator, "administrator"),
    (Role::Provider, "provider"),
    (Role::Owner, "owner"),
    (Role::Viewer, "viewer"),
];

/// The permission matrix: for each action, how far it reaches for an administrator, a provider of clusters, an owner of
/// workloads, and a viewer.
pub const MATRIX: [(Action, [Reach; 4]); 9] = [
    (ReadIntents, [All, Nothing, Own, Own]),
    (WriteIntents, [All, Nothing, Own, Nothing]),
    (ReadWorkloads, [All, Nothing, Own, Own]),
    (WriteWorkloads, [All, Nothing, Own, Nothing]),
    (ReadClusters, [All, All, All, All]),
    (WriteClusters, [All, All, Nothing, Nothing]),
    (ReadTelemetry, [All, Own, Own, Own]),
    (WriteAccounts, [All, Nothing, Nothing, Nothing]),
    (OwnSession, [All, All, All, All]),
];

/// Somebody whose token was good; the default is nobody, who may do nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Subject of the token.
    pub subject: String,
    /// Name to show.
    pub name: String,
    /// Whose objects are its own.
    pub owner: String,
    /// What it is, without repetition.
    pub roles: Vec<Role>,
    /// Session of the built-in issuer that the token belongs to; empty for others.
    pub session: String,
}

/// Where the claims of a provider are.
#[derive(Clone, Debug)]
pub struct ClaimNames {
    /// Dotted paths to lists of roles.
    pub roles: Vec<String>,
    /// Claim that names whose objects are the caller's own.
    pub owner: String,
}

impl Caller {
    /// Who a good token is about. An owner that cannot stand in a subject is replaced by an id derived from it, so that
    /// two of them never become one.
    pub fn of(claims: &Claims, names: &ClaimNames) -> Self {
        let mut roles: Vec<Role> = names
            .roles
            .iter()
            .flat_map(|path| texts(&claims.all, path))
            .filter_map(|name| ROLES.iter().find(|(_, known)| *known == name).map(|(role, _)| *role))
            .collect();
        roles.sort_unstable();
        roles.dedup();
        let text = |name: &str| claims.all[name].as_str().unwrap_or_default().to_owned();
        let owner = Some(text(&names.owner)).filter(|owner| !owner.is_empty()).unwrap_or(claims.subject.clone());
        let owner = if is_key(&owner) { owner } else { derived_id(&["owner", &text("iss"), &owner]) };
        let name = Some(text("preferred_username")).filter(|name| !name.is_empty()).unwrap_or(claims.subject.clone());
        Self { subject: claims.subject.clone(), name, owner, roles, session: text("sid") }
    }

    /// Whether its roles permit an action at all.
    ///
    /// # Errors
    /// When they do not, with the roles that would.
    pub fn permits(&self, action: Action) -> Result<(), Problem> {
        if self.reach(action) > Nothing {
            return Ok(());
        }
        let detail = format!("{} may not do that ({action:?})", self.name);
        let hint = format!("ask an administrator for one of the roles: {}", who_may(action));
        Err(Problem::new(Kind::Forbidden, detail, hint))
    }

    /// How far it may do something.
    pub fn reach(&self, action: Action) -> Reach {
        let row = MATRIX.iter().find(|(of, _)| *of == action).map(|(_, row)| row);
        let of = |role: &Role| {
            let column = ROLES.iter().position(|(of, _)| of == role)?;
            row?.get(column).copied()
        };
        self.roles.iter().filter_map(of).max().unwrap_or(Nothing)
    }

    /// May it see and use an exposed workload of this owner, whose document allows these users?
    pub fn may_use(&self, owner: &str, users: &[String]) -> bool {
        self.roles.contains(&Role::Administrator)
            || (self.owner == owner && self.reach(ReadWorkloads) >= Own)
            || users.iter().any(|user| user == "*" || *user == self.subject)
    }
}

/// Roles that may do something, for a refusal that says who could.
pub fn who_may(action: Action) -> String {
    let row = MATRIX.iter().find(|(of, _)| *of == action).map(|(_, row)| row.as_slice()).unwrap_or_default();
    let may = ROLES.iter().zip(row).filter(|(_, reach)| **reach > Nothing).map(|((_, name), _)| *name);
    may.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn caller(roles: &[Role]) -> Caller {
        Caller {
            subject: "s".into(),
            name: "n".into(),
            owner: "mine".into(),
            roles: roles.to_vec(),
            session: String::new(),
        }
    }

    #[test]
    fn the_matrix_has_each_action_once_and_roles_only_add() {
        for (action, row) in MATRIX {
            assert_eq!(MATRIX.iter().filter(|(of, _)| *of == action).count(), 1);
            for (a, (one, _)) in ROLES.iter().enumerate() {
                assert_eq!(caller(&[*one]).reach(action), row[a]);
                for (b, (two, _)) in ROLES.iter().enumerate() {
                    assert_eq!(caller(&[*one, *two]).reach(action), row[a].max(row[b]));
                }
            }
            assert_eq!(caller(&[]).reach(action), Nothing, "without a role nothing is allowed");
            assert_eq!(row[0], All, "an administrator may do everything");
        }
        assert_eq!(who_may(WriteIntents), "administrator, owner");
    }

    #[test]
    fn a_viewer_and_a_provider_write_no_intents() {
        assert_eq!(caller(&[Role::Viewer]).reach(WriteIntents), Nothing);
        assert_eq!(caller(&[Role::Provider]).reach(WriteIntents), Nothing);
        assert_eq!(caller(&[Role::Viewer, Role::Owner]).reach(WriteIntents), Own);
    }

    #[test]
    fn an_exposed_workload_is_for_its_owner_and_those_it_names() {
        let viewer = caller(&[Role::Viewer]);
        assert!(viewer.may_use("mine", &[]));
        assert!(!viewer.may_use("theirs", &[]));
        assert!(viewer.may_use("theirs", &["s".into()]) && viewer.may_use("theirs", &["*".into()]));
        assert!(!viewer.may_use("theirs", &["S".into(), String::new()]));
        assert!(!caller(&[Role::Provider]).may_use("mine", &[]), "a provider sees no workloads, not even so");
        assert!(caller(&[Role::Administrator]).may_use("theirs", &[]));
    }

    #[test]
    fn owners_that_no_subject_can_hold_stay_apart() {
        let names = ClaimNames { roles: vec!["roles".into(), "realm_access.roles".into()], owner: "org".into() };
        let of = |all: serde_json::Value| Caller::of(&Claims { subject: "auth0|7".into(), expires: 0, all }, &names);
        let one = of(json!({"iss": "i", "roles": ["owner", "owner", "boss"], "realm_access": {"roles": ["viewer"]}}));
        assert_eq!(one.roles, [Role::Owner, Role::Viewer]);
        assert!(is_key(&one.owner));
        assert_ne!(one.owner, of(json!({"iss": "j"})).owner, "the same subject of two issuers is two people");
        assert_ne!(of(json!({"iss": "i", "org": "a.b"})).owner, of(json!({"iss": "i", "org": "a>b"})).owner);
        assert_eq!(of(json!({"org": "plant"})).owner, "plant");
    }
}
