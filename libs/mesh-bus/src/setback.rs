//! Streams that were set back: what a server had acknowledged before it was on disk, and forgot when it was restarted.
//!
//! Streams of samples are persisted asynchronously, so their server may lose what it took last: when it is killed, or
//! cannot write. After a restart it gives the same sequences to other messages, which is how that is seen here.

use std::collections::HashMap;

/// What was acknowledged, by stream.
#[derive(Default)]
pub(crate) struct Setbacks(HashMap<String, Acknowledged>);

/// What one stream acknowledged.
struct Acknowledged {
    /// The connection that the last acknowledgement came on.
    epoch: u64,
    /// The highest sequence on that connection.
    last: u64,
    /// Up to here the sequences of earlier connections still stand.
    stands: u64,
}

impl Setbacks {
    /// Takes note of messages that were stored for the first time, with the sequences from `first` to `last`. Gives how many
    /// acknowledged ones of earlier connections are found to be forgotten by this. Within a connection acknowledgements
    /// may come in any order.
    pub(crate) fn stored(&mut self, stream: &str, epoch: u64, first: u64, last: u64) -> u64 {
        let Some(known) = self.0.get_mut(stream) else {
            self.0.insert(stream.to_owned(), Acknowledged { epoch, last, stands: 0 });
            return 0;
        };
        if epoch > known.epoch {
            *known = Acknowledged { epoch, last, stands: known.last.max(known.stands) };
        }
        known.last = known.last.max(last);
        let before = known.stands;
        known.stands = before.min(first.saturating_sub(1));
        before - known.stands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_goes_on_forgot_nothing() {
        let mut setbacks = Setbacks::default();
        assert_eq!(setbacks.stored("A", 1, 1, 5), 0);
        assert_eq!(setbacks.stored("A", 1, 7, 7), 0);
        assert_eq!(setbacks.stored("A", 1, 6, 6), 0, "in any order");
        assert_eq!(setbacks.stored("A", 2, 9, 9), 0);
        assert_eq!(setbacks.stored("A", 2, 8, 8), 0);
    }

    #[test]
    fn sequences_that_are_given_again_were_forgotten_each_counted_once() {
        let mut setbacks = Setbacks::default();
        setbacks.stored("A", 1, 1, 10);
        assert_eq!(setbacks.stored("A", 2, 9, 9), 2, "9 and 10");
        assert_eq!(setbacks.stored("A", 2, 8, 8), 1);
        assert_eq!(setbacks.stored("A", 2, 10, 12), 0);
        assert_eq!(setbacks.stored("B", 2, 1, 1), 0, "another stream");
        // Nothing was stored on the third connection.
        assert_eq!(setbacks.stored("A", 4, 12, 12), 1);
        assert_eq!(setbacks.stored("A", 5, 1, 1), 12, "an emptied stream");
    }
}
