//! Every type of intent, as one table: what it may say, what is done with it, how its targets are measured.
//!
//! A new type that uses these ways of measuring and these kinds of objects is one more entry here, and nothing else.

use std::collections::BTreeMap;

use mesh_proto::{intent::IntentExpectation, telemetry::Provenance};

/// A type of intent.
#[derive(Debug, PartialEq)]
pub struct IntentType {
    /// Its `userLabel`.
    pub label: &'static str,
    /// Other labels that are read as this one.
    pub aliases: &'static [&'static str],
    /// What it is for.
    pub about: &'static str,
    /// Allowed `expectationVerb`.
    pub verbs: &'static [&'static str],
    /// Allowed objects.
    pub objects: &'static [ObjectType],
    /// Allowed targets.
    pub targets: &'static [TargetType],
    /// Must each expectation have a target?
    pub needs_target: bool,
    /// Labels that a cluster must carry for it.
    pub selector: &'static [(&'static str, &'static str)],
    /// What an intent of this type rests on without proof; its reports say it in these words. Empty when there is nothing.
    pub statement: &'static str,
}

/// A kind of object that expectations are about.
#[derive(Debug, PartialEq)]
pub struct ObjectType {
    /// Its `objectType`.
    pub name: &'static str,
    /// What it is.
    pub kind: ObjectKind,
    /// Attributes of its object contexts.
    pub object_contexts: &'static [&'static str],
    /// Attributes of the expectation's contexts, beside times.
    pub contexts: &'static [&'static str],
}

/// What an object is, and so who provides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// An instance of a workload document.
    Workload,
    /// Connectivity, carried out by the network exposer.
    Network,
}

/// A target that a type allows: numbers above 0.
#[derive(Debug, PartialEq)]
pub struct TargetType {
    /// Its `targetName`.
    pub name: &'static str,
    /// What one of it is, in words.
    pub unit: &'static str,
    /// The unit's sign, behind a figure.
    pub sign: &'static str,
    /// The largest bound that makes sense, in the unit.
    pub max: f64,
    /// Where its values come from.
    pub measure: Measure,
}

/// How a target is measured over a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Mean share of the cluster's CPU, per cent, all replicas together.
    CpuPercent,
    /// Largest resident size, MB of 10^6 bytes, all replicas together.
    MemoryMb,
    /// Modelled energy of the period, joules.
    Joules,
    /// Modelled energy for each second of one core, joules.
    JoulesPerCoreSecond,
    /// Share of the energy that is renewable, per cent, as the cluster's label `green-percent` says.
    GreenPercent,
    /// Share of the time that its cluster is available, per cent, as the cluster's label `availability` says.
    AvailabilityPercent,
    /// Time below or at which this per cent of the answers of the workload's exposed route began, milliseconds, as the
    /// gateway's proxy measures it.
    ResponseTimeMs(u8),
    /// Share of the requests to the workload's exposed route that failed, per cent: answered with a code of 500 or above,
    /// or not at all.
    ErrorPercent,
    /// Nobody: it is handed to who provides the object.
    Handed,
}

impl Measure {
    /// Where a value comes from if the load of its instance comes from `load`; unspecified for what is handed on.
    pub fn provenance(self, load: Provenance) -> Provenance {
        match self {
            Self::CpuPercent | Self::MemoryMb => load,
            Self::Joules | Self::JoulesPerCoreSecond => Provenance::Modelled,
            Self::GreenPercent | Self::AvailabilityPercent => Provenance::Declared,
            // Requests are real, whatever answers them.
            Self::ResponseTimeMs(_) | Self::ErrorPercent => Provenance::Measured,
            Self::Handed => Provenance::Unspecified,
        }
    }

    /// Is it measured by the requests that go through to an exposed workload? Then a period without any has no value, and
    /// nothing predicts one.
    pub fn is_of_traffic(self) -> bool {
        matches!(self, Self::ResponseTimeMs(_) | Self::ErrorPercent)
    }
}

/// How a provenance is put in a sentence: `modelled`; nothing for what is measured or not stated.
pub fn unmeasured(provenance: Provenance) -> Option<&'static str> {
    match provenance {
        Provenance::Measured | Provenance::Unspecified => None,
        Provenance::Modelled => Some("modelled"),
        Provenance::Declared => Some("declared"),
    }
}

const fn target(name: &'static str, unit: &'static str, sign: &'static str, max: f64, measure: Measure) -> TargetType {
    TargetType { name, unit, sign, max, measure }
}

const CPU: TargetType = target("cpuUsage", "per cent of its cluster's CPU", "%", 100.0, Measure::CpuPercent);
const RAM: TargetType = target("ramUsage", "MB of 10^6 bytes", "MB", 1e9, Measure::MemoryMb);

