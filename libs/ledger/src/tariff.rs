//! What a window costs: the usage formula of the specification's contracts, in whole numbers, division rounding down.
//!
//! `tokens = (cpu + memory + surcharge) / 1000` units, where `cpu` is the usage's share of a total in whole thousandths
//! times 10^8, or nothing at or below the region's threshold. The two formulas differ in what the total is (see
//! [`cost`]); this arithmetic is the same for both.

use mesh_proto::{
    account::{Formula, Region, Tariff},
    usage::UsageClosed,
};

/// Units of one token.
pub const TOKEN: u64 = 100_000_000;
/// Units in the treasury when a ledger is opened: 100 tokens.
pub const TREASURY: u64 = 100 * TOKEN;
/// Bytes of a megabyte.
const MEGABYTE: u64 = 1_000_000;

/// What a ledger goes by until a tariff is set: the specification's grants and rate.
pub fn default_tariff() -> Tariff {
    Tariff { formula: Formula::Fair.into(), fee_rate: 20_000, workload_grant: 5 * TOKEN, cluster_grant: 10 * TOKEN }
}

/// One resource in one window: what was used, and of how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Usage.
    pub usage: u64,
    /// Total that it is a share of, in the same unit.
    pub total: u64,
    /// Thousandths of that unit up to which nothing is charged.
    pub threshold: u64,
    /// Units that the whole total costs, before the surcharge; [`TOKEN`] in the specification.
    pub base_rate: u64,
}

/// Why a formula gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reverted {
    /// Usage above the threshold is to be divided by nothing.
    #[error("division by zero: the cluster's total is 0")]
    DivisionByZero,
    /// A number is too large.
    #[error("the charge is too large to be counted")]
    Overflow,
}

impl Used {
    /// Its part of the charge, thousandths of a unit.
    fn part(self) -> Result<u128, Reverted> {
        let thousandths = u128::from(self.usage) * 1_000;
        if thousandths <= u128::from(self.threshold) {
            return Ok(0);
        }
        let share = thousandths.checked_div(u128::from(self.total)).ok_or(Reverted::DivisionByZero)?;
        share.checked_mul(u128::from(self.base_rate)).ok_or(Reverted::Overflow)
    }
}

/// The charge of a window, units.
///
/// # Errors
/// Division by zero; a charge beyond `i64::MAX`, which no balance can hold.
pub fn tokens(cpu: Used, memory: Used, surcharge: u64) -> Result<u64, Reverted> {
    let parts = cpu.part()?.checked_add(memory.part()?).ok_or(Reverted::Overflow)?;
    let sum = parts.checked_add(surcharge.into()).ok_or(Reverted::Overflow)?;
    i64::try_from(sum / 1_000).map(i64::unsigned_abs).map_err(|_| Reverted::Overflow)
}

/// The charge of a window in a region, units. CPU is counted in milliseconds of a core, memory in megabyte seconds.
///
/// The faithful formula takes shares of what all instances of the cluster used, as printed: whoever is alone pays for
/// the whole cluster, however little it uses. The fair one takes shares of what the cluster can give (never less than
/// what was used, so that nothing is divided by zero), weighted by the region's base rates.
///
/// # Errors
/// When the formula gives up.
pub fn cost(formula: Formula, region: &Region, usage: &UsageClosed) -> Result<u64, Reverted> {
    let memory = usage.memory_byte_seconds / MEGABYTE;
    let (cpu_total, memory_total, cpu_rate, memory_rate) = match formula {
        Formula::Faithful => (usage.cluster_cpu_ms, usage.cluster_memory_byte_seconds / MEGABYTE, TOKEN, TOKEN),
        _ => (
            usage.cluster_cpu_capacity_ms.max(usage.cpu_ms).max(1),
            (usage.cluster_memory_capacity_byte_seconds / MEGABYTE).max(memory).max(1),
            or_token(region.cpu_base_rate),
            or_token(region.memory_base_rate),
        ),
    };
    let (cpu_threshold, memory_threshold) = (region.cpu_threshold, region.memory_threshold);
    tokens(
        Used { usage: usage.cpu_ms, total: cpu_total, threshold: cpu_threshold, base_rate: cpu_rate },
        Used { usage: memory, total: memory_total, threshold: memory_threshold, base_rate: memory_rate },
        if region.high_demand { region.high_demand_cost } else { 0 },
    )
}

