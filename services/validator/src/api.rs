//! The dry runs: what the verdict would be and what would come of it, and what intents may say at all.

use mesh_core::query::{check_key, owner};
use mesh_intent::{
    Condition, Measure, goal,
    template::{self, Template},
    types,
};
use mesh_kit::View;
use mesh_proto::{
    Written, derived_id,
    intent::{GovernedInstance, Intent, Problem},
    telemetry::Provenance,
    validation::{
        CheckReply, CheckRequest, IntentTypeTarget, IntentTypeView, IntentTypes, IntentTypesRequest, ObjectivesReply,
        ObjectivesRequest, TemplateReply, TemplateRequest, validator_queries_server::ValidatorQueries,
    },
};
use tonic::{Request, Response, Status};

use crate::domain::{Known, content, predict::predict};

/// Largest document of goals, bytes.
const GOALS_BYTES_MAX: usize = 64 * 1024;

/// Answers `ValidatorQueries` with the same checks that verdicts are made of.
pub(crate) struct Api {
    view: View<Known>,
}

impl Api {
    /// Answers from this view.
    pub(crate) fn new(view: View<Known>) -> Self {
        Self { view }
    }
}

/// What the verdict on an intent would be, and what would come of it.
fn check(known: &Known, request: &CheckRequest, intent: &Intent) -> CheckReply {
    let owner = owner(&request.owner);
    let (problems, _) = known.judge(owner, intent, known.now());
    if !problems.is_empty() {
        return CheckReply { problems, predicted_state: "FULFILMENTFAILED".into(), ..Default::default() };
    }
    let governed = |expectation: &mesh_proto::intent::IntentExpectation| {
        let object = expectation.expectation_object.as_ref()?.object_instance.clone();
        let created = derived_id(&[owner, &request.intent_id, &expectation.expectation_id]);
        let instance_id = if object.contains('@') { created } else { object };
        Some(GovernedInstance { expectation_id: expectation.expectation_id.clone(), instance_id, ..Default::default() })
    };
    let instances: Vec<GovernedInstance> = intent.intent_expectations.iter().filter_map(governed).collect();
    let conflicts = known.conflicts_with(owner, &request.intent_id, intent, &instances);
    predict(intent, owner, conflicts, known)
}

#[tonic::async_trait]
impl ValidatorQueries for Api {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckReply>, Status> {
        let request = request.into_inner();
        let Some(intent) = &request.intent else {
            return Err(Status::invalid_argument("the request holds no intent; put the document under `intent`"));
        };
        for (name, text) in [("owner", &request.owner), ("intentId", &request.intent_id)] {
            if !text.is_empty() {
                check_key(name, text)?;
            }
        }
        Ok(Response::new(self.view.read(|known| check(known, &request, intent))))
    }

    async fn types(&self, _: Request<IntentTypesRequest>) -> Result<Response<IntentTypes>, Status> {
        Ok(Response::new(all_types()))
    }

    async fn template(&self, request: Request<TemplateRequest>) -> Result<Response<TemplateReply>, Status> {
        let request = request.into_inner();
        let template = Template {
            instance_id: request.instance_id,
            intent_type: request.intent_type,
            start: request.service_start_time,
            end: request.service_end_time,
            targets: request.targets,
        };
        Ok(Response::new(match template::write_out(&template) {
            Ok(intent) => {
                let (problems, _) = self.view.read(|known| content::judge(&intent, known.now()));
                TemplateReply { intent: Some(intent), problems }
            }
            Err(problem) => TemplateReply { intent: None, problems: vec![problem] },
        }))
    }

    async fn objectives(&self, request: Request<ObjectivesRequest>) -> Result<Response<ObjectivesReply>, Status> {
        let document = request.into_inner().document;
        if document.len() > GOALS_BYTES_MAX {
            let text = format!("the document has {} bytes; send at most {GOALS_BYTES_MAX}", document.len());
            return Err(Status::invalid_argument(text));
        }
        let problem = |reason: String| Problem { path: String::new(), reason, hint: "correct it there".into() };
        let read = Written::yaml(&document)
            .map_err(|error| vec![problem(format!("it is neither YAML nor JSON: {error}"))])
            .and_then(|written| goal::read(&written.into_spelt_json()));
        Ok(Response::new(match read {
            Ok(components) => {
                let resources = self.view.read(Known::resources);
                let objectives = components.iter().flat_map(|component| goal::translate(component, &resources));
                let objectives = objectives.collect();
                ObjectivesReply { objectives, problems: vec![], statement: goal::STATEMENT.into() }
            }
            Err(problems) => ObjectivesReply { problems, ..Default::default() },
        }))
    }
}