const fn response_time(name: &'static str, unit: &'static str, per_cent: u8) -> TargetType {
    target(name, unit, "ms", 3.6e6, Measure::ResponseTimeMs(per_cent))
}

const RESPONSE_P50: TargetType =
    response_time("responseTimeP50", "milliseconds until half of the answers of its exposed route have begun", 50);
const RESPONSE_P95: TargetType = response_time(
    "responseTimeP95",
    "milliseconds until 95 per cent of the answers of its exposed route have begun",
    95,
);
const RESPONSE_P99: TargetType = response_time(
    "responseTimeP99",
    "milliseconds until 99 per cent of the answers of its exposed route have begun",
    99,
);
const ERRORS: TargetType = target(
    "errorRate",
    "per cent of the requests to its exposed route that fail (a code of 500 or above, or no answer)",
    "%",
    100.0,
    Measure::ErrorPercent,
);

/// The shortest observation period of targets that requests measure, seconds: the gateway publishes them every 5 s by
/// default, and in a shorter period there would often be none.
pub const TRAFFIC_PERIOD_MIN_S: u32 = 10;

/// Attribute of an intent context that names the workload that a network is for.
pub const WORKLOAD_CONTEXT: &str = "NEMO_WORKLOAD";

/// Label of the share of a cluster's energy that is renewable, per cent.
pub const GREEN_LABEL: &str = "green-percent";

/// Label of the share of the time that a cluster is available, per cent: `99.9` or `99.9%`.
pub const AVAILABILITY_LABEL: &str = "availability";

/// The per cent that a label of a cluster says, with or without its sign; `None` if it says none, or one that cannot be.
pub fn percent_of(labels: &BTreeMap<String, String>, label: &str) -> Option<f64> {
    let text = labels.get(label)?.trim();
    let number: f64 = text.strip_suffix('%').unwrap_or(text).trim().parse().ok()?;
    (0.0..=100.0).contains(&number).then_some(number)
}

/// Contexts of workload expectations that choose a cluster: attribute and the label that it must carry.
pub const LABEL_CONTEXTS: [(&str, &str); 4] =
    [("region", "region"), ("site", "site"), ("tier", "tier"), ("enclave", "enclave")];

const WORKLOAD: ObjectType = ObjectType {
    name: "NEMO_WORKLOAD",
    kind: ObjectKind::Workload,
    object_contexts: &["region", "site", "tier", "enclave"],
    contexts: &["region", "site", "tier", "enclave"],
};

const fn network(
    name: &'static str,
    object_contexts: &'static [&'static str],
    contexts: &'static [&'static str],
) -> ObjectType {
    ObjectType { name, kind: ObjectKind::Network, object_contexts, contexts }
}

