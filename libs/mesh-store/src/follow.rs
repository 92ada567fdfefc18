//! Where to begin reading a stream again, so that a view that keeps a recent window need not read all of it.

use std::future::Future;

use mesh_proto::Timestamp;

/// The sequence of the first message that was stored at `oldest` or later: where a view of recent things begins.
/// Asks for about as many messages as `last` has binary digits. One past `last` if all are older.
///
/// `next` gives the sequence and storing time of the first message at or after a sequence, or `None` beyond the end.
///
/// # Errors
/// Those of `next`.
pub async fn first_since<E, F>(last: u64, oldest: Timestamp, mut next: impl FnMut(u64) -> F) -> Result<u64, E>
where
    F: Future<Output = Result<Option<(u64, Timestamp)>, E>>,
{
    // Everything below `low` is too old; everything from `high` on is not, or there is nothing.
    let (mut low, mut high) = (1, last + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        match next(middle).await? {
            Some((sequence, stored)) if stored < oldest => low = sequence.max(middle) + 1,
            _ => high = middle,
        }
    }
    Ok(high)
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, convert::Infallible};

    use futures::executor::block_on;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn reading_begins_at_the_first_message_that_is_young_enough(
            gaps in prop::collection::vec((1u64..4, 0i64..5), 0..60),
            oldest in -5i64..200,
        ) {
            let (mut sequence, mut millis, mut messages) = (0, 0, vec![]);
            for (step, wait) in gaps {
                sequence += step;
                millis += wait;
                messages.push((sequence, Timestamp::from_millis(millis)));
            }
            let oldest = Timestamp::from_millis(oldest);
            let asked = Cell::new(0);
            let found = block_on(first_since(sequence, oldest, |from| {
                asked.set(asked.get() + 1);
                let answer = messages.iter().find(|(s, _)| *s >= from).copied();
                async move { Ok::<_, Infallible>(answer) }
            })).unwrap();
            prop_assert!(messages.iter().all(|(s, at)| (*s >= found) == (*at >= oldest)));
            prop_assert!(asked.get() <= 10, "{} questions", asked.get());
        }
    }
}
