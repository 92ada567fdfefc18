//! Every request of the REST faces, in one table: from it come the routes, the checks, and the OpenAPI document.

use serde_json::{Map, Value as Json, json};

use mesh_rest::{
    access::{Action, who_may},
    problem,
};

use super::{telemetry, tmf};

/// What is asked for.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Login,
    Logout,
    WhoAmI,
    ListAccounts,
    PutAccount,
    DeleteAccount,
    ListIntents,
    SubmitIntent,
    SubmitTemplate,
    IntentTypes,
    CheckIntent,
    GetIntent,
    UpdateIntent,
    EndIntent,
    ActOnIntent,
    UpdateTarget,
    IntentReport,
    IntentHistory,
    IntentAchieved,
    RollbackIntent,
    WatchIntent,
    WhyIntent,
    ListWorkloads,
    RegisterWorkload,
    UploadChart,
    GetWorkload,
    DropWorkload,
    RunInstance,
    ListInstances,
    GetInstance,
    StopInstance,
    UpgradeInstance,
    RollbackInstance,
    MigrateInstance,
    Manifests,
    WhyInstance,
    RegisterCluster,
    ListClusters,
    GetCluster,
    ListTwins,
    GetTwin,
    TwinHistory,
    TwinDiff,
    ClusterData,
    InstanceData,
    SecurityEvents,
    CmdtData,
    TmfList,
    TmfCreate,
    TmfGet,
    TmfPatch,
    TmfDelete,
    TmfReports,
    TmfReport,
    TmfSubscribe,
    TmfSubscription,
    TmfUnsubscribe,
    QueryTelemetry,
    TelemetryInventory,
    StreamTelemetry,
    StreamAnomalies,
    StreamObservations,
    StreamTwins,
    Metrics,
    ListSettings,
    GetSetting,
    PutSetting,
    DeleteSetting,
    ListConditions,
    GetCondition,
    PutCondition,
    DeleteCondition,
    SerranoProbeMonitor,
    SerranoProbeInventory,
    SerranoCollection,
    SerranoStreamEnd,
    SerranoRegister,
    SerranoAgent,
    SerranoChangeAgent,
    SerranoUnregister,
    SerranoStreaming,
    SerranoAgentMonitor,
    SerranoAgentInventory,
    SerranoEntities,
    SerranoCentral,
    SerranoChangeCentral,
    SerranoCentralInventory,
    SerranoInfrastructure,
    SerranoStorage,
    SerranoClusters,
    SerranoCluster,
    SerranoClusterInventory,
    SerranoClusterMonitor,
    SerranoClusterMetrics,
    SerranoDeployments,
    SerranoAddDeployment,
    SerranoDeployment,
    SerranoAllocation,
    SerranoKernels,
}

/// Schema of the body that is a form with a file.
pub const UPLOAD: &str = "WorkloadUpload";

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// HTTP method.
    pub method: &'static str,
    /// Path with parameters in braces.
    pub path: &'static str,
    /// What is asked for.
    pub op: Op,
    /// What the caller must be allowed; `None` for everybody, signed in or not.
    pub action: Option<Action>,
    /// In a line.
    pub summary: &'static str,
    /// Names of its query parameters.
    pub query: &'static [&'static str],
    /// Schema of its body; empty for none.
    pub body: &'static str,
    /// Status of success, and schema of what comes with it; empty for nothing, `[name]` for a list, a media type for text. A
    /// status that comes in several forms has a row for each.
    pub answers: &'static [(u16, &'static str)],
}

const PAGE: [&str; 3] = ["owner", "page_size", "page_token"];
/// What a list of intents is narrowed by.
const FILTERS: [&str; 5] = ["user_label", "object_instance", "fulfilment_status", "not_fulfilled_state", "intent_id"];
const INTENT_LIST: [&str; 8] = [FILTERS[0], FILTERS[1], FILTERS[2], FILTERS[3], FILTERS[4], PAGE[0], PAGE[1], PAGE[2]];
const OWNER: [&str; 1] = ["owner"];
const ACHIEVED: [&str; 7] = ["from", "to", "target", "format", PAGE[0], PAGE[1], PAGE[2]];
const CHECK: [&str; 2] = ["owner", "intent_id"];
const WORKLOAD_LIST: [&str; 5] = ["name", "version", PAGE[0], PAGE[1], PAGE[2]];
const INSTANCE_LIST: [&str; 7] =
    ["release_name", "cluster_name", "workload_document", "status", PAGE[0], PAGE[1], PAGE[2]];

const F: [&str; 8] = telemetry::FILTER;
const METRICS: [&str; 8] = F;
const TELEMETRY_STREAM: [&str; 10] = [F[0], F[1], F[2], F[3], F[4], F[5], F[6], F[7], "interval_ms", "after"];
const TELEMETRY_QUERY: [&str; 15] = [
    F[0],
    F[1],
    F[2],
    F[3],
    F[4],
    F[5],
    F[6],
    F[7],
    "from",
    "to",
    "step",
    "function",
    "series_max",
    "values_max",
    "format",
];
const FACT_STREAM: [&str; 2] = ["owner", "after"];
const TWIN_STREAM: [&str; 3] = ["owner", "kind", "twin_id"];
const CLUSTER_PAGE: [&str; 3] = ["cluster_id", PAGE[1], PAGE[2]];
const TWIN_LIST: [&str; 4] = ["kind", PAGE[0], PAGE[1], PAGE[2]];
/// What the reads of the LCM repository take.
const CLUSTER_DATA: [&str; 5] = ["timestamp_from", "timestamp_to", "cluster_id", PAGE[1], PAGE[2]];
const WORKLOAD_DATA: [&str; 6] = ["timestamp_from", "timestamp_to", "workload_id", PAGE[0], PAGE[1], PAGE[2]];

use Action::{
    OwnSession, ReadClusters, ReadIntents, ReadTelemetry, ReadWorkloads, WriteAccounts, WriteClusters, WriteIntents,
    WriteWorkloads,
};

macro_rules! route {
    ($method:literal $path:literal $op:ident, $action:expr, $summary:literal, $query:expr, $body:literal, $answers:expr) => {
        Route {
            method: $method,
            path: $path,
            op: Op::$op,
            action: $action,
            summary: $summary,
            query: $query,
            body: $body,
            answers: $answers,
        }
    };
}