/// Every type of intent.
pub const TYPES: &[IntentType] = &[
    IntentType {
        label: "DeliverComputingWorkload",
        aliases: &[],
        about: "a workload runs, within bounds of what it uses and of how it answers",
        verbs: &["DELIVER", "ENSURE"],
        objects: &[WORKLOAD],
        targets: &[CPU, RAM, RESPONSE_P50, RESPONSE_P95, RESPONSE_P99, ERRORS],
        needs_target: true,
        selector: &[],
        statement: "",
    },
    IntentType {
        label: "CloudContinuumNetwork",
        aliases: &["cloud_continuum", "Cloud_continuum", "CloudContinuum"],
        about: "sites and clusters are connected",
        // Of the specification's other words no library takes ENSURE, CREATE, 5G_SLICE_FLOW and BGP_SESSION: they are
        // refused, not accepted and left undone.
        verbs: &["DELIVER"],
        objects: &[
            network("K8S_L2_NETWORK", &["name", "providerName", "domain"], &["url"]),
            network("K8S_CLUSTER_CONFIG", &["name", "bearer_token", "api_key"], &["k8s_l2_network", "url"]),
            network("L2VPN", &["nodeSrc", "nodeDst", "endpointSrc", "endpointDst", "vlanId", "niName"], &["url"]),
            // Taken where a library file for it is installed; none comes with the exposer.
            network(
                "SLICE_SERVICE_SDP",
                &["slo-sle-policy", "sdp-id", "node-id", "sdp-ip-address", "niName"],
                &["url"],
            ),
            network(
                "LINUX_L2_SEGMENT",
                &["vni", "nodeSrc", "nodeDst", "endpointSrc", "endpointDst", "ipSrc", "ipDst"],
                &[],
            ),
        ],
        targets: &[
            target("bandwidth", "Gbit/s", "Gbit/s", 1e6, Measure::Handed),
            target("latency", "milliseconds", "ms", 1e6, Measure::Handed),
            target("ulCapacity", "Mbit/s", "Mbit/s", 1e9, Measure::Handed),
            target("dlCapacity", "Mbit/s", "Mbit/s", 1e9, Measure::Handed),
            target("one-way-bandwidth", "Gbit/s", "Gbit/s", 1e6, Measure::Handed),
            target("one-way-delay-maximum", "milliseconds", "ms", 1e6, Measure::Handed),
        ],
        needs_target: false,
        selector: &[],
        statement: "",
    },
    IntentType {
        label: "SecureExecution",
        aliases: &["secure_execution"],
        about: "a workload runs on a cluster that declares itself a secure execution environment",
        verbs: &["DELIVER", "ENSURE"],
        objects: &[WORKLOAD],
        targets: &[CPU, RAM],
        needs_target: false,
        selector: &[("secure-execution", "true")],
        statement: "nothing attests a secure execution environment: the cluster is selected by the label \
                    secure-execution=true, which it declares itself",
    },
    IntentType {
        label: "FederatedLearning",
        aliases: &["federated_learning"],
        about: "a learning workload runs on a cluster that declares itself part of federated learning",
        verbs: &["DELIVER", "ENSURE"],
        objects: &[WORKLOAD],
        targets: &[CPU, RAM],
        needs_target: false,
        selector: &[("federated-learning", "true")],
        statement: "nothing runs federated learning for the workload: its cluster is selected by the label \
                    federated-learning=true, which it declares itself",
    },
    IntentType {
        label: "Availability",
        aliases: &["availability"],
        about: "a workload runs on a cluster that declares itself available for as much of the time as is wanted, and \
                answers as fast and as well as is wanted",
        verbs: &["DELIVER", "ENSURE"],
        objects: &[WORKLOAD],
        targets: &[
            target(
                "availability",
                "per cent of the time that its cluster declares itself available",
                "%",
                100.0,
                Measure::AvailabilityPercent,
            ),
            CPU,
            RAM,
            RESPONSE_P50,
            RESPONSE_P95,
            RESPONSE_P99,
            ERRORS,
        ],
        needs_target: true,
        selector: &[],
        statement: "",
    },
    IntentType {
        label: "EnergyCarbonEfficiency",
        aliases: &["energy_carbon_efficiency"],
        about: "a workload's modelled energy and declared green share stay within bounds",
        verbs: &["DELIVER", "ENSURE"],
        objects: &[WORKLOAD],
        targets: &[
            target(
                "compEnergyEfficiency",
                "joules for each second of one core",
                "J/s",
                1e9,
                Measure::JoulesPerCoreSecond,
            ),
            target("compEnergyConsumption", "joules in an observation period", "J", 1e12, Measure::Joules),
            target(
                "greenEnergyConsumptionRate",
                "per cent of the energy that is renewable",
                "%",
                100.0,
                Measure::GreenPercent,
            ),
            CPU,
            RAM,
        ],
        needs_target: true,
        selector: &[],
        statement: "",
    },
];

/// The type of a label, or of an alias of it.
pub fn of_label(label: &str) -> Option<&'static IntentType> {
    TYPES.iter().find(|t| t.label == label || t.aliases.contains(&label))
}

/// The target of this name, of whatever type.
pub fn target_of(name: &str) -> Option<&'static TargetType> {
    TYPES.iter().flat_map(|t| t.targets).find(|t| t.name == name)
}

/// Is the target of this name measured by requests? See [`Measure::is_of_traffic`].
pub fn is_of_traffic(name: &str) -> bool {
    measure_of(name).is_some_and(Measure::is_of_traffic)
}

/// What a target of this name is measured as; `None` if no type allows it.
pub fn measure_of(name: &str) -> Option<Measure> {
    target_of(name).map(|t| t.measure)
}

/// The contexts of an expectation that choose a cluster, as attribute and value.
pub fn label_contexts(expectation: &IntentExpectation) -> impl Iterator<Item = (&'static str, &str)> {
    let objects = expectation.expectation_object.iter().flat_map(|o| &o.object_contexts);
    objects.chain(&expectation.expectation_contexts).filter_map(|context| {
        let found = LABEL_CONTEXTS.iter().find(|(attribute, _)| *attribute == context.context_attribute);
        let label = found.map(|(_, label)| *label)?;
        Some((label, context.context_value_range.as_str()))
    })
}

impl IntentType {
    /// Labels that the cluster of an expectation must carry: by the type, and by the expectation's contexts.
    pub fn selector(&self, expectation: &IntentExpectation) -> BTreeMap<String, String> {
        let own = self.selector.iter().map(|(label, value)| (*label, *value));
        own.chain(label_contexts(expectation)).map(|(label, value)| (label.to_owned(), value.to_owned())).collect()
    }

