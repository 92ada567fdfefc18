//! Which clusters answer: presence tokens and time in, reports to the planner out.
//!
//! What is reported follows from comparing two things, the planner's view of its clusters and the tokens that are seen,
//! again and again: so nothing is lost with a report that went astray. A cluster without a token for the grace time is
//! reported lost; one with a token is reported back at once. While nothing can be seen at all, nothing is said to be
//! lost: blindness is not a loss, and the grace time begins again when sight returns.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::{Timestamp, derived_id};

/// What the planner believes of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Believed {
    /// The cluster.
    pub cluster_id: String,
    /// Does it answer?
    pub available: bool,
    /// Since when.
    pub since: Timestamp,
}

/// News for the planner.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The cluster.
    pub cluster_id: String,
    /// Does it answer?
    pub alive: bool,
    /// The report's id. The same news has the same id, whoever reports it and however often.
    pub id: String,
}

/// The tokens seen, and what was reported of them.
#[derive(Clone, Debug)]
pub struct Liveness {
    domain: String,
    grace_ms: i64,
    /// Since when tokens can be seen.
    seeing_since: Timestamp,
    /// Live tokens of each cluster, and when the last one went.
    clusters: BTreeMap<String, Seen>,
    /// When each piece of news was reported last, by id.
    reported: BTreeMap<String, Timestamp>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    tokens: BTreeSet<String>,
    gone: Timestamp,
}

impl Liveness {
    /// Sees nothing yet. A cluster is lost after `grace_ms` without a token.
    pub fn new(domain: impl Into<String>, grace_ms: i64, now: Timestamp) -> Self {
        let (clusters, reported) = (BTreeMap::new(), BTreeMap::new());
        Self { domain: domain.into(), grace_ms, seeing_since: now, clusters, reported }
    }

    /// A token appeared or went: `continuum/<site>/<node>/alive/<cluster>`.
    pub fn saw(&mut self, key: &str, alive: bool, now: Timestamp) {
        let Some((_, cluster_id)) = key.rsplit_once('/') else { return };
        let seen = self.clusters.entry(cluster_id.to_owned()).or_default();
        if alive {
            seen.tokens.insert(key.to_owned());
        } else if seen.tokens.remove(key) && seen.tokens.is_empty() {
            seen.gone = now;
        }
    }

    /// Nothing can be seen at this time.
    pub fn blind(&mut self, now: Timestamp) {
        self.seeing_since = now;
    }