/// The table.
#[rustfmt::skip]
pub const ROUTES: &[Route] = &[
    route!("POST" "/api/v1/auth/login/" Login, None, "Sign in at the built-in issuer", &[], "Login", &[(200, "Token")]),
    route!("POST" "/api/v1/auth/logout/" Logout, Some(OwnSession), "End the session", &[], "", &[(204, "")]),
    route!("GET" "/api/v1/auth/whoami/" WhoAmI, Some(OwnSession), "Who one is, and what one may do", &[], "", &[(200, "Caller")]),
    route!("GET" "/api/v1/auth/account/" ListAccounts, Some(WriteAccounts), "List the accounts of the built-in issuer", &[], "", &[(200, "[Account]")]),
    route!("PUT" "/api/v1/auth/account/" PutAccount, Some(WriteAccounts), "Make or change an account", &[], "AccountInput", &[(200, "Account")]),
    route!("DELETE" "/api/v1/auth/account/{id}/" DeleteAccount, Some(WriteAccounts), "Remove an account", &[], "", &[(204, "")]),
    route!("GET" "/api/v1/intent/" ListIntents, Some(ReadIntents), "List intents; a filter may be repeated", &INTENT_LIST, "", &[(200, "[Intent]")]),
    route!("POST" "/api/v1/intent/" SubmitIntent, Some(WriteIntents), "Submit an intent", &OWNER, "IntentInput", &[(201, "Intent"), (200, "Intent"), (202, "Intent")]),
    route!("POST" "/api/v1/intent/template/" SubmitTemplate, Some(WriteIntents), "Submit an intent in its short form", &OWNER, "IntentTemplate", &[(201, "Intent"), (200, "Intent"), (202, "Intent")]),
    route!("GET" "/api/v1/intent/types/" IntentTypes, Some(ReadIntents), "List the types of intents", &[], "", &[(200, "[IntentType]")]),
    route!("POST" "/api/v1/intent/check/" CheckIntent, Some(ReadIntents), "What the verdict on an intent would be, and what would come of it; changes nothing", &CHECK, "IntentInput", &[(200, "Check")]),
    route!("GET" "/api/v1/intent/{id}/" GetIntent, Some(ReadIntents), "An intent as it stands", &OWNER, "", &[(200, "Intent"), (304, "")]),
    route!("PUT" "/api/v1/intent/{id}/" UpdateIntent, Some(WriteIntents), "Replace an intent's definition", &OWNER, "IntentInput", &[(200, "Intent"), (202, "Intent")]),
    route!("DELETE" "/api/v1/intent/{id}/" EndIntent, Some(WriteIntents), "Terminate an intent", &OWNER, "", &[(204, "")]),
    route!("PUT" "/api/v1/intent/{id}/action/" ActOnIntent, Some(WriteIntents), "Suspend, resume or terminate an intent", &OWNER, "ActionInput", &[(200, "Intent")]),
    route!("PUT" "/api/v1/intent/{id}/target/" UpdateTarget, Some(WriteIntents), "Change the value of one target", &OWNER, "TargetUpdate", &[(200, "Intent"), (202, "Intent")]),
    route!("GET" "/api/v1/intent/{id}/report/" IntentReport, Some(ReadIntents), "An intent's newest report", &OWNER, "", &[(200, "Report")]),
    route!("GET" "/api/v1/intent/{id}/history/" IntentHistory, Some(ReadIntents), "An intent's versions, the first first", &OWNER, "", &[(200, "History")]),
    route!("GET" "/api/v1/intent/{id}/achieved/" IntentAchieved, Some(ReadIntents), "What an intent's targets achieved in each period that is kept, newest first, as JSON or CSV", &ACHIEVED, "", &[(200, "[Achieved]"), (200, "text/csv")]),
    route!("PUT" "/api/v1/intent/{id}/rollback/" RollbackIntent, Some(WriteIntents), "Make an earlier version the definition again", &OWNER, "RollbackInput", &[(200, "Intent"), (202, "Intent")]),
    route!("GET" "/api/v1/intent/{id}/events/" WatchIntent, Some(ReadIntents), "An intent now and at each change, as server-sent events", &OWNER, "", &[(200, "text/event-stream")]),
    route!("GET" "/api/v1/intent/{id}/why/" WhyIntent, Some(ReadIntents), "How an intent came to stand as it does: each step with its cause", &OWNER, "", &[(200, "[Step]")]),
    route!("GET" "/api/v1/workload/" ListWorkloads, Some(ReadWorkloads), "List workload documents", &WORKLOAD_LIST, "", &[(200, "[Workload]")]),
    route!("POST" "/api/v1/workload/" RegisterWorkload, Some(WriteWorkloads), "Register a workload document", &OWNER, "WorkloadInput", &[(201, "Workload"), (200, "Workload"), (202, "Workload")]),
    route!("POST" "/api/v1/workload/upload/" UploadChart, Some(WriteWorkloads), "Upload a Helm chart, and register it under its name and version", &OWNER, "WorkloadUpload", &[(201, "Workload"), (200, "Workload"), (202, "Workload")]),
    route!("GET" "/api/v1/workload/instance/" ListInstances, Some(ReadWorkloads), "List instances", &INSTANCE_LIST, "", &[(200, "[Instance]")]),
    route!("GET" "/api/v1/workload/instance/{id}/" GetInstance, Some(ReadWorkloads), "An instance as it stands", &OWNER, "", &[(200, "Instance")]),
    route!("PUT" "/api/v1/workload/instance/{id}/delete/" StopInstance, Some(WriteWorkloads), "End an instance", &OWNER, "", &[(200, "Instance")]),
    route!("PUT" "/api/v1/workload/instance/{id}/upgrade/" UpgradeInstance, Some(WriteWorkloads), "Give an instance another version of its document, or other values", &OWNER, "UpgradeInput", &[(200, "Instance")]),
    route!("PUT" "/api/v1/workload/instance/{id}/rollback/" RollbackInstance, Some(WriteWorkloads), "Go back to an earlier revision", &OWNER, "RevisionInput", &[(200, "Instance")]),
    route!("PUT" "/api/v1/workload/instance/{id}/migrate/" MigrateInstance, Some(WriteWorkloads), "Move an instance; its planner decides whether it goes", &OWNER, "MigrateInput", &[(202, "Instance")]),
    route!("GET" "/api/v1/workload/instance/{id}/manifests/" Manifests, Some(ReadWorkloads), "What an instance runs, as YAML", &OWNER, "", &[(200, "application/yaml")]),
    route!("GET" "/api/v1/workload/instance/{id}/why/" WhyInstance, Some(ReadWorkloads), "How an instance came to stand as it does: each step with its cause", &OWNER, "", &[(200, "[Step]")]),
    route!("GET" "/api/v1/workload/{id}/" GetWorkload, Some(ReadWorkloads), "A document by `name` (its newest version) or `name@version`", &OWNER, "", &[(200, "Workload")]),
    route!("DELETE" "/api/v1/workload/{id}/" DropWorkload, Some(WriteWorkloads), "Remove a document that is pending or was rejected", &OWNER, "", &[(204, "")]),
    route!("POST" "/api/v1/workload/{id}/template/" RunInstance, Some(WriteWorkloads), "Make an instance, with intents about it", &OWNER, "TemplateInput", &[(201, "Instance")]),
    route!("POST" "/api/v1/cluster/register/" RegisterCluster, Some(WriteClusters), "Check that an agent has declared a cluster; registers nothing", &[], "ClusterInput", &[(204, "")]),
    route!("GET" "/api/v1/cluster/retrieve/" ListClusters, Some(ReadClusters), "List clusters", &[], "", &[(200, "[Cluster]")]),
    route!("GET" "/api/v1/cluster/retrieve/{id}/" GetCluster, Some(ReadClusters), "A cluster as it stands", &[], "", &[(200, "Cluster")]),
    route!("GET" "/api/v1/telemetry/query/" QueryTelemetry, Some(ReadTelemetry), "Values over time, as JSON or CSV; nodes, clusters and storage locations are everybody's, the rest one's own", &TELEMETRY_QUERY, "", &[(200, "Series"), (200, "text/csv")]),
    route!("GET" "/api/v1/telemetry/inventory/" TelemetryInventory, Some(ReadTelemetry), "Who measures, and what: agents, their probes and settings", &CLUSTER_PAGE, "", &[(200, "[Agent]")]),
    route!("GET" "/api/v1/telemetry/stream/" StreamTelemetry, Some(ReadTelemetry), "Values as they come in, as server-sent events; goes on after `Last-Event-ID`", &TELEMETRY_STREAM, "", &[(200, "text/event-stream")]),
    route!("GET" "/api/v1/anomaly/stream/" StreamAnomalies, Some(ReadTelemetry), "Anomalies as they begin and end, as server-sent events; goes on after `Last-Event-ID`", &FACT_STREAM, "", &[(200, "text/event-stream")]),
    route!("GET" "/api/v1/observation/stream/" StreamObservations, Some(ReadTelemetry), "What targets achieved, and conditions that are crossed, as server-sent events; goes on after `Last-Event-ID`", &FACT_STREAM, "", &[(200, "text/event-stream")]),
    route!("GET" "/api/v1/twin/stream/" StreamTwins, Some(ReadTelemetry), "Each twin now, and again at each change, as server-sent events", &TWIN_STREAM, "", &[(200, "text/event-stream")]),
    route!("GET" "/api/v1/metrics/" Metrics, Some(ReadTelemetry), "The newest value of each series, for Prometheus (OpenMetrics)", &METRICS, "", &[(200, "application/openmetrics-text")]),
    route!("GET" "/api/v1/measurement/" ListSettings, Some(ReadTelemetry), "Settings of measurement in force", &CLUSTER_PAGE, "", &[(200, "[MeasurementSetting]")]),
    route!("GET" "/api/v1/measurement/{id}/{setting}/" GetSetting, Some(ReadTelemetry), "One setting of a cluster", &[], "", &[(200, "MeasurementSetting")]),
    route!("PUT" "/api/v1/measurement/{id}/{setting}/" PutSetting, Some(WriteClusters), "Set how something of a cluster is measured, from now on", &[], "SettingInput", &[(200, "MeasurementSetting")]),
    route!("DELETE" "/api/v1/measurement/{id}/{setting}/" DeleteSetting, Some(WriteClusters), "Take a setting back", &[], "", &[(204, "")]),
    route!("GET" "/api/v1/condition/" ListConditions, Some(ReadWorkloads), "Conditions, and which are past their line", &PAGE, "", &[(200, "Conditions")]),
    route!("GET" "/api/v1/condition/{id}/" GetCondition, Some(ReadWorkloads), "One condition", &OWNER, "", &[(200, "Condition")]),
    route!("PUT" "/api/v1/condition/{id}/" PutCondition, Some(WriteWorkloads), "Define a condition, or replace the one of its name", &OWNER, "ConditionInput", &[(200, "Condition")]),
    route!("DELETE" "/api/v1/condition/{id}/" DeleteCondition, Some(WriteWorkloads), "Drop a condition", &OWNER, "", &[(204, "")]),
    route!("GET" "/api/v1/telemetry/probe/monitor/" SerranoProbeMonitor, Some(ReadTelemetry), "The newest samples of all that is measured (SERRANO)", &[], "", &[(200, "Samples")]),
    route!("GET" "/api/v1/telemetry/probe/inventory/" SerranoProbeInventory, Some(ReadTelemetry), "All probes (SERRANO)", &[], "", &[(200, "Probes")]),
    route!("POST" "/api/v1/telemetry/probe/collection/" SerranoCollection, Some(WriteClusters), "Set how often a cluster's probes read (SERRANO)", &[], "SerranoCollectionInput", &[(200, "SerranoSet")]),
    route!("DELETE" "/api/v1/telemetry/probe/streaming/{id}/" SerranoStreamEnd, Some(WriteClusters), "End the streaming of a cluster (SERRANO)", &[], "", &[(204, "")]),
    route!("POST" "/api/v1/telemetry/agent/register/" SerranoRegister, Some(WriteClusters), "Refused: agents declare themselves (SERRANO)", &[], "", &[(409, "Problem")]),
    route!("GET" "/api/v1/telemetry/agent/register/{id}/" SerranoAgent, Some(ReadTelemetry), "An agent (SERRANO)", &[], "", &[(200, "SerranoEntity")]),
    route!("PUT" "/api/v1/telemetry/agent/register/{id}/" SerranoChangeAgent, Some(WriteClusters), "Set how long an agent's samples are kept (SERRANO)", &[], "SerranoAgentInput", &[(200, "SerranoSet")]),
    route!("DELETE" "/api/v1/telemetry/agent/register/{id}/" SerranoUnregister, Some(WriteClusters), "Refused: agents declare themselves (SERRANO)", &[], "", &[(409, "Problem")]),
    route!("POST" "/api/v1/telemetry/agent/streaming/" SerranoStreaming, Some(WriteClusters), "Begin or end the streaming of a cluster (SERRANO)", &[], "SerranoSessionInput", &[(201, "SerranoSet"), (204, "")]),
    route!("GET" "/api/v1/telemetry/agent/monitor/{id}/" SerranoAgentMonitor, Some(ReadTelemetry), "The newest samples of a cluster (SERRANO)", &[], "", &[(200, "Samples")]),
    route!("GET" "/api/v1/telemetry/agent/inventory/{id}/" SerranoAgentInventory, Some(ReadTelemetry), "The probes of a cluster (SERRANO)", &[], "", &[(200, "Probes")]),
    route!("GET" "/api/v1/telemetry/agent/entities/" SerranoEntities, Some(ReadTelemetry), "All agents (SERRANO)", &[], "", &[(200, "SerranoEntities")]),
    route!("GET" "/api/v1/telemetry/central/" SerranoCentral, Some(ReadTelemetry), "Settings of measurement in force (SERRANO)", &[], "", &[(200, "SerranoSettings")]),
    route!("PUT" "/api/v1/telemetry/central/" SerranoChangeCentral, Some(WriteClusters), "Refused: measurement is set cluster by cluster (SERRANO)", &[], "", &[(409, "Problem")]),
    route!("GET" "/api/v1/telemetry/central/inventory/" SerranoCentralInventory, Some(ReadTelemetry), "All agents (SERRANO)", &[], "", &[(200, "SerranoEntities")]),
    route!("GET" "/api/v1/telemetry/central/infrastructure/" SerranoInfrastructure, Some(ReadTelemetry), "Clusters with what they have (SERRANO)", &[], "", &[(200, "SerranoClusters")]),
    route!("GET" "/api/v1/telemetry/central/storage_locations/" SerranoStorage, Some(ReadTelemetry), "Storage locations with what they have (SERRANO)", &[], "", &[(200, "SerranoLocations")]),
    route!("GET" "/api/v1/telemetry/central/clusters/" SerranoClusters, Some(ReadTelemetry), "Clusters (SERRANO)", &[], "", &[(200, "SerranoClusters")]),
    route!("GET" "/api/v1/telemetry/central/clusters/{id}/" SerranoCluster, Some(ReadTelemetry), "A cluster (SERRANO)", &[], "", &[(200, "Cluster")]),
    route!("GET" "/api/v1/telemetry/central/clusters/inventory/{id}/" SerranoClusterInventory, Some(ReadTelemetry), "The probes of a cluster (SERRANO)", &[], "", &[(200, "Probes")]),
    route!("GET" "/api/v1/telemetry/central/clusters/monitor/{id}/" SerranoClusterMonitor, Some(ReadTelemetry), "The newest samples of a cluster (SERRANO)", &[], "", &[(200, "Samples")]),
    route!("GET" "/api/v1/telemetry/central/clusters/metrics/{id}/" SerranoClusterMetrics, Some(ReadTelemetry), "A cluster's samples of the last three minutes (SERRANO)", &[], "", &[(200, "Samples")]),
    route!("GET" "/api/v1/telemetry/central/deployments/" SerranoDeployments, Some(ReadTelemetry), "One's instances (SERRANO)", &[], "", &[(200, "SerranoDeployments")]),
    route!("POST" "/api/v1/telemetry/central/deployments/" SerranoAddDeployment, Some(WriteClusters), "Refused: each instance is measured from its start (SERRANO)", &[], "", &[(409, "Problem")]),
    route!("GET" "/api/v1/telemetry/central/deployments/{id}/" SerranoDeployment, Some(ReadTelemetry), "What an instance uses (SERRANO)", &[], "", &[(200, "SerranoUsage")]),
    route!("GET" "/api/v1/telemetry/central/cluster_deployments/" SerranoAllocation, Some(ReadTelemetry), "Which of one's instances run on which cluster (SERRANO)", &[], "", &[(200, "SerranoAllocation")]),
    route!("GET" "/api/v1/telemetry/central/kernel_metrics/" SerranoKernels, Some(ReadTelemetry), "Executions of kernels, of which there are none (SERRANO)", &[], "", &[(200, "SerranoKernels")]),
    route!("GET" "/api/v1/twin/" ListTwins, Some(ReadClusters), "List digital twins: of clusters, nodes, networks and the continuum, and of one's own workloads", &TWIN_LIST, "", &[(200, "[Twin]")]),
    route!("GET" "/api/v1/twin/{kind}/{id}/" GetTwin, Some(ReadClusters), "A digital twin, now or as it was at a time", &["at", "owner"], "", &[(200, "Twin")]),
    route!("GET" "/api/v1/twin/{kind}/{id}/history/" TwinHistory, Some(ReadClusters), "Published versions of a digital twin, newest first", &PAGE, "", &[(200, "[Twin]")]),
    route!("GET" "/api/v1/twin/{kind}/{id}/diff/" TwinDiff, Some(ReadClusters), "What differs between two times, field by field; between the last two versions if no time is given", &["from", "to", "owner"], "", &[(200, "TwinDiff")]),
    route!("GET" "/api/v1/cluster/{id}/data/" ClusterData, Some(ReadClusters), "What a cluster was like over time, newest first (LCM repository)", &CLUSTER_DATA, "", &[(200, "[Twin]")]),
    route!("GET" "/api/v1/workload_instance/{id}/data/" InstanceData, Some(ReadWorkloads), "What a workload instance was like over time, newest first (LCM repository)", &WORKLOAD_DATA, "", &[(200, "[Twin]")]),
    route!("GET" "/api/v1/workload_security_events/{id}/data/" SecurityEvents, Some(ReadWorkloads), "Anomalies of a workload instance, newest first (LCM repository)", &WORKLOAD_DATA, "", &[(200, "[AnomalyEpisode]")]),
    route!("GET" "/api/v1/workload_CMDT/{id}/data/" CmdtData, Some(ReadWorkloads), "A workload instance over time, as CMDT messages, newest first (LCM repository)", &WORKLOAD_DATA, "", &[(200, "[CmdtMessage]")]),
    route!("GET" "/tmf-api/intentManagement/v5/intent" TmfList, Some(ReadIntents), "List intents (TMF921)", &tmf::LIST, "", &[(200, "[TmfIntent]")]),
    route!("POST" "/tmf-api/intentManagement/v5/intent" TmfCreate, Some(WriteIntents), "Create an intent, or predict what would come of it (ProbeIntent; TMF921)", &["fields"], "TmfIntentInput", &[(201, "TmfIntent"), (200, "TmfIntent"), (202, "TmfIntent")]),
    route!("GET" "/tmf-api/intentManagement/v5/intent/{id}" TmfGet, Some(ReadIntents), "An intent (TMF921)", &["fields"], "", &[(200, "TmfIntent"), (304, "")]),
    route!("PATCH" "/tmf-api/intentManagement/v5/intent/{id}" TmfPatch, Some(WriteIntents), "Change an intent (TMF921)", &["fields"], "TmfIntentPatch", &[(200, "TmfIntent"), (202, "TmfIntent")]),
    route!("DELETE" "/tmf-api/intentManagement/v5/intent/{id}" TmfDelete, Some(WriteIntents), "Terminate an intent (TMF921)", &[], "", &[(204, "")]),
    route!("GET" "/tmf-api/intentManagement/v5/intent/{id}/intentReport" TmfReports, Some(ReadIntents), "An intent's reports (TMF921)", &["fields", "offset", "limit"], "", &[(200, "[TmfReport]")]),
    route!("GET" "/tmf-api/intentManagement/v5/intent/{id}/intentReport/{report}" TmfReport, Some(ReadIntents), "One report (TMF921)", &["fields"], "", &[(200, "TmfReport")]),
    route!("POST" "/tmf-api/intentManagement/v5/hub" TmfSubscribe, Some(WriteIntents), "Subscribe to events, which are sent by HTTP (TMF921)", &[], "TmfHubInput", &[(201, "TmfHub")]),
    route!("GET" "/tmf-api/intentManagement/v5/hub/{id}" TmfSubscription, Some(ReadIntents), "A subscription (TMF921)", &[], "", &[(200, "TmfHub")]),
    route!("DELETE" "/tmf-api/intentManagement/v5/hub/{id}" TmfUnsubscribe, Some(WriteIntents), "End a subscription (TMF921)", &[], "", &[(204, "")]),
];

