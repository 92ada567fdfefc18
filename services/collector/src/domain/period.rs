//! One instance's samples over one observation period, folded so that neither their order nor their number matters.

use mesh_proto::telemetry::{InstanceSample, Provenance};

/// The number of the period that a time ends in: period `n` of `length_s` seconds holds the times after
/// `n * length_s` up to and with `(n + 1) * length_s`, because a sample speaks of the time before it.
pub(crate) fn number_of(nanos: i128, length_s: u64) -> u64 {
    u64::try_from((nanos - 1).div_euclid(length_nanos(length_s))).unwrap_or(0)
}

/// The first period that begins at a time or later.
pub(crate) fn first_from(nanos: i128, length_s: u64) -> u64 {
    let length = length_nanos(length_s);
    u64::try_from((nanos + length - 1).div_euclid(length)).unwrap_or(0)
}

/// When a period begins, nanoseconds since 1970. It ends where the next begins.
pub(crate) fn begin_of(number: u64, length_s: u64) -> i128 {
    i128::from(number) * length_nanos(length_s)
}

fn length_nanos(length_s: u64) -> i128 {
    i128::from(length_s.max(1)) * 1_000_000_000
}

/// The fold of the samples of one period. Sums are whole numbers (millionths, nanoseconds), so that every order of
/// arrival gives the same result to the last bit. Only the newest placement counts: a sample of a newer one
/// starts the fold again, one of an older is left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Period {
    /// Generation of the placement measured; 0 before the first sample.
    pub(crate) generation: u64,
    /// Its cluster.
    pub(crate) cluster_id: String,
    /// Samples seen.
    pub(crate) samples: u32,
    /// Largest resident size, bytes.
    pub(crate) memory_bytes: u64,
    /// Is any of its samples modelled?
    modelled: bool,
    weight: u128,
    percent: Sum,
    milli: Sum,
}

/// Sum of one value in millionths: times weight, and plain.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sum {
    weighted: u128,
    plain: u128,
}

impl Sum {
    fn add(&mut self, value: f64, weight: u128) {
        let millionths = (value * 1e6).round() as u128;
        self.weighted += millionths * weight;
        self.plain += millionths;
    }

    /// The mean; of samples that cover no time at all, the plain one.
    fn mean(&self, weight: u128, samples: u32) -> f64 {
        match (weight, samples) {
            (_, 0) => 0.0,
            (0, samples) => self.plain as f64 / f64::from(samples) / 1e6,
            (weight, _) => self.weighted as f64 / weight as f64 / 1e6,
        }
    }
}

/// Where a sample's figures come from. One that does not state it is of an earlier release or of a client of its own,
/// and counts as measured by its sender.
pub(crate) fn provenance_of(sample: &InstanceSample) -> Provenance {
    match sample.provenance() {
        Provenance::Unspecified => Provenance::Measured,
        stated => stated,
    }
}

impl Period {
    /// Adds a sample whose time lies in the period that begins at `begin`. It counts for as long as its interval
    /// lies inside the period. False if an older placement's, and so left out.
    pub(crate) fn add(&mut self, sample: &InstanceSample, begin: i128) -> bool {
        let placement = (sample.generation, sample.cluster_id.as_str());
        if self.samples > 0 && placement < (self.generation, self.cluster_id.as_str()) {
            return false;
        }
        if placement != (self.generation, self.cluster_id.as_str()) {
            let (generation, cluster_id) = (sample.generation, sample.cluster_id.clone());
            *self = Self { generation, cluster_id, ..Self::default() };
        }
        let inside = (sample.at.unwrap_or_default().as_nanos() - begin).max(0) as u128;
        let weight = inside.min((sample.interval_seconds * 1e9).round() as u128);
        self.samples = self.samples.saturating_add(1);
        self.weight += weight;
        self.percent.add(sample.cpu_percent, weight);
        self.milli.add(sample.cpu_milli, weight);
        self.memory_bytes = self.memory_bytes.max(sample.memory_bytes);
        self.modelled |= provenance_of(sample) != Provenance::Measured;
        true
    }

    /// Where its figures come from; unspecified without samples.
    pub(crate) fn provenance(&self) -> Provenance {
        match (self.samples, self.modelled) {
            (0, _) => Provenance::Unspecified,
            (_, true) => Provenance::Modelled,
            (_, false) => Provenance::Measured,
        }
    }

    /// Mean share of the cluster's CPU, per cent, over the time that samples cover.
    pub(crate) fn cpu_percent(&self) -> f64 {
        self.percent.mean(self.weight, self.samples)
    }

    /// Mean load, thousandths of a core, over the time that samples cover.
    pub(crate) fn load_milli(&self) -> u32 {
        self.milli.mean(self.weight, self.samples).round() as u32
    }
}