    /// What the planner should hear now. The same news is given again after the grace time, until the planner believes it.
    pub fn reports(&mut self, believed: &[Believed], now: Timestamp) -> Vec<Report> {
        let mut reports = vec![];
        let mut current = BTreeMap::new();
        for cluster in believed {
            let seen = self.clusters.get(&cluster.cluster_id);
            let alive = seen.is_some_and(|s| !s.tokens.is_empty());
            let gone = seen.map_or(Timestamp::default(), |s| s.gone);
            // A cluster joins shortly before its token appears.
            let silent_since = gone.max(self.seeing_since).max(cluster.since);
            let lost = !alive && now.millis_since(silent_since) >= self.grace_ms;
            if !(cluster.available && lost || !cluster.available && alive) {
                continue;
            }
            let (news, since) = (if alive { "alive" } else { "silent" }, cluster.since.to_string());
            let id = derived_id(&["liveness", &self.domain, &cluster.cluster_id, news, &since]);
            let last = self.reported.get(&id).copied();
            let again = last.is_none_or(|last| now.millis_since(last) >= self.grace_ms);
            if again {
                reports.push(Report { cluster_id: cluster.cluster_id.clone(), alive, id: id.clone() });
            }
            current.insert(id, if again { now } else { last.unwrap_or(now) });
        }
        self.reported = current;
        reports
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GRACE_MS: i64 = 1_000;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn believed(id: &str, available: bool, since: i64) -> Believed {
        Believed { cluster_id: id.into(), available, since: at(since) }
    }

    fn told(reports: &[Report]) -> Vec<(&str, bool)> {
        reports.iter().map(|r| (r.cluster_id.as_str(), r.alive)).collect()
    }

    #[test]
    fn a_cluster_is_lost_after_the_grace_time_and_back_at_once() {
        let mut liveness = Liveness::new("default", GRACE_MS, at(0));
        liveness.saw("continuum/s/n/alive/a", true, at(10));
        let here = [believed("a", true, 5)];
        assert_eq!(told(&liveness.reports(&here, at(5_000))), []);
        liveness.saw("continuum/s/n/alive/a", false, at(6_000));
        assert_eq!(told(&liveness.reports(&here, at(6_999))), []);
        assert_eq!(told(&liveness.reports(&here, at(7_000))), [("a", false)]);
        let gone = [believed("a", false, 7_001)];
        assert_eq!(told(&liveness.reports(&gone, at(9_000))), []);
        liveness.saw("continuum/s/n/alive/a", true, at(9_500));
        assert_eq!(told(&liveness.reports(&gone, at(9_500))), [("a", true)]);
    }

    #[test]
    fn a_token_that_flickers_within_the_grace_time_is_no_loss() {
        let mut liveness = Liveness::new("default", GRACE_MS, at(0));
        let here = [believed("a", true, 0)];
        for n in 0..20 {
            liveness.saw("continuum/s/n/alive/a", n % 2 == 0, at(n * 900));
            assert_eq!(told(&liveness.reports(&here, at(n * 900 + 899))), []);
        }
    }

    #[test]
    fn a_cluster_that_never_showed_a_token_is_lost_after_the_grace_time() {
        let mut liveness = Liveness::new("default", GRACE_MS, at(10_000));
        let both = [believed("old", true, 0), believed("new", true, 10_500)];
        assert_eq!(told(&liveness.reports(&both, at(10_999))), []);
        assert_eq!(told(&liveness.reports(&both, at(11_000))), [("old", false)]);
        assert_eq!(told(&liveness.reports(&both, at(11_500))), [("new", false)]);
    }

    #[test]
    fn news_keeps_its_id_until_believed_and_later_news_has_another() {
        let mut liveness = Liveness::new("default", GRACE_MS, at(0));
        let here = [believed("a", true, 0)];
        let first = liveness.reports(&here, at(1_000));
        assert_eq!(told(&liveness.reports(&here, at(1_500))), []);
        assert_eq!(liveness.reports(&here, at(2_000)), first);
        assert_eq!(told(&liveness.reports(&[believed("a", false, 2_100)], at(9_000))), []);
        let again = liveness.reports(&[believed("a", true, 9_500)], at(11_000));
        assert_eq!(told(&again), [("a", false)]);
        assert_ne!(again.first().map(|r| &r.id), first.first().map(|r| &r.id));
    }

    #[test]
    fn while_nothing_can_be_seen_nothing_is_lost() {
        let mut liveness = Liveness::new("default", GRACE_MS, at(0));
        liveness.saw("continuum/s/n/alive/a", true, at(0));
        liveness.saw("continuum/s/n/alive/a", false, at(100));
        liveness.blind(at(5_000));
        let here = [believed("a", true, 0)];
        assert_eq!(told(&liveness.reports(&here, at(5_999))), []);
        assert_eq!(told(&liveness.reports(&here, at(6_000))), [("a", false)]);
    }

    #[test]
    fn one_of_two_tokens_is_enough() {
        let mut liveness = Liveness::new("default", GRACE_MS, at(0));
        liveness.saw("continuum/s/n/alive/a", true, at(0));
        liveness.saw("continuum/s/m/alive/a", true, at(0));
        liveness.saw("continuum/s/n/alive/a", false, at(10));
        assert_eq!(told(&liveness.reports(&[believed("a", true, 0)], at(90_000))), []);
    }

    proptest! {
        #[test]
        fn a_planner_that_believes_every_report_ends_up_believing_what_is_seen(
            steps in prop::collection::vec((0usize..3, any::<bool>(), 1i64..3_000), 1..60)
        ) {
            let mut liveness = Liveness::new("default", GRACE_MS, at(0));
            let mut planner: Vec<Believed> = (0..3).map(|n| believed(&format!("c{n}"), true, 0)).collect();
            let mut tokens = [false; 3];
            let mut now = 0;
            let listen = |liveness: &mut Liveness, planner: &mut Vec<Believed>, now: i64| {
                for report in liveness.reports(planner, at(now)) {
                    let cluster = planner.iter_mut().find(|c| c.cluster_id == report.cluster_id);
                    let Some(cluster) = cluster else { return Err(TestCaseError::fail("an unknown cluster")) };
                    prop_assert_ne!(cluster.available, report.alive, "no news");
                    *cluster = believed(&report.cluster_id, report.alive, now);
                }
                Ok(())
            };
            for (cluster, alive, after) in steps {
                now += after;
                liveness.saw(&format!("continuum/s/n/alive/c{cluster}"), alive, at(now));
                tokens[cluster] = alive;
                listen(&mut liveness, &mut planner, now)?;
            }
            for _ in 0..3 {
                now += GRACE_MS;
                listen(&mut liveness, &mut planner, now)?;
            }
            prop_assert_eq!(planner.iter().map(|c| c.available).collect::<Vec<_>>(), tokens.to_vec());
        }
    }
}