/// May a query parameter be there several times? One that is not a list is refused when it is there twice.
pub fn is_list(op: Op, name: &str) -> bool {
    match op {
        Op::ListIntents => FILTERS.contains(&name),
        Op::TmfList => !["offset", "limit"].contains(&name),
        Op::QueryTelemetry | Op::StreamTelemetry | Op::Metrics => telemetry::LISTS.contains(&name),
        _ => name == "fields",
    }
}

/// What a query parameter of a request is.
fn parameter(op: Op, name: &str) -> (Json, &'static str) {
    let (schema, description) = match op {
        Op::TmfList if !tmf::PAGING.contains(&name) => (
            json!({"type": "string", "maxLength": 512}),
            "Only intents that have it (TMF630): several values divided by commas or each by itself, `.gt`, `.gte`, `.lt`, \
             `.lte`, `.eq` or `.ne` behind the name, and names of what is in it, as `relatedParty.id`",
        ),
        _ => one(name),
    };
    match is_list(op, name) {
        true => (json!({"type": "array", "items": schema, "maxItems": 16}), description),
        false => (schema, description),
    }
}

/// What one value of a query parameter is.
fn one(name: &str) -> (Json, &'static str) {
    let text = || json!({"type": "string", "maxLength": 512});
    match name {
        "fulfilment_status" => {
            (json!({"type": "string", "enum": ["FULFILLED", "NOT_FULFILLED"]}), "Whether it is fulfilled")
        }
        "not_fulfilled_state" => (
            json!({"type": "string", "enum": ["ACKNOWLEDGED", "COMPLIANT", "DEGRADED", "FULFILMENTFAILED", "SUSPENDED", "TERMINATED"]}),
            "Its state",
        ),
        "user_label" => (text(), "Its type"),
        "object_instance" => (text(), "A workload document or instance that it is about"),
        "intent_id" => (text(), "Its id"),
        "page_size" | "limit" => {
            (json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}), "Entries at most")
        }
        "page_token" => (text(), "Where the page before ended: see its Link header"),
        "offset" => (json!({"type": "integer", "minimum": 0, "maximum": 10000, "default": 0}), "Entries to pass over"),
        "owner" => (
            json!({"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}),
            "Whose objects; one's own if absent. Another's only for administrators",
        ),
        "fields" => (text(), "Fields to show, divided by commas"),
        "target" => (text(), "Name of a target, as `cpuUsage`; all if absent"),
        "entity_kind" => (json!({"type": "string", "enum": telemetry::KINDS}), "Kind of what is measured"),
        "entity_id" => (text(), "What is measured"),
        "cluster_id" => (text(), "Cluster that it is on"),
        "node" => (text(), "Node that it is on"),
        "metric" => (text(), "A metric's name, or a prefix: `system.cpu.*`"),
        "label" => (text(), "A label that the measurement has, `name=value`"),
        "group" => (text(), "A group of metrics: general, cpu, memory, network, storage, energy, traffic, application"),
        "from" | "to" => (
            text(),
            "A time, RFC 3339; of measurements and achieved values also how long ago, `-15m`. If absent, what the operation shows by itself",
        ),
        "step" => (text(), "Length of a step: seconds, or `30s`, `5m`, `1h`, `1d`; raw values if absent"),
        "function" => (
            json!({"type": "string", "enum": telemetry::FUNCTIONS.map(|(name, _)| name)}),
            "What makes one value of a step's; the mean of a gauge and the rate of a counter if absent",
        ),
        "series_max" => (json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}), "Series at most"),
        "values_max" => (
            json!({"type": "integer", "minimum": 1, "maximum": 100_000, "default": 10_000}),
            "Values of each series at most",
        ),
        "format" => {
            (json!({"type": "string", "enum": ["json", "csv"]}), "Form of the answer; by the Accept header if absent")
        }
        "interval_ms" => (
            json!({"type": "integer", "minimum": 0, "maximum": 3_600_000, "default": 0}),
            "Shortest time between two values of one series, milliseconds",
        ),
        "after" => (
            json!({"type": "integer", "minimum": 0}),
            "Id of the event after which to go on; 0 for all that is kept, from now on if absent. The header Last-Event-ID comes first",
        ),
        "kind" => {
            (json!({"type": "string", "enum": ["workload", "node", "cluster", "network", "continuum"]}), "Kind of twin")
        }
        "twin_id" => (text(), "Id of the twin"),
        "name" => (text(), "Name of the document"),
        "version" => (text(), "Version of the document"),
        "release_name" => (text(), "Helm's name of the release of a chart"),
        "cluster_name" => (text(), "Cluster that it runs on"),
        "at" => (json!({"type": "string", "format": "date-time"}), "As it was then, RFC 3339; now if absent"),
        "timestamp_from" => (json!({"type": "string", "format": "date-time"}), "Not before this time, RFC 3339"),
        "timestamp_to" => (json!({"type": "string", "format": "date-time"}), "Not after this time, RFC 3339"),
        "workload_id" => (text(), "The workload instance; what the path names"),
        "workload_document" => (text(), "Document that it runs, `name@version`"),
        _ => (
            json!({"type": "string", "enum": ["pending", "assigned", "starting", "running", "restarting", "failed", "stopped", "lost"]}),
            "Its phase",
        ),
    }
}

