//! One method per query service: a client connected to where the service announced that it answers.

use mesh_proto::{
    account::account_queries_client::AccountQueriesClient, anomaly::anomaly_queries_client::AnomalyQueriesClient,
    instance::agent_queries_client::AgentQueriesClient, intent::intent_queries_client::IntentQueriesClient,
    learning::learning_queries_client::LearningQueriesClient, network::network_queries_client::NetworkQueriesClient,
    placement::orchestrator_queries_client::OrchestratorQueriesClient,
    remedy::remedy_queries_client::RemedyQueriesClient, storage::storage_queries_client::StorageQueriesClient,
    subscription::subscription_queries_client::SubscriptionQueriesClient,
    telemetry::telemetry_queries_client::TelemetryQueriesClient, twin::twin_queries_client::TwinQueriesClient,
    validation::validator_queries_client::ValidatorQueriesClient,
    workload::workload_queries_client::WorkloadQueriesClient,
};
use tonic::transport::Channel;

use crate::{Client, peers};

macro_rules! queries {
    ($($(#[$doc:meta])* $name:ident: $client:ident of $service:literal),* $(,)?) => {
        impl Client {$(
            $(#[$doc])*
            ///
            /// # Errors
            /// When the service does not run, or cannot be connected to.
            pub async fn $name(&self) -> Result<$client<Channel>, peers::Error> {
                Ok($client::new(self.channel($service).await?))
            }
        )*}
    };
}

queries! {
    /// The intent manager.
    intents: IntentQueriesClient of "intent-manager",
    /// The validator.
    validator: ValidatorQueriesClient of "validator",
    /// The workload manager.
    workloads: WorkloadQueriesClient of "workload-manager",
    /// The meta-orchestrator.
    orchestrator: OrchestratorQueriesClient of "meta-orchestrator",
    /// The collector.
    telemetry: TelemetryQueriesClient of "collector",
    /// The twin aggregator.
    twins: TwinQueriesClient of "cmdt-aggregator",
    /// The storage gateway.
    storage: StorageQueriesClient of "secure-storage",
    /// Accounting.
    accounts: AccountQueriesClient of "accounting",
    /// The learner.
    learner: LearningQueriesClient of "cfdrl-agent",
    /// The detector's anomalies.
    anomalies: AnomalyQueriesClient of "sar-detector",
    /// The detector's remedies.
    remedies: RemedyQueriesClient of "sar-detector",
    /// The notifier.
    subscriptions: SubscriptionQueriesClient of "notifier",
    /// The network exposer.
    network: NetworkQueriesClient of "mncc-exposer",
}

impl Client {
    /// A channel to a service.
    ///
    /// # Errors
    /// When the service does not run, or cannot be connected to.
    pub async fn channel(&self, service: &str) -> Result<Channel, peers::Error> {
        let found = peers::endpoint(self.bus(), service).await?;
        peers::connect(&found.ok_or_else(|| peers::Error::Unknown(service.to_owned()))?).await
    }

    /// A cluster's agent, at the endpoint that it registered.
    ///
    /// # Errors
    /// When it cannot be connected to.
    pub async fn agent(&self, endpoint: &str) -> Result<AgentQueriesClient<Channel>, peers::Error> {
        Ok(AgentQueriesClient::new(peers::connect(endpoint).await?))
    }
}
