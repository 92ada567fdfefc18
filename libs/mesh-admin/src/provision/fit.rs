//! Limits of streams that fit into the server's disk.

use async_nats::jetstream::{account::Account, stream};

use super::{ProvisionError, Report};
use crate::render::{LIMIT_BASE_BYTES, RESERVE_BYTES};

/// Least size of a stream, bytes: a smaller one could not hold a few large messages.
const STREAM_LEAST_BYTES: i64 = 4 * 1024 * 1024;

/// Scales all limits down alike when the account allows less than the contract asks for.
pub(super) fn fit(
    mut wanted: Vec<stream::Config>,
    account: &Account,
    replicas: usize,
    report: &mut Report,
) -> Result<Vec<stream::Config>, ProvisionError> {
    let Some(limit) = account.limits.max_storage.and_then(|s| u64::try_from(s).ok()) else { return Ok(wanted) };
    // A limit that was not rendered here counts as it is.
    let granted = limit.checked_sub(LIMIT_BASE_BYTES).unwrap_or(limit);
    let copies = replicas.max(1) as u64;
    let room = granted.saturating_sub(RESERVE_BYTES * copies) / copies;
    let sum: u64 = wanted.iter().map(|c| c.max_bytes.unsigned_abs()).sum();
    if sum <= room {
        return Ok(wanted);
    }
    let least = STREAM_LEAST_BYTES.unsigned_abs();
    let spare = room.checked_sub(least * wanted.len() as u64).ok_or(ProvisionError::NoSpace {
        granted,
        streams: wanted.len(),
        least: STREAM_LEAST_BYTES,
    })?;
    for config in &mut wanted {
        let share = u128::from(spare) * u128::from(config.max_bytes.unsigned_abs()) / u128::from(sum);
        // At most what was asked for: a share is smaller than `i64::MAX` because the whole is.
        config.max_bytes = (STREAM_LEAST_BYTES + i64::try_from(share).unwrap_or(i64::MAX / 2)).min(config.max_bytes);
    }
    report.notes.push(format!(
        "the contract asks for {} MiB of disk, the server allows {} MiB: every stream's limit is {} % of its own; \
         a full stream makes its writers wait",
        sum >> 20,
        room >> 20,
        room * 100 / sum
    ));
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::config::streams;

    #[test]
    fn limits_shrink_alike_until_they_fit_and_never_grow() {
        let wanted = streams(mesh_proto::contract(), 1);
        let sum = |configs: &[stream::Config]| configs.iter().map(|c| c.max_bytes.unsigned_abs()).sum::<u64>();
        for granted in [512 << 20, 1 << 30, 10 << 30, 1 << 49] {
            let mut account = Account::default();
            account.limits.max_storage = Some(granted as i64);
            let fitted = fit(wanted.clone(), &account, 1, &mut Report::default()).unwrap();
            assert!(sum(&fitted) <= granted, "{granted}");
            assert!(fitted.iter().zip(&wanted).all(|(f, w)| f.max_bytes <= w.max_bytes));
            assert!(fitted.iter().all(|f| f.max_bytes >= STREAM_LEAST_BYTES));
        }
        let mut account = Account::default();
        account.limits.max_storage = Some(1 << 20);
        assert!(matches!(fit(wanted, &account, 1, &mut Report::default()), Err(ProvisionError::NoSpace { .. })));
    }
}