/// Does it write?
pub fn writes(route: &Route) -> bool {
    route.method != "GET" && route.op != Op::CheckIntent
}

/// Does it take an If-Match header?
pub fn conditional(op: Op) -> bool {
    matches!(
        op,
        Op::UpdateIntent
            | Op::EndIntent
            | Op::ActOnIntent
            | Op::UpdateTarget
            | Op::RollbackIntent
            | Op::TmfPatch
            | Op::TmfDelete
            | Op::GetIntent
            | Op::TmfGet
    )
}

/// Does it take an Idempotency-Key header?
pub fn creates(op: Op) -> bool {
    matches!(op, Op::SubmitIntent | Op::SubmitTemplate | Op::TmfCreate | Op::RunInstance | Op::TmfSubscribe)
}

/// Does it show a tag and take If-None-Match?
fn tagged(op: Op) -> bool {
    conditional(op)
}

/// Statuses of refusal that a request can have.
pub fn refusals(route: &Route) -> Vec<u16> {
    let mut found = vec![400, 422, 429, 500, 503, 504];
    if route.action.is_some() || route.op == Op::Login {
        found.push(401);
    }
    if route.action.is_some() {
        found.push(403);
    }
    if route.path.contains('{') || route.query.contains(&"owner") || route.op == Op::SerranoStreaming {
        found.push(404);
    }
    if !route.body.is_empty() {
        found.extend([408, 413, 415]);
    }
    if (writes(route) && route.action != Some(OwnSession)) || route.op == Op::Manifests {
        found.push(409);
    }
    if conditional(route.op) || writes(route) {
        found.push(412);
    }
    found.sort_unstable();
    found
}

