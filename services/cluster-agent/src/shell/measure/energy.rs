//! Energy: what meters of the processor say (RAPL, by the kernel's power capping zones) where they can be read, else what the
//! model of a cluster's cost says of its load. Each value says which.

use std::{collections::BTreeMap, fs, path::PathBuf};

use mesh_proto::Timestamp;
use mesh_scenes::tariff::Tariff;
use tokio::sync::watch;

use super::{Entity, Probe, Reading, Roots, Running, Value, number, number_if, text};
use crate::{
    config::Config,
    domain::measure::{catalog, kernel::Joules},
};

/// Zones that are read.
const ZONES_MAX: usize = 64;

/// What a zone stood at.
#[derive(Default)]
struct Zone {
    joules: Joules,
    /// When it was last read, and the joules then.
    last: Option<(Timestamp, f64)>,
}

/// Reads meters, or computes.
pub struct Energy {
    node: String,
    cluster_id: String,
    /// Where meters are looked for, if the host is measured.
    meters: Option<Roots>,
    tariff: Tariff,
    running: watch::Receiver<Running>,
    zones: BTreeMap<String, Zone>,
    /// Of the model.
    modelled: Option<(Timestamp, f64, f64)>,
}

impl Energy {
    /// Of a cluster and, with `meters`, its node.
    pub fn new(config: &Config, meters: Option<Roots>, running: watch::Receiver<Running>) -> Self {
        Self {
            node: config.node().clone(),
            cluster_id: config.cluster_id.clone(),
            meters,
            // The configuration was checked: its labels can be read.
            tariff: Tariff::of(&config.labels().unwrap_or_default(), config.cpu_milli),
            running,
            zones: BTreeMap::new(),
            modelled: None,
        }
    }

    /// Zones whose energy can be read.
    fn metered(&self) -> Vec<PathBuf> {
        let Some(roots) = &self.meters else { return vec![] };
        let all = fs::read_dir(roots.sys.join("class/powercap")).into_iter().flatten().filter_map(Result::ok);
        let mut zones: Vec<PathBuf> =
            all.map(|entry| entry.path()).filter(|zone| number_if(&zone.join("energy_uj")).is_some()).collect();
        zones.sort();
        zones.truncate(ZONES_MAX);
        zones
    }

    fn measured(&mut self, now: Timestamp) -> Result<Vec<Value>, String> {
        let zones = self.metered();
        if zones.is_empty() {
            return Err("no meter of /sys/class/powercap can be read any more".to_owned());
        }
        let mut values = vec![];
        for folder in zones {
            let id = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let name = text(&folder.join("name")).map_or_else(|_| id.clone(), |name| name.trim().to_owned());
            let stands = number(&folder.join("energy_uj"))?;
            let range = number_if(&folder.join("max_energy_range_uj")).unwrap_or(u64::from(u32::MAX));
            let zone = self.zones.entry(id.clone()).or_default();
            let joules = zone.joules.take(stands, range);
            values.push(catalog::ENERGY.value(joules, &[&id, &name]));
            if let Some((at, before)) = zone.last.replace((now, joules)) {
                let seconds = (now.as_nanos() - at.as_nanos()) as f64 / 1e9;
                if seconds > 0.0 {
                    values.push(catalog::POWER.value((joules - before) / seconds, &[&id, &name]));
                }
            }
        }
        Ok(values)
    }

    fn model(&mut self, now: Timestamp) -> Vec<Value> {
        let running = self.running.borrow().clone();
        let watts = self.tariff.watts(running.load_milli, !running.instances.is_empty());
        let joules = self.modelled.map_or(0.0, |(at, before_watts, joules)| {
            let seconds = (now.as_nanos() - at.as_nanos()).max(0) as f64 / 1e9;
            joules + f64::midpoint(before_watts, watts) * seconds
        });
        self.modelled = Some((now, watts, joules));
        let labels = ["model", "cluster"];
        vec![
            catalog::CLUSTER_ENERGY.value(joules, &labels).modelled(),
            catalog::CLUSTER_POWER.value(watts, &labels).modelled(),
        ]
    }
}

impl Probe for Energy {
    fn name(&self) -> &'static str {
        "energy"
    }

    fn entities(&mut self) -> Vec<Entity> {
        if self.metered().is_empty() && self.zones.is_empty() {
            vec![Entity::of("cluster", &self.cluster_id)]
        } else {
            vec![Entity::of("node", &self.node)]
        }
    }

    fn read(&mut self, due: &[Entity], now: Timestamp) -> Vec<Reading> {
        let one = |entity: &Entity| match entity.kind {
            "node" => Reading::from(self.measured(now)),
            _ => Reading::from(Ok(self.model(now))),
        };
        due.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::telemetry::Provenance;

    use super::*;
    use crate::domain::measure::Watched;

    const T0: Timestamp = Timestamp::from_millis(1_000_000);

    fn said(probe: &mut Energy, now: Timestamp) -> Vec<(String, f64, Provenance)> {
        let entities = probe.entities();
        let read = probe.read(&entities, now);
        let kind = entities[0].kind;
        read[0].values.iter().map(|v| (format!("{kind} {}", v.metric.name), v.value, v.metric.provenance)).collect()
    }

    #[test]
    fn without_a_meter_the_model_says_it_is_one() {
        let (tell, running) = watch::channel(Running::default());
        let config = Config { labels: "idle-watts=2,watts-per-core=10".into(), ..Config::default() };
        let mut probe = Energy::new(&config, None, running);
        assert_eq!(said(&mut probe, T0)[1], ("cluster hw.power".into(), 0.0, Provenance::Modelled), "it sleeps");
        let watched = Watched { owner: "local".into(), scraped: None };
        tell.send_replace(Running { instances: [("a".to_owned(), watched)].into(), load_milli: 500.0 });
        assert_eq!(said(&mut probe, T0.plus_millis(1_000))[1].1, 7.0);
        let later = said(&mut probe, T0.plus_millis(11_000));
        assert_eq!(later[0], ("cluster hw.energy".into(), 3.5 + 70.0, Provenance::Modelled));
    }

    #[test]
    fn a_meter_is_read_over_its_overflow_and_its_loss_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let zone = dir.path().join("class/powercap/intel-rapl:0");
        fs::create_dir_all(&zone).unwrap();
        let stands = |micro: u64| fs::write(zone.join("energy_uj"), format!("{micro}\n")).unwrap();
        fs::write(zone.join("name"), "package-0\n").unwrap();
        fs::write(zone.join("max_energy_range_uj"), "10000000\n").unwrap();
        stands(9_000_000);
        let roots = Roots { proc: "/proc".into(), sys: dir.path().to_owned() };
        let mut probe = Energy::new(&Config::default(), Some(roots), watch::channel(Running::default()).1);
        assert_eq!(said(&mut probe, T0), [("node hw.energy".into(), 0.0, Provenance::Measured)]);
        stands(1_000_000);
        let later = said(&mut probe, T0.plus_millis(500));
        assert_eq!(later[0].1, 2.0);
        assert_eq!(later[1], ("node hw.power".into(), 4.0, Provenance::Measured));
        fs::remove_file(zone.join("energy_uj")).unwrap();
        let entities = probe.entities();
        assert_eq!(entities[0].kind, "node", "a meter that is lost is not replaced by the model without a word");
        assert!(probe.read(&entities, T0)[0].failure.as_ref().unwrap().contains("powercap"));
    }
}