fn or_token(rate: u64) -> u64 {
    if rate == 0 { TOKEN } else { rate }
}

/// The fee on an amount, units, rounded down.
pub fn fee(amount: u64, rate: u64) -> u64 {
    let fee = u128::from(amount) * u128::from(rate.min(TOKEN)) / u128::from(TOKEN);
    // At most the amount, as the rate is at most one.
    u64::try_from(fee).unwrap_or(amount)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(usage: u64, total: u64, threshold: u64) -> Used {
        Used { usage, total, threshold, base_rate: TOKEN }
    }

    #[test]
    fn the_formula_gives_the_specifications_vectors() {
        let million = 1_000_000;
        let vectors = [
            ((5, 0), (1_000, 1_000), (0, 0), 0, 500_000),
            ((9, 0), (10_000, 1_000), (0, 0), 0, 0),
            ((1_999, 0), (million, 1_000), (0, 0), 0, 100_000),
            ((1_000, 1_000), (1_000, 1_000), (0, 0), 0, 200_000_000),
            ((56_000, 23_500), (1_000_000 * million, 1_000_000 * million), (0, 0), million, 1_000),
            ((56_000, 23_500), (million, million), (0, 0), 0, 7_900_000),
            ((56_000, 23_500), (million, million), (56_000_000, 23_499_999), 0, 2_300_000),
            ((250, 512), (16_000, 96_000), (0, 0), million, 2_001_000),
        ];
        for (usage, total, threshold, surcharge, expected) in vectors {
            let cpu = used(usage.0, total.0, threshold.0);
            let memory = used(usage.1, total.1, threshold.1);
            assert_eq!(tokens(cpu, memory, surcharge), Ok(expected), "{usage:?} of {total:?}");
        }
    }

    #[test]
    fn a_fee_is_the_specifications() {
        assert_eq!(fee(1_000_001_000, 20_000), 200_000);
        assert_eq!(fee(1_000, 20_000), 0);
        assert_eq!(fee(u64::MAX, TOKEN), u64::MAX);
        assert_eq!(fee(u64::MAX, u64::MAX), u64::MAX);
    }

    #[test]
    fn nothing_is_divided_by_nothing_and_nothing_wraps_round() {
        assert_eq!(tokens(used(1, 0, 0), used(0, 0, 0), 0), Err(Reverted::DivisionByZero));
        assert_eq!(tokens(used(0, 0, 0), used(0, 0, 0), 999), Ok(0));
        assert_eq!(tokens(used(1, 0, 1_000), used(0, 0, 0), 1_000), Ok(1));
        assert_eq!(tokens(used(u64::MAX, 1, 0), used(0, 1, 0), 0), Err(Reverted::Overflow));
        let dear = Used { usage: u64::MAX, total: 1, threshold: 0, base_rate: u64::MAX };
        assert_eq!(tokens(dear, dear, u64::MAX), Err(Reverted::Overflow));
    }

    #[test]
    fn alone_on_a_cluster_faithful_takes_all_and_fair_takes_the_share() {
        let usage = UsageClosed {
            cpu_ms: 750,
            memory_byte_seconds: 25_000_000,
            cluster_cpu_ms: 750,
            cluster_memory_byte_seconds: 25_000_000,
            cluster_cpu_capacity_ms: 7_500,
            cluster_memory_capacity_byte_seconds: 10_000_000_000,
            ..Default::default()
        };
        let region = Region { name: "r".into(), ..Default::default() };
        assert_eq!(cost(Formula::Faithful, &region, &usage), Ok(2 * TOKEN));
        // 100 thousandths of the CPU and 2 of the memory.
        assert_eq!(cost(Formula::Fair, &region, &usage), Ok(102 * TOKEN / 1_000));
        let dear = Region { cpu_base_rate: 2 * TOKEN, memory_base_rate: 1_000, ..region };
        assert_eq!(cost(Formula::Fair, &dear, &usage), Ok(200 * TOKEN / 1_000 + 2));
        assert_eq!(cost(Formula::Faithful, &dear, &usage), Ok(2 * TOKEN));
        let unknown = UsageClosed { cpu_ms: 1, ..Default::default() };
        assert_eq!(cost(Formula::Faithful, &dear, &unknown), Err(Reverted::DivisionByZero));
        assert_eq!(cost(Formula::Fair, &dear, &unknown), Ok(2 * TOKEN));
    }
}