fn schema(name: &str) -> Json {
    match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(item) => json!({"type": "array", "items": {"$ref": format!("#/components/schemas/{item}")}}),
        None => json!({"$ref": format!("#/components/schemas/{name}")}),
    }
}

fn operation(route: &Route) -> Json {
    let header = |name: &str, description: &str, pattern: &str| {
        json!({"name": name, "in": "header", "required": false, "description": description,
            "schema": {"type": "string", "maxLength": 256, "pattern": pattern}})
    };
    let mut parameters: Vec<Json> = vec![];
    for name in route.path.split(['{', '}']).skip(1).step_by(2) {
        // Documents are named `name@version`.
        let pattern = if route.op == Op::DropWorkload {
            "^[A-Za-z0-9_-]{1,64}@[0-9A-Za-z.+-]{1,64}$"
        } else if route.path.starts_with("/api/v1/workload/{") {
            "^[A-Za-z0-9_-]{1,64}(@[0-9A-Za-z.+-]{1,64})?$"
        } else if name == "report" {
            "^[A-Za-z0-9_-]{1,96}$"
        } else if name == "kind" {
            "^(workload|node|cluster|network|continuum)$"
        } else {
            "^[A-Za-z0-9_-]{1,64}$"
        };
        parameters.push(
            json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "pattern": pattern}}),
        );
    }
    for name in route.query {
        let (schema, description) = parameter(route.op, name);
        parameters.push(
            json!({"name": name, "in": "query", "required": false, "description": description, "schema": schema}),
        );
    }
    if creates(route.op) {
        parameters.push(header("Idempotency-Key", "The same request with the same key is done once", "^[!-~]{1,255}$"));
    }
    if conditional(route.op) {
        parameters.push(header("If-Match", "Only if it is still what this tag was given for", "^[ -~]+$"));
    }
    if tagged(route.op) {
        parameters.push(header(
            "If-None-Match",
            "Only if it is not what this tag was given for: 304 of a read, 412 of a change",
            "^[ -~]+$",
        ));
    }
    let mut responses = Map::new();
    for (status, name) in route.answers {
        // One status may come in several forms.
        let response = responses.entry(status.to_string()).or_insert_with(|| json!({}));
        if name.contains('/') {
            response["content"][*name] = json!({"schema": {"type": "string"}});
        } else if !name.is_empty() {
            response["content"]["application/json"] = json!({"schema": schema(name)});
        }
        response["description"] = json!(match status {
            200 => "As it stands.",
            201 => "Made.",
            202 => "Stored; the verdict is not in yet.",
            304 => "It is what the tag was given for.",
            _ => "Done.",
        });
    }
    for status in refusals(route) {
        let mut response = json!({
            "description": "Not done, and why.",
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        });
        if status == 401 {
            response["headers"] = json!({"WWW-Authenticate": {"schema": {"type": "string"}}});
        }
        responses.insert(status.to_string(), response);
    }
    if !route.query.is_empty() {
        // Before anything is read of it.
        responses.insert("414".to_owned(), json!({"description": "The address has more than 65,534 bytes."}));
    }
    let mut operation = json!({
        "operationId": format!("{:?}", route.op),
        "summary": route.summary,
        "tags": [route.path.split('/').nth(if route.path.starts_with("/api") { 3 } else { 2 }).unwrap_or_default()],
        "parameters": parameters,
        "responses": responses,
    });
    operation["security"] = match route.action {
        Some(action) => {
            operation["description"] = json!(format!("For: {}.", who_may(action)));
            json!([{"bearer": []}])
        }
        None => json!([]),
    };
    if !route.body.is_empty() {
        let content = json!({"schema": schema(route.body)});
        let kinds = match route.body {
            UPLOAD => json!({"multipart/form-data": content}),
            _ => json!({"application/json": content.clone(), "application/yaml": content}),
        };
        operation["requestBody"] = json!({"required": true, "content": kinds});
    }
    operation
}

