//! The decision about who runs a scrub: one gateway claims it by a fact, renews the claim while it runs, and another one
//! takes over when the claim expires.

use mesh_proto::{Timestamp, deciders::stream_object::Event as Fact};

/// Whether a gateway may run a scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It may: nobody else runs it.
    Take,
    /// Another gateway runs it.
    Held,
    /// It has ended.
    Ended,
}

/// Decides from the last fact of the scrub and its time. Claims that are older than `expired` do not hold.
pub fn claim(last: Option<(&Fact, Timestamp)>, process: &str, expired: Timestamp) -> Claim {
    match last {
        Some((Fact::ScrubEnded(_), _)) => Claim::Ended,
        Some((Fact::ScrubClaimed(m), at)) if m.process != process && at >= expired => Claim::Held,
        _ => Claim::Take,
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::object::{ScrubClaimed, ScrubEnded};

    use super::*;

    #[test]
    fn one_gateway_holds_a_scrub_until_its_claim_expires() {
        let claimed: Fact = ScrubClaimed { process: "a".into(), ..ScrubClaimed::default() }.into();
        let ended: Fact = ScrubEnded::default().into();
        let at = Timestamp::from_millis;
        assert_eq!(claim(None, "a", at(0)), Claim::Take);
        assert_eq!(claim(Some((&claimed, at(5))), "a", at(5)), Claim::Take);
        assert_eq!(claim(Some((&claimed, at(5))), "b", at(5)), Claim::Held);
        assert_eq!(claim(Some((&claimed, at(5))), "b", at(6)), Claim::Take);
        assert_eq!(claim(Some((&ended, at(5))), "a", at(6)), Claim::Ended);
    }
}