    /// The object of this name.
    pub fn object(&self, name: &str) -> Option<&'static ObjectType> {
        self.objects.iter().find(|o| o.name == name)
    }

    /// The target of this name.
    pub fn target(&self, name: &str) -> Option<&'static TargetType> {
        self.targets.iter().find(|t| t.name == name)
    }

    /// Who provides its objects; a type's objects are all of one kind.
    pub fn kind(&self) -> ObjectKind {
        self.objects.first().map_or(ObjectKind::Workload, |o| o.kind)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mesh_proto::intent::ExpectationTarget;

    use super::*;

    #[test]
    fn there_are_the_types_of_the_specification_and_every_name_is_unique() {
        let mut seen = BTreeSet::new();
        for found in TYPES {
            assert!(seen.insert(found.label), "{}", found.label);
            assert!(found.aliases.iter().all(|alias| seen.insert(alias)), "{}", found.label);
            assert!(found.objects.iter().all(|o| o.kind == found.kind()), "{}", found.label);
            assert!(!found.verbs.is_empty() && !found.objects.is_empty() && !found.about.is_empty());
            assert_eq!(of_label(found.label), Some(found));
        }
        // The five of its list, and the one of its migration test.
        assert_eq!(TYPES.len(), 6);
        assert_eq!(of_label("cloud_continuum").map(|t| t.label), Some("CloudContinuumNetwork"));
        assert_eq!(of_label("nothing"), None);
    }

    #[test]
    fn a_target_means_the_same_in_every_type() {
        for found in TYPES.iter().flat_map(|t| t.targets) {
            let same = target_of(found.name).unwrap();
            assert_eq!((same.measure, same.unit, same.max), (found.measure, found.unit, found.max), "{}", found.name);
        }
    }

    #[test]
    fn a_type_that_trusts_a_label_states_that_nothing_proves_it() {
        for found in TYPES {
            assert_eq!(found.selector.is_empty(), found.statement.is_empty(), "{}", found.label);
            for (label, value) in found.selector {
                assert!(found.statement.contains(&format!("{label}={value}")), "{}", found.statement);
                assert!(found.statement.contains("declares itself"), "{}", found.statement);
            }
        }
    }

    #[test]
    fn only_what_is_read_from_the_load_can_be_measured() {
        let measured = |name: &str| measure_of(name).unwrap().provenance(Provenance::Measured);
        assert_eq!([measured("cpuUsage"), measured("ramUsage")], [Provenance::Measured; 2]);
        let energy = ["compEnergyConsumption", "compEnergyEfficiency"];
        assert_eq!(energy.map(measured), [Provenance::Modelled; 2]);
        assert_eq!(measured("greenEnergyConsumptionRate"), Provenance::Declared);
        assert_eq!(Measure::CpuPercent.provenance(Provenance::Modelled), Provenance::Modelled, "a simulated load");
        assert_eq!(Measure::ErrorPercent.provenance(Provenance::Modelled), Provenance::Measured, "requests are real");
    }

    #[test]
    fn what_requests_measure_is_not_what_networks_are_handed() {
        let of_traffic = ["responseTimeP50", "responseTimeP95", "responseTimeP99", "errorRate"];
        assert!(of_traffic.iter().all(|name| is_of_traffic(name)));
        for other in ["latency", "one-way-delay-maximum", "cpuUsage", "availability", "nothing"] {
            assert!(!is_of_traffic(other), "{other}");
        }
    }

    #[test]
    fn a_label_says_its_per_cent_with_or_without_the_sign() {
        let of = |text: &str| percent_of(&BTreeMap::from([("l".to_owned(), text.to_owned())]), "l");
        let cases = [("99.9%", Some(99.9)), (" 90 % ", Some(90.0)), ("100", Some(100.0)), ("0", Some(0.0))];
        for (text, percent) in cases {
            assert_eq!(of(text), percent, "{text:?}");
        }
        for text in ["", "%", "high", "101", "-1", "NaN", "9%%"] {
            assert_eq!(of(text), None, "{text:?}");
        }
        assert_eq!(percent_of(&BTreeMap::new(), "l"), None);
    }

    #[test]
    fn an_availability_equal_to_a_figure_is_at_least_that() {
        let target = |name: &str| ExpectationTarget {
            target_name: name.into(),
            target_condition: "IS_EQUAL_TO".into(),
            target_value_range: "99.9".into(),
            ..ExpectationTarget::default()
        };
        let meets = |name: &str, value| crate::Bound::of(&target(name)).unwrap().holds(value);
        assert!(meets("availability", 99.99) && meets("availability", 99.9) && !meets("availability", 90.0));
        assert!(!meets("cpuUsage", 99.99));
    }

    #[test]
    fn every_label_context_is_one_that_a_workload_may_have() {
        let known: Vec<&str> = LABEL_CONTEXTS.iter().map(|(attribute, _)| *attribute).collect();
        assert_eq!(WORKLOAD.contexts, known);
        assert_eq!(WORKLOAD.object_contexts, known);
    }
}