/// The OpenAPI 3.1 document.
pub fn openapi() -> Json {
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.to_lowercase()] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Continuum",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Intents, workloads and clusters of a Continuum mesh. Refusals are problem documents (RFC 9457).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "schemas": components(),
        },
    })
}

fn object(required: &[&str], properties: Json) -> Json {
    json!({"type": "object", "required": required, "properties": properties})
}

fn closed(required: &[&str], properties: Json) -> Json {
    let mut schema = object(required, properties);
    schema["additionalProperties"] = json!(false);
    schema
}

fn components() -> Json {
    let (text, count, truth) =
        (json!({"type": "string"}), json!({"type": "integer", "minimum": 0}), json!({"type": "boolean"}));
    let number = json!({"type": "number"});
    let texts = json!({"type": "array", "items": {"type": "string"}});
    let (things, thing) = (json!({"type": "array", "items": {"type": "object"}}), json!({"type": "object"}));
    let scalar = json!({"type": ["string", "number", "boolean"]});
    let role =
        json!({"type": "array", "items": {"type": "string", "enum": ["administrator", "provider", "owner", "viewer"]}});
    let key = json!({"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"});
    let target = closed(
        &["target_name", "target_condition", "target_value_range"],
        json!({"target_name": text, "target_condition": text, "target_value_range": scalar}),
    );
    let template = |required: &[&str]| {
        closed(
            required,
            json!({"instance_id": text, "intent_type": text, "service_start_time": text, "service_end_time": text,
                "targets": {"type": "array", "items": target}}),
        )
    };
    let named = json!({"type": "string", "minLength": 1});
    let priority = json!({"type": "string", "pattern": "^([1-9]|[1-9][0-9]|100)$"});
    // What a person says around an intent, which is kept and given back.
    let around = |mut members: Json| {
        let period = json!({"type": "object", "properties": {
            "startDateTime": {"type": "string", "format": "date-time"}, "endDateTime": {"type": "string", "format": "date-time"}}});
        let own = json!({"description": text, "validFor": period, "isBundle": truth, "context": text,
            "intentSpecification": thing, "intentRelationship": things, "characteristic": things, "relatedParty": things,
            "attachment": things, "@baseType": text, "@schemaLocation": text});
        if let (Some(members), Json::Object(own)) = (members.as_object_mut(), own) {
            members.extend(own);
        }
        members
    };
    let mut schemas = Map::new();
    for (name, schema) in mesh_proto::document::schemas(
        &[
            "continuum.intent.v1.Intent",
            "continuum.workload.v1.WorkloadDocument",
            "continuum.measurement.v1.Setting",
            "continuum.measurement.v1.Condition",
        ],
        "#/components/schemas/",
        true,
    ) {
        schemas.insert(name, schema);
    }
    let intent = "#/components/schemas/continuum.intent.v1.Intent";
    let own: [(&str, Json); 60] = [
        ("Problem", problem::schema()),
        (
            "Series",
            object(
                &["resolution_seconds", "truncated", "series"],
                json!({"resolution_seconds": count, "truncated": truth, "series": {"type": "array", "items": {
                    "type": "object", "required": ["entity", "metric", "values"], "properties": {"entity": thing,
                    "metric": thing, "values": {"type": "array", "items": {"type": "array", "minItems": 2, "maxItems": 2,
                    "description": "Milliseconds since 1970, and the value."}}}}}}),
            ),
        ),
        (
            "Agent",
            object(
                &[],
                json!({"cluster_id": text, "node": text, "up": truth, "probes": things, "entities": things, "settings": thing}),
            ),
        ),
        ("Samples", object(&["samples"], json!({"samples": things}))),
        ("Probes", object(&["probes"], json!({"probes": things}))),
        ("SerranoSet", object(&["settings"], json!({"sessionId": text, "settings": things}))),
        ("SerranoEntity", object(&["uuid", "status"], json!({"uuid": text, "status": {"enum": ["UP", "DOWN"]}}))),
        ("SerranoEntities", object(&["entities"], json!({"entities": things}))),
        ("SerranoSettings", object(&["settings"], json!({"settings": things}))),
        ("SerranoClusters", object(&["clusters"], json!({"clusters": things}))),
        ("SerranoLocations", object(&["storage_locations"], json!({"storage_locations": things}))),
        ("SerranoDeployments", object(&["deployments"], json!({"deployments": things}))),
        ("SerranoUsage", object(&["metrics"], json!({"metrics": things}))),
        ("SerranoAllocation", object(&["clusters"], json!({"clusters": thing}))),
        ("SerranoKernels", object(&["kernels"], json!({"kernels": things}))),
        (
            "SerranoCollectionInput",
            closed(
                &["cluster_uuid", "query_interval"],
                json!({"cluster_uuid": key, "probe": key, "query_interval": {"type": "integer", "minimum": 1, "maximum": 3_600}}),
            ),
        ),
        (
            "SerranoAgentInput",
            closed(
                &["data_retain_period"],
                json!({"data_retain_period": {"type": "integer", "minimum": 1, "maximum": 4_294_967_295_u64},
                    "active_notifications": {"const": false, "description": "Define a condition instead."}}),
            ),
        ),
        (
            "SerranoSessionInput",
            closed(
                &["cluster_uuid", "action", "reporting_rate"],
                json!({"cluster_uuid": key, "action": {"type": "string", "enum": ["start", "stop"]},
                    "reporting_rate": {"type": "integer", "minimum": 1, "maximum": 3_600},
                    "nodes": {"type": "array", "items": key, "maxItems": 16},
                    "metrics": {"type": "array", "items": key, "maxItems": 16}}),
            ),
        ),
        (
            "MeasurementSetting",
            object(
                &["cluster_id", "setting_id", "setting"],
                json!({"cluster_id": text, "setting_id": text, "setting": thing}),
            ),
        ),
        ("SettingInput", json!({"$ref": "#/components/schemas/continuum.measurement.v1.Setting"})),
        ("ConditionInput", json!({"$ref": "#/components/schemas/continuum.measurement.v1.Condition"})),
        ("Condition", object(&["owner", "condition_id"], json!({"owner": text, "condition_id": text, "metric": text}))),
        ("Conditions", object(&["conditions", "crossings"], json!({"conditions": things, "crossings": things}))),
        ("Login", closed(&["username", "password"], json!({"username": text, "password": text}))),
        (
            "Token",
            object(
                &["username", "token", "refresh_token", "token_type", "expires_in"],
                json!({"username": text, "token": text, "refresh_token": text, "token_type": text, "expires_in": count}),
            ),
        ),
        (
            "Caller",
            object(
                &["subject", "owner", "roles", "permissions"],
                json!({"subject": text, "name": text, "owner": text, "roles": texts, "permissions": thing}),
            ),
        ),
        (
            "Account",
            object(
                &["username", "roles", "owner", "disabled"],
                json!({"username": text, "roles": texts, "owner": text, "disabled": truth}),
            ),
        ),
        (
            "AccountInput",
            closed(
                &["username", "roles"],
                json!({"username": key, "password": {"type": "string", "minLength": 8, "maxLength": 256}, "roles": role,
                    "owner": key, "disabled": truth}),
            ),
        ),
        (
            "IntentInput",
            json!({"description": "An intent, bare or as `intent`; camelCase or snake_case.", "anyOf": [
                {"$ref": intent},
                closed(&["intent"], json!({"id": key, "intent": {"$ref": intent}})),
            ]}),
        ),
        (
            "Intent",
            object(
                &["id", "owner", "version", "fulfilment_status", "not_fulfilled_state"],
                json!({"id": text, "owner": text, "version": count, "user_label": text,
                    "fulfilment_status": text, "not_fulfilled_state": text, "reason": text, "waits_for": text, "hint": text,
                    "since": {"type": "string", "format": "date-time"}, "intent_expectations": things,
                    "intent_contexts": things, "instances": things,
                    "intent_report_reference": {"description": "The newest report, or the reference that it was given."},
                    "resource": {"description": "What TMF921 has around it."}}),
            ),
        ),
        ("IntentTemplate", template(&["instance_id", "intent_type", "targets"])),
        (
            "IntentType",
            object(
                &["user_label", "verbs", "object_types", "targets", "conditions"],
                json!({"user_label": text, "aliases": texts, "description": text, "verbs": texts, "object_types": texts,
                    "targets": things, "contexts": texts, "conditions": texts}),
            ),
        ),
        (
            "Check",
            object(
                &["acceptable", "errors", "predicted_state", "predictions", "conflicts"],
                json!({"acceptable": truth, "errors": things, "predicted_state": text, "predictions": things,
                    "conflicts": things, "watts": number, "joules_per_day": number, "credits_per_day": number}),
            ),
        ),
        ("History", object(&["in_force", "versions"], json!({"in_force": count, "versions": things}))),
        (
            "Achieved",
            object(
                &["at", "target_name", "value"],
                json!({"at": {"type": "string", "format": "date-time", "description": "End of the period."},
                    "expectation_id": text, "target_name": text, "value": number, "unit": text, "version": count,
                    "instance_id": text, "cluster_id": text, "target_condition": text,
                    "target_value_range": {"description": "What the version demands; absent when it is not kept any more."},
                    "held": {"type": "boolean", "description": "Absent when the version is not kept any more."}}),
            ),
        ),
        (
            "RollbackInput",
            closed(&["version"], json!({"version": {"type": "integer", "minimum": 1, "maximum": 1_000_000}})),
        ),
        (
            "ActionInput",
            closed(&["action"], json!({"action": {"type": "string", "enum": ["SUSPEND", "RESUME", "TERMINATE"]}})),
        ),
        (
            "TargetUpdate",
            closed(&["target_id", "target_value_range"], json!({"target_id": scalar, "target_value_range": scalar})),
        ),
        (
            "Step",
            object(
                &["time", "address", "who", "message", "says"],
                json!({"time": text, "address": text, "who": text, "message": text, "says": text,
                    "cause": {"type": ["string", "null"]}}),
            ),
        ),
        ("Report", object(&["id"], json!({"id": text}))),
        (
            UPLOAD,
            closed(
                &["file", "name", "version"],
                json!({"file": {"type": "string", "format": "binary", "maxLength": 3_145_728,
                        "description": "The .tgz that `helm package` made, at most 3 MiB."},
                    "name": key, "version": {"type": "string", "minLength": 1, "maxLength": 64}}),
            ),
        ),
        ("WorkloadInput", json!({"$ref": "#/components/schemas/continuum.workload.v1.WorkloadDocument"})),
        (
            "Workload",
            object(
                &["id", "name", "version", "status"],
                json!({"id": text, "name": text, "version": text, "type": text, "status": text, "user": thing,
                    "ingress_support": truth, "enabled": truth, "rejection_reason": text, "schema": thing}),
            ),
        ),
        (
            "TemplateInput",
            closed(
                &[],
                json!({"release_name": {"type": "string", "maxLength": 53}, "values_override": {"type": ["object", "array"], "maxItems": 0},
                    "include_crds": {"const": false}, "is_upgrade": {"const": false}, "no_hooks": {"const": false},
                    "namespace": text, "ingress_enabled": truth,
                    "replicas": {"type": "integer", "minimum": 0, "maximum": 100},
                    "intents": {"type": "array", "maxItems": 16, "items": template(&["intent_type", "targets"])}}),
            ),
        ),
        (
            "UpgradeInput",
            closed(
                &[],
                json!({"workload_document": text, "replicas": {"type": "integer", "minimum": 0, "maximum": 100},
                    "atomic": truth, "release_name": {"type": "string", "maxLength": 53}, "namespace": text,
                    "values_override": {"type": ["object", "array"], "maxItems": 0}, "ingress_enabled": truth}),
            ),
        ),
        (
            "RevisionInput",
            closed(&[], json!({"revision": {"type": "integer", "minimum": 0, "maximum": 4_294_967_295_u64}})),
        ),
        ("MigrateInput", closed(&[], json!({"cluster_name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{0,64}$"}}))),
        (
            "Instance",
            object(
                &["id", "instance_id", "workload_document", "status"],
                json!({"id": text, "instance_id": text, "release_name": text, "workload_document": text, "status": text,
                    "cluster_name": text, "lifecycle_events": things}),
            ),
        ),
        (
            "ClusterInput",
            closed(
                &["cluster_name"],
                json!({"cluster_name": key, "cpus": {"type": "integer", "minimum": 0, "maximum": 4_294_967_295_u64},
                "memory": {"type": "integer", "minimum": 0, "maximum": 4_294_967_295_u64},
                "storage": {"const": 0, "description": "No agent declares it, so it cannot be confirmed."}}),
            ),
        ),
        (
            "Cluster",
            object(
                &["id", "cluster_name", "cpus", "memory", "available"],
                json!({"id": text, "cluster_name": text, "cpus": {"type": "number"}, "memory": {"type": "number"},
                    "available": truth, "endpoint": text, "labels": thing}),
            ),
        ),
        (
            "Twin",
            object(
                &["kind", "id", "version", "at"],
                json!({"kind": text, "id": text, "version": count, "at": {"type": "string", "format": "date-time"},
                    "cluster_id": text, "owner": text, "intent_id": text, "workload": text, "phase": text, "reason": text,
                    "replicas_wanted": count, "replicas_running": count, "restarts": count, "cpu_percent": number,
                    "memory_bytes": count, "available": truth, "instances": texts, "anomalies": things, "statuses": things,
                    "traffic": thing, "measured": thing, "links": things}),
            ),
        ),
        (
            "TwinDiff",
            object(
                &["from_version", "to_version", "differences"],
                json!({"from_version": count, "to_version": count, "differences": {"type": "array", "items": {
                    "type": "object", "required": ["field"], "properties": {"field": text,
                    "before": {"description": "Absent where there was none."},
                    "after": {"description": "Absent where there is none."}}}}}),
            ),
        ),
        (
            "AnomalyEpisode",
            object(&["episode_id", "detected"], json!({"episode_id": text, "detected": thing, "cleared": thing})),
        ),
        (
            "CmdtMessage",
            object(
                &["timestamp", "workload_id", "user_id", "replicas", "pod_status"],
                json!({"timestamp": {"type": "string", "format": "date-time"}, "workload_id": text, "user_id": text,
                    "replicas": count, "status": {"type": ["string", "null"]}, "past_status": {"type": ["string", "null"]},
                    "traffic": {"type": ["object", "null"]}, "resources": {"type": ["object", "null"]},
                    "pod_status": things}),
            ),
        ),
        (
            "TmfIntent",
            object(
                &["@type", "id"],
                around(
                    json!({"@type": {"enum": ["Intent", "ProbeIntent"]}, "id": text, "href": text, "name": text, "version": text,
                    "priority": text, "lifecycleStatus": text, "statusReason": text, "statusChangeDate": text, "expression": thing}),
                ),
            ),
        ),
        (
            "TmfIntentInput",
            closed(
                &["name", "expression"],
                around(
                    json!({"@type": {"enum": ["Intent", "ProbeIntent"]}, "id": key, "name": named, "priority": priority,
                    "lifecycleStatus": {"const": "ACKNOWLEDGED", "description": "What an intent is at first."},
                    "expression": {"$ref": "#/components/schemas/TmfExpression"}}),
                ),
            ),
        ),
        (
            "TmfIntentPatch",
            closed(
                &[],
                around(json!({"@type": {"const": "Intent"}, "name": named, "priority": priority,
                    "expression": {"type": "object", "description": "Merged into what it is (RFC 7396)."},
                    "lifecycleStatus": {"type": "string", "enum": ["SUSPENDED", "ACKNOWLEDGED", "TERMINATED"],
                        "description": "Not together with another member that changes."}})),
            ),
        ),
        (
            "TmfHub",
            object(
                &["@type", "id", "href", "callback"],
                json!({"@type": {"const": "Hub"}, "id": text, "href": text, "callback": text, "query": text,
                    "failures": count, "failure": text, "retryAt": text}),
            ),
        ),
        (
            "TmfHubInput",
            closed(
                &["callback"],
                json!({"callback": {"type": "string", "pattern": "^https?://", "maxLength": 2048},
                    "query": {"type": "string", "maxLength": 512, "description": "`eventType=A,B`; all when empty."},
                    "@type": {"const": "Hub"}}),
            ),
        ),
        (
            "TmfReport",
            object(&["@type", "id", "href"], json!({"@type": {"const": "IntentReport"}, "id": text, "href": text})),
        ),
    ];
    schemas.extend(own.map(|(name, schema)| (name.to_owned(), schema)));
    schemas.insert(
        "TmfExpression".into(),
        object(
            &["iri", "expressionValue"],
            json!({"@type": {"const": "JsonLdExpression"}, "iri": text, "expressionValue": {"$ref": intent}}),
        ),
    );
    Json::Object(schemas)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_request_stands_once_in_the_document_and_says_who_may() {
        let document = openapi();
        let mut seen = BTreeSet::new();
        for route in ROUTES {
            assert!(seen.insert((route.method, route.path)), "{} {} stands twice", route.method, route.path);
            let operation = &document["paths"][route.path][route.method.to_lowercase()];
            assert_eq!(operation["operationId"], format!("{:?}", route.op));
            assert_eq!(operation["security"].as_array().unwrap().is_empty(), route.action.is_none());
            assert!(!route.answers.is_empty());
        }
        let ops: BTreeSet<Op> = ROUTES.iter().map(|r| r.op).collect();
        assert_eq!(ops.len(), ROUTES.len());
    }

    #[test]
    fn only_signing_in_is_open_to_strangers() {
        let open: Vec<Op> = ROUTES.iter().filter(|r| r.action.is_none()).map(|r| r.op).collect();
        assert_eq!(open, [Op::Login]);
    }

    #[test]
    fn every_reference_of_the_document_leads_somewhere() {
        fn references(value: &Json, found: &mut BTreeSet<String>) {
            match value {
                Json::Object(many) => many.iter().for_each(|(key, value)| match value.as_str() {
                    Some(to) if key == "$ref" => drop(found.insert(to.to_owned())),
                    _ => references(value, found),
                }),
                Json::Array(many) => many.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = openapi();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 15);
        for reference in found {
            let name = reference.strip_prefix("#/components/schemas/").unwrap();
            assert!(document["components"]["schemas"].get(name).is_some(), "{reference} leads nowhere");
        }
    }
}