fn all_types() -> IntentTypes {
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let one = |kind: &types::IntentType| IntentTypeView {
        user_label: kind.label.into(),
        aliases: texts(kind.aliases),
        description: kind.about.into(),
        verbs: texts(kind.verbs),
        object_types: kind.objects.iter().map(|o| o.name.to_owned()).collect(),
        targets: kind
            .targets
            .iter()
            .map(|t| IntentTypeTarget {
                name: t.name.into(),
                unit: t.unit.into(),
                max: t.max,
                measured: t.measure != Measure::Handed,
                provenance: t.measure.provenance(Provenance::Measured).into(),
            })
            .collect(),
        contexts: {
            let mut all: Vec<String> =
                kind.objects.iter().flat_map(|o| [o.object_contexts, o.contexts].concat()).map(str::to_owned).collect();
            all.sort();
            all.dedup();
            all
        },
        statement: kind.statement.into(),
    };
    IntentTypes { types: types::TYPES.iter().map(one).collect(), conditions: texts(&Condition::NAMES) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mesh_core::ReadModel as _;
    use mesh_proto::{
        Event, Timestamp,
        cluster::ClusterRegistered,
        workload::{InstanceChanged, InstancePhase, InstanceWanted, WorkloadRegistered},
    };
    use prost::Message as _;

    use super::*;
    use crate::domain::content::tests::{good, good_workload, target};

    fn apply<E: Event>(known: &mut Known, event: &E) {
        known.apply(&mesh_test::stored(event, 1, Timestamp::default()));
    }

    fn cluster(known: &mut Known, id: &str, cpu_milli: u32, labels: &[(&str, &str)]) {
        let labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let cluster_id = id.to_owned();
        apply(
            known,
            &ClusterRegistered { cluster_id, cpu_milli, memory_bytes: 8_000_000_000, labels, ..Default::default() },
        );
    }

    /// Two clusters and the document that the good intent names: 500 mCPU.
    fn known() -> Known {
        let mut known = Known::default();
        cluster(&mut known, "cloud", 4_000, &[("tier", "cloud")]);
        cluster(&mut known, "edge", 1_000, &[("tier", "edge"), ("green-percent", "80")]);
        let document = Bytes::from(good_workload().encode_to_vec());
        let (owner, name, version) = ("local".into(), "spinner".into(), "1.0.0".into());
        apply(&mut known, &WorkloadRegistered { owner, name, version, document });
        known
    }

    fn ask(known: &Known, intent: &Intent) -> CheckReply {
        let request = CheckRequest { intent: Some(intent.clone()), ..Default::default() };
        check(known, &request, intent)
    }

    #[test]
    fn a_dry_run_finds_what_the_verdict_would() {
        let intent = Intent { user_label: "DeliverComputingWorklod".into(), ..Default::default() };
        let reply = ask(&known(), &intent);
        assert_eq!(reply.problems, content::check(&intent));
        assert!(!reply.problems.is_empty() && reply.predictions.is_empty());
    }

    #[test]
    fn a_probe_predicts_where_it_runs_its_targets_its_energy_and_its_cost() {
        let reply = ask(&known(), &good());
        assert_eq!((reply.problems.len(), reply.predicted_state.as_str()), (0, "FULFILLED"));
        let [one] = reply.predictions.as_slice() else { panic!("{reply:?}") };
        assert_eq!((one.cluster_id.as_str(), one.feasibility.as_str()), ("cloud", "FEASIBLE"));
        assert_eq!((one.targets[0].achieved, one.targets[0].fulfilled), (12.5, true));
        assert!(!one.targets[1].measured, "what will be resident is not predicted from a reservation");
        // 20 W idle by an eighth, 7 W per core by a half; 3 credits per core and hour.
        assert_eq!((one.watts, one.joules_per_day, one.credits_per_day), (6.0, 518_400.0, 36.0));
        assert_eq!(reply.watts, one.watts);
    }

    #[test]
    fn energy_targets_are_predicted_with_figures_of_the_cluster() {
        let mut intent = good();
        intent.user_label = "EnergyCarbonEfficiency".into();
        intent.intent_expectations[0].expectation_targets = vec![
            target("compEnergyConsumption", "IS_LESS_THAN", "600"),
            target("compEnergyEfficiency", "IS_LESS_THAN", "20"),
            target("greenEnergyConsumptionRate", "IS_GREATER_THAN", "50"),
        ];
        let reply = ask(&known(), &intent);
        let figures: Vec<(f64, bool)> = reply.predictions[0].targets.iter().map(|t| (t.achieved, t.measured)).collect();
        // The cloud: 6 W over 60 s, by half a core; it does not say how green it is.
        assert_eq!(figures, [(360.0, true), (12.0, true), (0.0, false)]);
        let sources: Vec<Provenance> = reply.predictions[0].targets.iter().map(|t| t.provenance()).collect();
        assert_eq!(sources, [Provenance::Modelled, Provenance::Modelled, Provenance::Unspecified]);
        assert_eq!(
            (reply.predictions[0].provenance(), reply.provenance()),
            (Provenance::Modelled, Provenance::Modelled)
        );
    }

    #[test]
    fn what_requests_will_measure_is_not_foretold_and_needs_a_port() {
        let mut intent = good();
        intent.intent_expectations[0].expectation_targets =
            vec![target("cpuUsage", "IS_LESS_THAN", "50"), target("responseTimeP95", "IS_LESS_THAN", "100")];
        let mut known = known();
        let mut document = good_workload();
        let register = |known: &mut Known, document: &mesh_proto::workload::WorkloadDocument| {
            let (owner, name, version) = ("local".into(), "spinner".into(), "1.0.0".into());
            let document = Bytes::from(document.encode_to_vec());
            apply(known, &WorkloadRegistered { owner, name, version, document });
        };
        document.expose = None;
        register(&mut known, &document);
        let problems = ask(&known, &intent).problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].path, "intentExpectations[0].expectationTargets[1].targetName");
        assert!(problems[0].reason.contains("exposes no port"), "{problems:?}");
        // An instance of it is told apart by its own document.
        let wanted = InstanceWanted {
            owner: "local".into(),
            instance_id: "2b6a6ef0-87f0-4dd5-8e7a-7d4b1a6ab6a9".into(),
            replicas: 1,
            document: document.encode_to_vec().into(),
            ..Default::default()
        };
        apply(&mut known, &wanted);
        let mut governing = intent.clone();
        let object = governing.intent_expectations[0].expectation_object.as_mut().unwrap();
        object.object_instance.clone_from(&wanted.instance_id);
        assert_eq!(ask(&known, &governing).problems.len(), 1);

        document.expose = Some(mesh_proto::workload::Expose { port: 8_080, ..Default::default() });
        register(&mut known, &document);
        let reply = ask(&known, &intent);
        assert_eq!((reply.problems.len(), reply.predicted_state.as_str()), (0, "COMPLIANT"));
        let [one] = reply.predictions.as_slice() else { panic!("{reply:?}") };
        assert_eq!(one.targets.iter().map(|t| t.measured).collect::<Vec<_>>(), [true, false]);
        assert!(one.reason.contains("responseTimeP95: measured by requests"), "{}", one.reason);
    }

    #[test]
    fn what_never_fits_is_infeasible_with_the_nearest_miss() {
        let mut known = known();
        let document: Bytes = good_workload().encode_to_vec().into();
        let taken = InstanceWanted {
            owner: "local".into(),
            instance_id: "n".into(),
            replicas: 8,
            document,
            ..Default::default()
        };
        let runs = |cluster: &str, id: &str| InstanceChanged {
            owner: "local".into(),
            instance_id: id.into(),
            cluster_id: cluster.into(),
            phase: InstancePhase::Running.into(),
            ..Default::default()
        };
        apply(&mut known, &taken);
        apply(&mut known, &runs("cloud", "n"));
        apply(&mut known, &InstanceWanted { instance_id: "m".into(), replicas: 2, ..taken.clone() });
        apply(&mut known, &runs("edge", "m"));
        let reply = ask(&known, &good());
        assert_eq!(
            (reply.predictions[0].feasibility.as_str(), reply.predicted_state.as_str()),
            ("WAITING", "ACKNOWLEDGED")
        );
        assert!(reply.predictions[0].reason.contains("nearest miss"), "{reply:?}");
        apply(&mut known, &InstanceWanted { replicas: 0, ..taken });
        assert_eq!(ask(&known, &good()).predicted_state, "FULFILLED", "room is free again");

        let mut secure = good();
        secure.user_label = "SecureExecution".into();
        let reply = ask(&known, &secure);
        assert_eq!(reply.predicted_state, "FULFILMENTFAILED");
        assert!(reply.predictions[0].reason.contains("secure-execution=true"), "{reply:?}");
        cluster(&mut known, "vault", 4_000, &[("secure-execution", "true")]);
        assert_eq!(ask(&known, &secure).predictions[0].cluster_id, "vault");
    }

    #[test]
    fn a_document_that_is_not_registered_is_waited_for() {
        let reply = ask(&Known::default(), &good());
        assert_eq!(reply.predicted_state, "ACKNOWLEDGED");
        assert_eq!(reply.predictions[0].reason, "workload document spinner@1.0.0 is not registered");
    }

    #[test]
    fn every_type_is_told_with_its_targets() {
        let all = all_types();
        assert_eq!((all.types.len(), all.conditions.len()), (6, 10));
        assert!(all.types.iter().all(|t| !t.verbs.is_empty() && !t.object_types.is_empty()));
        let by_label = |label: &str| all.types.iter().find(|t| t.user_label == label).unwrap();
        assert!(by_label("SecureExecution").statement.contains("nothing attests"));
        assert!(by_label("FederatedLearning").statement.contains("nothing runs federated learning"));
        assert_eq!(by_label("DeliverComputingWorkload").statement, "");
        let energy = &by_label("EnergyCarbonEfficiency").targets;
        let source = |name: &str| energy.iter().find(|t| t.name == name).unwrap().provenance();
        assert_eq!(source("compEnergyConsumption"), Provenance::Modelled);
        assert_eq!(source("greenEnergyConsumptionRate"), Provenance::Declared);
        assert_eq!(source("cpuUsage"), Provenance::Measured);
    }
}
