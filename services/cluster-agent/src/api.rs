//! Answers of the agent: what runs here, and what it printed.

use std::sync::Arc;

use mesh_core::query::Error;
use mesh_proto::instance::{
    AgentState, AgentStateRequest, LogsReply, LogsRequest, ProcessView, agent_queries_server::AgentQueries,
};
use tonic::{Request, Response, Status};

use crate::shell::driver::Journal;

/// Lines of an answer at most.
const LINES_MAX: u32 = 1_000;
/// Lines when none are asked for.
const LINES_DEFAULT: u32 = 100;

/// Reads the journal.
pub struct Api {
    cluster_id: String,
    journal: Arc<Journal>,
}

impl Api {
    /// For a cluster.
    pub fn new(cluster_id: impl Into<String>, journal: Arc<Journal>) -> Self {
        Self { cluster_id: cluster_id.into(), journal }
    }
}

#[tonic::async_trait]
impl AgentQueries for Api {
    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<LogsReply>, Status> {
        let LogsRequest { instance_id, lines } = request.into_inner();
        let lines = if lines == 0 { LINES_DEFAULT } else { lines.min(LINES_MAX) };
        match self.journal.logs(&instance_id, lines as usize) {
            Some(lines) => Ok(Response::new(LogsReply { lines })),
            None => Err(Error::not_found(
                format!("log of instance {instance_id} on cluster {}", self.cluster_id),
                "ask the agent of the cluster it runs on; `continuum workload get` names it",
            )
            .into()),
        }
    }

    async fn state(&self, _: Request<AgentStateRequest>) -> Result<Response<AgentState>, Status> {
        let processes = self.journal.running().into_iter().map(|running| ProcessView {
            instance_id: running.id.instance_id,
            replica: running.id.replica,
            generation: running.id.generation,
            pid: running.pid,
            restarts: running.restarts,
            enforcement: running.enforcement,
        });
        Ok(Response::new(AgentState { cluster_id: self.cluster_id.clone(), processes: processes.collect() }))
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::Timestamp;
    use tonic::Code;

    use super::*;
    use crate::shell::driver::{
        ReplicaId,
        journal::{Output, Running},
    };

    #[tokio::test]
    async fn logs_and_processes_are_told_and_an_unknown_instance_is_not_found() {
        let journal = Arc::new(Journal::default());
        let id = ReplicaId { instance_id: "a".into(), generation: 2, replica: 1 };
        journal.runs(Running { id: id.clone(), pid: 7, restarts: 3, enforcement: "none".into() });
        for n in 0..200 {
            journal.write(&id, Output::Stdout, Timestamp::from_millis(n), &n.to_string());
        }
        let api = Api::new("edge", journal);
        let ask = |instance_id: &str, lines| Request::new(LogsRequest { instance_id: instance_id.into(), lines });
        let lines = api.logs(ask("a", 0)).await.unwrap().into_inner().lines;
        assert_eq!((lines.len(), lines[99].text.as_str(), lines[99].replica), (100, "199", 1));
        assert_eq!(api.logs(ask("b", 0)).await.unwrap_err().code(), Code::NotFound);
        let state = api.state(Request::new(AgentStateRequest {})).await.unwrap().into_inner();
        assert_eq!((state.cluster_id.as_str(), state.processes[0].pid, state.processes[0].restarts), ("edge", 7, 3));
    }
}
