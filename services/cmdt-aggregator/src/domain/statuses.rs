//! The statuses of a workload as the specification names them: the last ones with their times, so that a short one is not
//! missed.

use std::collections::VecDeque;

use mesh_proto::{
    Timestamp,
    cmdt::{FAILURE, RESTART, status_of},
    instance::InstanceStatusChanged,
    twin::TwinStatus,
    workload::InstanceChanged,
};

/// Statuses that a twin shows.
pub(crate) const STATUSES_MAX: usize = 10;

/// What one source said, oldest first; bounded.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Log {
    entries: VecDeque<TwinStatus>,
    /// Cluster, generation and restarts that an agent spoke of last.
    counted: Option<(String, u64, u32)>,
}

impl Log {
    /// Keeps what an agent says. A restart that it counted and did not report is one all the same.
    pub(crate) fn of_agent(&mut self, fact: &InstanceStatusChanged, at: Timestamp) {
        let before = self
            .counted
            .take()
            .filter(|(cluster, generation, _)| *cluster == fact.cluster_id && *generation == fact.generation);
        let restarted = before.is_some_and(|(_, _, restarts)| fact.restarts > restarts);
        self.counted = Some((fact.cluster_id.clone(), fact.generation, fact.restarts));
        let status = status_of(fact.phase(), fact.replicas_running, fact.replicas_wanted);
        if restarted && status != Some(RESTART) && self.entries.back().is_none_or(|last| last.status != RESTART) {
            self.push(RESTART, at, "");
        }
        match status {
            Some(RESTART) if restarted => self.push(RESTART, at, &fact.reason),
            Some(status) => self.change(status, at, &fact.reason),
            None => {}
        }
    }

    /// Keeps what the workload manager alone knows: that an instance failed or is lost with its cluster.
    pub(crate) fn of_manager(&mut self, fact: &InstanceChanged, at: Timestamp) {
        if status_of(fact.phase(), fact.replicas_running, fact.replicas_wanted) == Some(FAILURE) {
            self.push(FAILURE, at, &fact.reason);
        }
    }

    fn change(&mut self, status: &str, at: Timestamp, reason: &str) {
        if self.entries.back().is_none_or(|last| last.status != status) {
            self.push(status, at, reason);
        }
    }

    fn push(&mut self, status: &str, at: Timestamp, reason: &str) {
        if self.entries.len() == STATUSES_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(TwinStatus { status: status.to_owned(), at: Some(at), reason: reason.to_owned() });
    }
}

/// The last statuses of both, newest first. Each source keeps its own order; one that both report is there once, with the
/// earlier time.
pub(crate) fn newest(agents: &Log, manager: &Log) -> Vec<TwinStatus> {
    let (mut left, mut right) = (agents.entries.iter().peekable(), manager.entries.iter().peekable());
    let mut merged: Vec<&TwinStatus> = vec![];
    loop {
        let next = match (left.peek(), right.peek()) {
            (Some(one), Some(other)) if other.at < one.at => right.next(),
            (Some(_), _) => left.next(),
            (None, _) => right.next(),
        };
        let Some(next) = next else { break };
        if next.status != FAILURE || merged.last().is_none_or(|last| last.status != FAILURE) {
            merged.push(next);
        }
    }
    merged.into_iter().rev().take(STATUSES_MAX).cloned().collect()
}

#[cfg(test)]
mod tests {
    use mesh_proto::{
        cmdt::{READY, RUNNING},
        workload::InstancePhase,
    };

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn said(phase: InstancePhase, running: u32, restarts: u32) -> InstanceStatusChanged {
        InstanceStatusChanged {
            cluster_id: "edge".into(),
            generation: 1,
            phase: phase.into(),
            replicas_wanted: 2,
            replicas_running: running,
            restarts,
            ..InstanceStatusChanged::default()
        }
    }

    fn names(agents: &Log, manager: &Log) -> Vec<(String, i64)> {
        newest(agents, manager).into_iter().map(|s| (s.status, s.at.unwrap_or_default().as_millis())).collect()
    }

    #[test]
    fn each_status_is_there_once_with_its_time_newest_first() {
        let mut log = Log::default();
        log.of_agent(&said(InstancePhase::Starting, 0, 0), at(1));
        log.of_agent(&said(InstancePhase::Starting, 1, 0), at(2));
        log.of_agent(&said(InstancePhase::Running, 1, 0), at(3));
        log.of_agent(&said(InstancePhase::Running, 2, 0), at(4));
        log.of_agent(&said(InstancePhase::Running, 2, 0), at(5));
        log.of_agent(&said(InstancePhase::Stopped, 0, 0), at(6));
        assert_eq!(names(&log, &Log::default()), [(READY.into(), 4), (RUNNING.into(), 2)]);
    }

    #[test]
    fn a_restart_that_was_over_before_anybody_looked_is_not_missed() {
        let mut log = Log::default();
        log.of_agent(&said(InstancePhase::Running, 2, 0), at(1));
        log.of_agent(&said(InstancePhase::Running, 2, 1), at(2));
        log.of_agent(&said(InstancePhase::Restarting, 1, 2), at(3));
        log.of_agent(&said(InstancePhase::Restarting, 1, 3), at(4));
        log.of_agent(&said(InstancePhase::Running, 2, 3), at(5));
        let expected = [(READY, 5), (RESTART, 4), (RESTART, 3), (READY, 2), (RESTART, 2), (READY, 1)];
        assert_eq!(names(&log, &Log::default()), expected.map(|(name, at)| (name.to_owned(), at)));
        // Another generation counts from where it begins.
        log.of_agent(&InstanceStatusChanged { generation: 2, ..said(InstancePhase::Running, 2, 9) }, at(6));
        assert_eq!(names(&log, &Log::default()).len(), 6);
    }

    #[test]
    fn a_lost_cluster_is_a_failure_and_ten_statuses_are_kept() {
        let (mut agents, mut manager) = (Log::default(), Log::default());
        for round in 0..20 {
            agents.of_agent(&said(InstancePhase::Running, 2, 0), at(round * 10));
            agents.of_agent(&said(InstancePhase::Failed, 0, 0), at(round * 10 + 5));
        }
        let lost = InstanceChanged { phase: InstancePhase::Lost.into(), ..InstanceChanged::default() };
        manager.of_manager(&lost, at(196));
        manager.of_manager(&InstanceChanged { phase: InstancePhase::Running.into(), ..lost }, at(197));
        let found = names(&agents, &manager);
        // The failure that both speak of is there once.
        assert_eq!((found.len(), found[0].clone(), found[1].clone()), (10, (FAILURE.into(), 195), (READY.into(), 190)));
        assert_eq!(agents.entries.len(), STATUSES_MAX);
    }
}
