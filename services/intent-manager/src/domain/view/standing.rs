//! How intents stand, in short: of one owner or of all.

use mesh_proto::intent::{IntentStanding, StandingReply, StandingRequest};
use prost::Message as _;

use super::{ANSWER_BYTES_MAX, Entry, IntentsView, Wanted};
use crate::domain::Row;

/// Intents of an answer when the question does not say how many.
const INTENTS_DEFAULT: u32 = 1_000;
/// Intents of the longest answer.
const INTENTS_MAX: u32 = 10_000;

/// Rows of intents that are accepted and not terminated.
const STANDING: [Row; 6] =
    [Row::Acknowledged, Row::Compliant, Row::Fulfilled, Row::Degraded, Row::Failed, Row::Suspended];

/// An answer that is being gathered, within its bounds.
pub(crate) struct Gathering {
    reply: StandingReply,
    intents_max: usize,
    bytes: usize,
}

impl Gathering {
    /// Nothing yet.
    pub(crate) fn new(request: &StandingRequest) -> Self {
        let asked = if request.intents_max == 0 { INTENTS_DEFAULT } else { request.intents_max.min(INTENTS_MAX) };
        Self { reply: StandingReply::default(), intents_max: asked as usize, bytes: 0 }
    }

    /// Adds an intent. False if there is no room for it.
    pub(crate) fn add(&mut self, standing: IntentStanding) -> bool {
        if self.reply.intents.len() >= self.intents_max || self.bytes >= ANSWER_BYTES_MAX {
            self.truncate();
            return false;
        }
        self.bytes += standing.encoded_len();
        self.reply.intents.push(standing);
        true
    }

    /// Says that there are others.
    pub(crate) fn truncate(&mut self) {
        self.reply.truncated = true;
    }

    /// The answer.
    pub(crate) fn reply(self) -> StandingReply {
        self.reply
    }
}

impl Entry {
    /// How it stands, if it is accepted and not terminated.
    pub(super) fn standing(&self, owner: &str, intent_id: &str) -> Option<IntentStanding> {
        let row = self.entity.row();
        let (fulfilment, not_fulfilled) = row.values();
        STANDING.contains(&row).then(|| IntentStanding {
            owner: owner.to_owned(),
            intent_id: intent_id.to_owned(),
            fulfilment_status: fulfilment.into(),
            not_fulfilled_state: not_fulfilled.into(),
            targets: self.entity.in_force().map_or(vec![], |f| f.targets.iter().map(|t| self.target(t)).collect()),
        })
    }
}

impl IntentsView {
    /// How the intents of an owner, or of all, stand.
    pub(crate) fn standing(&self, request: &StandingRequest) -> StandingReply {
        let mut gathering = Gathering::new(request);
        let wanted = Wanted { rows: Some(STANDING.to_vec()), kind: None, object: String::new() };
        for (owner, owned) in &self.owners {
            if !request.owner.is_empty() && **owner != *request.owner {
                continue;
            }
            let found = owned.index.after(&wanted, "").filter_map(|id| owned.intents.get(id)?.standing(owner, id));
            for standing in found {
                if !gathering.add(standing) {
                    return gathering.reply();
                }
            }
        }
        gathering.reply()
    }
}
