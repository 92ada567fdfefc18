//! Accounts of the built-in issuer and their sessions. An entity is one account or one session, `[realm, name]`.
//!
//! A refresh token is good once. If it comes a second time, it was stolen, by the first sender or by the second, and the
//! whole session ends (RFC 9700 §4.14.2).

use mesh_core::{Decider, Envelope, Key, Trigger};
use mesh_proto::{
    Refusal, Timestamp,
    deciders::identities::{Fact, Input, NAME},
    identity::{
        AccountDefined, AccountRemoved, DefineAccount, OpenSession, RenewSession, SessionClosed, SessionOpened,
        SessionRenewed,
    },
    is_key,
};
use serde::{Deserialize, Serialize};

use mesh_rest::access::ROLES;

/// Realm of accounts.
pub const ACCOUNT: &str = "account";
/// Realm of sessions.
pub const SESSION: &str = "session";

/// The decider of accounts and sessions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identities;

/// One account, or one session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The account, while there is one.
    pub account: Option<Account>,
    /// The session, once there was one.
    pub session: Option<Session>,
}

/// An account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Argon2id in PHC form.
    pub password_hash: String,
    /// Names of its roles.
    pub roles: Vec<String>,
    /// Whose objects it works on.
    pub owner: String,
    /// It cannot sign in.
    pub disabled: bool,
}

/// A session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// SHA-256 of the one token that renews it; empty once it is closed.
    pub token_hash: String,
    /// When it ends, milliseconds since 1970.
    pub expires_ms: i64,
}

impl From<&AccountDefined> for Account {
    fn from(fact: &AccountDefined) -> Self {
        Self {
            password_hash: fact.password_hash.clone(),
            roles: fact.roles.clone(),
            owner: fact.owner.clone(),
            disabled: fact.disabled,
        }
    }
}

fn define(state: &State, key: &Key, wanted: &DefineAccount, id: &str) -> Result<Fact, Refusal> {
    let name = key.token(1);
    if wanted.only_new && state.account.is_some() {
        return Err(Refusal::exists(format!("account {name} exists"), "choose another name, or change this one"));
    }
    if let Some(role) = wanted.roles.iter().find(|role| !ROLES.iter().any(|(_, known)| known == role)) {
        let known: Vec<&str> = ROLES.iter().map(|(_, name)| *name).collect();
        return Err(Refusal::invalid(format!("{role:?} is not a role"), format!("use {}", known.join(", "))));
    }
    let owner = if wanted.owner.is_empty() { name } else { &wanted.owner };
    if !is_key(owner) {
        return Err(Refusal::invalid(
            format!("{owner:?} is not a valid owner"),
            "use 1 to 64 letters, digits, `_` and `-`",
        ));
    }
    let kept = state.account.as_ref().map(|account| account.password_hash.clone()).unwrap_or_default();
    let hash = if wanted.password_hash.is_empty() { kept } else { wanted.password_hash.clone() };
    if !hash.starts_with("$argon2id$") || hash.len() > 512 {
        return Err(Refusal::invalid("the password is not hashed with argon2id", "give a hash in PHC form"));
    }
    let mut roles = wanted.roles.clone();
    roles.sort();
    roles.dedup();
    Ok(AccountDefined {
        realm: ACCOUNT.into(),
        name: name.into(),
        password_hash: hash,
        roles,
        owner: owner.into(),
        disabled: wanted.disabled,
        command_id: id.into(),
    }
    .into())
}

fn open(state: &State, key: &Key, wanted: &OpenSession, id: &str) -> Result<Fact, Refusal> {
    if state.session.is_some() {
        return Err(Refusal::exists("this session was opened before", "sign in again"));
    }
    Ok(SessionOpened {
        realm: SESSION.into(),
        name: key.token(1).into(),
        account: wanted.account.clone(),
        client_id: wanted.client_id.clone(),
        token_hash: wanted.token_hash.clone(),
        expires: wanted.expires,
        command_id: id.into(),
    }
    .into())
}

fn renew(state: &State, key: &Key, wanted: &RenewSession, at: Timestamp, id: &str) -> Result<Fact, Refusal> {
    let over = |why: &str| Refusal::denied(why, "sign in again");
    let session = state.session.as_ref().ok_or_else(|| over("the session does not exist"))?;
    if session.token_hash.is_empty() {
        return Err(over("the session is closed"));
    }
    if at.as_millis() > session.expires_ms {
        return Err(over("the session has expired"));
    }
    if wanted.presented_hash != session.token_hash {
        return Ok(closed(key, "a refresh token was used twice", id));
    }
    Ok(SessionRenewed {
        realm: SESSION.into(),
        name: key.token(1).into(),
        token_hash: wanted.next_hash.clone(),
        expires: wanted.expires,
        command_id: id.into(),
    }
    .into())
}

