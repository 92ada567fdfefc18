//! Identities: accounts that come and go, and sessions whose tokens are presented by more than their owners.
//!
//! A session is opened once, only its newest token renews it, and once it is closed nothing renews it any more.

use std::collections::{BTreeMap, BTreeSet};

use identity::domain::identities::{ACCOUNT, Identities, SESSION};
use mesh_proto::{
    Timestamp,
    deciders::identities::Fact,
    identity::{CloseSession, DefineAccount, OpenSession, RemoveAccount, RenewSession},
};

use super::{Area, Asker, command_of, fact, wrong};
use crate::sim::{bus::MemoryBus, rng::Rng};

const HASH: &str = "$argon2id$v=19$m=1,t=1,p=1$c2FsdHNhbHQ$aGFzaA";
const SESSIONS: [&str; 4] = ["s-1", "s-2", "s-3", "s-4"];

/// The decider.
pub fn decider() -> Identities {
    Identities
}

/// Those who sign in.
#[derive(Default)]
pub struct Visitors {
    /// Tokens asked for, by session, in order.
    tokens: BTreeMap<String, Vec<String>>,
}

impl Area for Visitors {
    fn name(&self) -> &'static str {
        "identity"
    }

    fn happen(&mut self, bus: &mut MemoryBus, rng: &mut Rng, asker: &mut Asker) {
        let (realm, name) = (ACCOUNT.to_owned(), (*rng.pick(&["ada", "bob"])).to_owned());
        let (of_sessions, session) = (SESSION.to_owned(), (*rng.pick(&SESSIONS)).to_owned());
        let expires = Some(bus.now.plus_millis(rng.below(60_000) as i64));
        match rng.below(10) {
            0 | 1 => {
                let account = DefineAccount {
                    realm,
                    name,
                    password_hash: (*rng.pick(&[HASH, HASH, "", "plain"])).to_owned(),
                    roles: vec![(*rng.pick(&["owner", "owner", "emperor"])).to_owned()],
                    only_new: rng.percent(30),
                    ..DefineAccount::default()
                };
                asker.ask(bus, rng, &account);
            }
            2 => {
                asker.ask(bus, rng, &RemoveAccount { realm, name });
            }
            3 | 4 => {
                let token_hash = asker.id();
                self.tokens.entry(session.clone()).or_default().push(token_hash.clone());
                let (account, client_id) = (name, "cli".to_owned());
                let open = OpenSession { realm: of_sessions, name: session, account, client_id, token_hash, expires };
                asker.ask(bus, rng, &open);
            }
            5..=8 => {
                let tokens = self.tokens.entry(session.clone()).or_default();
                // Mostly the newest, sometimes one that somebody kept.
                let newest = tokens.last().cloned().unwrap_or_default();
                let presented_hash = match rng.percent(10) && !tokens.is_empty() {
                    true => rng.pick(tokens).clone(),
                    false => newest,
                };
                let next_hash = asker.id();
                tokens.push(next_hash.clone());
                let renew = RenewSession { realm: of_sessions, name: session, presented_hash, next_hash, expires };
                asker.ask(bus, rng, &renew);
            }
            _ => {
                asker.ask(bus, rng, &CloseSession { realm: of_sessions, name: session });
            }
        }
    }

    fn check(&self, bus: &MemoryBus) -> Result<(), String> {
        let (mut accounts, mut closed) = (BTreeSet::new(), BTreeSet::new());
        let mut sessions: BTreeMap<String, (String, Option<Timestamp>)> = BTreeMap::new();
        for stored in bus.read("IDENTITY") {
            match fact::<Fact>(stored)? {
                Fact::AccountDefined(m) => {
                    let command =
                        command_of(bus, stored)?.event::<DefineAccount>().map_err(|error| error.to_string())?;
                    if !accounts.insert(m.name) && command.is_none_or(|command| command.only_new) {
                        return wrong(stored, "the account was there, and only a new one was wanted");
                    }
                }
                Fact::AccountRemoved(m) => {
                    if !accounts.remove(&m.name) {
                        return wrong(stored, "no such account was there");
                    }
                }
                Fact::SessionOpened(m) => {
                    if sessions.insert(m.name, (m.token_hash, m.expires)).is_some() {
                        return wrong(stored, "the session was opened before");
                    }
                }
                Fact::SessionRenewed(m) => {
                    let command =
                        command_of(bus, stored)?.event::<RenewSession>().map_err(|error| error.to_string())?;
                    let (newest, expires) = sessions.get(&m.name).cloned().unwrap_or_default();
                    let presented = command.map(|command| command.presented_hash);
                    if closed.contains(&m.name)
                        || presented != Some(newest)
                        || expires.is_none_or(|end| stored.time > end)
                    {
                        return wrong(stored, "the token was not the newest of a session that holds");
                    }
                    sessions.insert(m.name, (m.token_hash, m.expires));
                }
                Fact::SessionClosed(m) => {
                    if !sessions.contains_key(&m.name) || !closed.insert(m.name) {
                        return wrong(stored, "the session was not open");
                    }
                }
                Fact::IdentityRefused(_) => {}
            }
        }
        Ok(())
    }
}