fn closed(key: &Key, reason: &str, id: &str) -> Fact {
    SessionClosed { realm: SESSION.into(), name: key.token(1).into(), reason: reason.into(), command_id: id.into() }
        .into()
}

impl Decider for Identities {
    const NAME: &'static str = NAME;
    type State = State;
    type ReadModel = ();
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) -> State {
        State::default()
    }

    fn concerns(&self, input: &Input, _: &()) -> Vec<Key> {
        let (realm, name, wanted) = match input {
            Input::DefineAccount(m) => (&m.realm, &m.name, ACCOUNT),
            Input::RemoveAccount(m) => (&m.realm, &m.name, ACCOUNT),
            Input::OpenSession(m) => (&m.realm, &m.name, SESSION),
            Input::RenewSession(m) => (&m.realm, &m.name, SESSION),
            Input::CloseSession(m) => (&m.realm, &m.name, SESSION),
        };
        // A command on the other realm's subject concerns no entity.
        if realm == wanted && is_key(name) { vec![Key::new([realm, name])] } else { vec![] }
    }

    fn decide(&self, key: &Key, state: &State, _: &(), envelope: &Envelope<Input>) -> Result<Vec<Fact>, Refusal> {
        let Trigger::Event(input) = &envelope.trigger else { return Ok(vec![]) };
        let id = &envelope.id;
        let fact = match input {
            Input::DefineAccount(wanted) => define(state, key, wanted, id)?,
            Input::RemoveAccount(_) if state.account.is_none() => {
                return Err(Refusal::not_found(
                    format!("account {} does not exist", key.token(1)),
                    "list the accounts",
                ));
            }
            Input::RemoveAccount(_) => {
                AccountRemoved { realm: ACCOUNT.into(), name: key.token(1).into(), command_id: id.clone() }.into()
            }
            Input::OpenSession(wanted) => open(state, key, wanted, id)?,
            Input::RenewSession(wanted) => renew(state, key, wanted, envelope.at, id)?,
            Input::CloseSession(_) => match &state.session {
                Some(session) if !session.token_hash.is_empty() => closed(key, "signed out", id),
                _ => return Err(Refusal::not_found("the session does not exist, or is closed", "no action is needed")),
            },
        };
        Ok(vec![fact])
    }

    fn evolve(&self, mut state: State, fact: &Fact, _: Timestamp) -> State {
        let ms = |at: Option<Timestamp>| at.map_or(0, |at| at.as_millis());
        match fact {
            Fact::AccountDefined(fact) => state.account = Some(Account::from(fact)),
            Fact::AccountRemoved(_) => state.account = None,
            Fact::SessionOpened(fact) => {
                state.session = Some(Session { token_hash: fact.token_hash.clone(), expires_ms: ms(fact.expires) });
            }
            Fact::SessionRenewed(fact) => {
                state.session = Some(Session { token_hash: fact.token_hash.clone(), expires_ms: ms(fact.expires) });
            }
            Fact::SessionClosed(_) => {
                let expires_ms = state.session.map_or(0, |session| session.expires_ms);
                state.session = Some(Session { token_hash: String::new(), expires_ms });
            }
            Fact::IdentityRefused(_) => {}
        }
        state
    }

    fn due(&self, _: &State) -> Option<Timestamp> {
        None
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::identity::{CloseSession, RemoveAccount};
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "$argon2id$v=19$m=1,t=1,p=1$c2FsdHNhbHQ$aGFzaA";

    fn ask(state: &mut State, key: &Key, input: Input, at_ms: i64) -> Result<Vec<Fact>, Refusal> {
        let envelope = Envelope {
            trigger: Trigger::Event(input),
            at: Timestamp::from_millis(at_ms),
            id: "c".into(),
            sequence: 1,
            body: bytes::Bytes::new(),
        };
        let facts = Identities.decide(key, state, &(), &envelope)?;
        for fact in &facts {
            *state = Identities.evolve(std::mem::take(state), fact, envelope.at);
        }
        Ok(facts)
    }

    fn account(name: &str) -> DefineAccount {
        DefineAccount {
            realm: ACCOUNT.into(),
            name: name.into(),
            password_hash: HASH.into(),
            roles: vec!["owner".into()],
            ..DefineAccount::default()
        }
    }

    fn session(hash: &str) -> OpenSession {
        OpenSession {
            realm: SESSION.into(),
            name: "s".into(),
            account: "ada".into(),
            token_hash: hash.into(),
            expires: Some(Timestamp::from_millis(1_000)),
            ..OpenSession::default()
        }
    }

    fn renewal(presented: &str, next: &str) -> Input {
        RenewSession {
            realm: SESSION.into(),
            name: "s".into(),
            presented_hash: presented.into(),
            next_hash: next.into(),
            expires: Some(Timestamp::from_millis(2_000)),
        }
        .into()
    }

    #[test]
    fn an_account_is_made_once_changed_and_removed() {
        let (mut state, key) = (State::default(), Key::new([ACCOUNT, "ada"]));
        ask(&mut state, &key, account("ada").into(), 0).unwrap();
        assert_eq!(state.account.as_ref().unwrap().owner, "ada", "its own name when none is given");
        let again = DefineAccount { only_new: true, ..account("ada") };
        assert!(ask(&mut state, &key, again.into(), 0).is_err());
        let kept = DefineAccount { password_hash: String::new(), disabled: true, ..account("ada") };
        ask(&mut state, &key, kept.into(), 0).unwrap();
        let now = state.account.clone().unwrap();
        assert_eq!((now.password_hash.as_str(), now.disabled), (HASH, true));
        for wrong in [
            DefineAccount { roles: vec!["root".into()], ..account("ada") },
            DefineAccount { password_hash: "plain".into(), ..account("ada") },
            DefineAccount { owner: "a.b".into(), ..account("ada") },
        ] {
            let before = state.clone();
            assert!(ask(&mut state, &key, wrong.into(), 0).is_err());
            assert_eq!(state, before);
        }
        let remove = || RemoveAccount { realm: ACCOUNT.into(), name: "ada".into() };
        ask(&mut state, &key, remove().into(), 0).unwrap();
        assert!(ask(&mut state, &key, remove().into(), 0).is_err());
    }

    #[test]
    fn a_refresh_token_is_good_once_and_its_second_use_ends_the_session() {
        let (mut state, key) = (State::default(), Key::new([SESSION, "s"]));
        ask(&mut state, &key, session("one").into(), 0).unwrap();
        assert!(ask(&mut state, &key, session("other").into(), 0).is_err(), "a code opens one session");
        ask(&mut state, &key, renewal("one", "two"), 1_000).unwrap();
        ask(&mut state, &key, renewal("two", "three"), 1_500).unwrap();
        let facts = ask(&mut state, &key, renewal("one", "stolen"), 1_600).unwrap();
        assert!(matches!(&facts[..], [Fact::SessionClosed(_)]));
        assert!(ask(&mut state, &key, renewal("three", "four"), 1_700).is_err(), "nobody goes on with it");
        assert!(ask(&mut state, &key, renewal("", "four"), 1_700).is_err());
    }

    #[test]
    fn sessions_end_in_time_and_by_signing_out() {
        let (mut state, key) = (State::default(), Key::new([SESSION, "s"]));
        ask(&mut state, &key, session("one").into(), 0).unwrap();
        assert!(ask(&mut state, &key, renewal("one", "two"), 1_001).is_err());
        let close = || CloseSession { realm: SESSION.into(), name: "s".into() };
        ask(&mut state, &key, close().into(), 0).unwrap();
        assert!(ask(&mut state, &key, close().into(), 0).is_err());
        assert!(ask(&mut state, &key, renewal("one", "two"), 1).is_err());
    }

    #[test]
    fn a_command_of_one_realm_on_the_others_subject_is_ignored() {
        let crossed = DefineAccount { realm: SESSION.into(), ..account("ada") };
        assert!(Identities.concerns(&crossed.into(), &()).is_empty());
        assert_eq!(Identities.concerns(&account("ada").into(), &()), [Key::new([ACCOUNT, "ada"])]);
    }

    proptest! {
        #[test]
        fn tokens_in_any_order_only_the_newest_is_ever_accepted(
            presented in proptest::collection::vec(0..6_u8, 1..24),
        ) {
            let (mut state, key) = (State::default(), Key::new([SESSION, "s"]));
            ask(&mut state, &key, session("t0").into(), 0).unwrap();
            let (mut newest, mut open) = (0, true);
            for token in presented {
                let next = format!("t{}", newest + 1);
                let served = matches!(
                    ask(&mut state, &key, renewal(&format!("t{token}"), &next), 1),
                    Ok(facts) if matches!(&facts[..], [Fact::SessionRenewed(_)])
                );
                prop_assert_eq!(served, open && token == newest);
                if served { newest += 1 } else { open = false }
            }
        }
    }
}
