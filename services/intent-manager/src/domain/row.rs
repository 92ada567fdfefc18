//! The state table: its rows, which row follows from what an intent knows, and in which words a row is told.

use mesh_proto::intent::{FulfilmentStatus, NotFulfilledState, State};

use super::{InForce, Instance, MISSED_MAX, Standing, Target, UNMEASURED_MAX};

/// A state without its words: fulfilmentStatus and notFulfilledState in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// Submitted, and no version was ever judged: before the table.
    Submitted,
    /// NOT_FULFILLED / ACKNOWLEDGED
    Acknowledged,
    /// NOT_FULFILLED / COMPLIANT
    Compliant,
    /// FULFILLED / COMPLIANT
    Fulfilled,
    /// NOT_FULFILLED / DEGRADED
    Degraded,
    /// NOT_FULFILLED / FULFILMENTFAILED
    Failed,
    /// NOT_FULFILLED / SUSPENDED
    Suspended,
    /// NOT_FULFILLED / TERMINATED
    Terminated,
}

impl Row {
    /// The row of a state.
    pub fn of(state: &State) -> Self {
        match (state.not_fulfilled_state(), state.fulfilment_status()) {
            (NotFulfilledState::Unspecified, _) => Self::Submitted,
            (NotFulfilledState::Acknowledged, _) => Self::Acknowledged,
            (NotFulfilledState::Compliant, FulfilmentStatus::Fulfilled) => Self::Fulfilled,
            (NotFulfilledState::Compliant, _) => Self::Compliant,
            (NotFulfilledState::Degraded, _) => Self::Degraded,
            (NotFulfilledState::Fulfilmentfailed, _) => Self::Failed,
            (NotFulfilledState::Suspended, _) => Self::Suspended,
            (NotFulfilledState::Terminated, _) => Self::Terminated,
        }
    }

    /// Its two values in TS 28.312.
    pub fn values(self) -> (FulfilmentStatus, NotFulfilledState) {
        let fulfilment =
            if self == Self::Fulfilled { FulfilmentStatus::Fulfilled } else { FulfilmentStatus::NotFulfilled };
        let state = match self {
            Self::Submitted => NotFulfilledState::Unspecified,
            Self::Acknowledged => NotFulfilledState::Acknowledged,
            Self::Compliant | Self::Fulfilled => NotFulfilledState::Compliant,
            Self::Degraded => NotFulfilledState::Degraded,
            Self::Failed => NotFulfilledState::Fulfilmentfailed,
            Self::Suspended => NotFulfilledState::Suspended,
            Self::Terminated => NotFulfilledState::Terminated,
        };
        (fulfilment, state)
    }

    /// The name that people know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Submitted => "submitted and not yet validated",
            Self::Fulfilled => "FULFILLED",
            _ => self.values().1.as_str_name(),
        }
    }

    /// The state of this row, told in these words.
    pub fn state(self, reason: impl Into<String>, waits_for: impl Into<String>, hint: impl Into<String>) -> State {
        let (fulfilment, state) = self.values();
        State {
            fulfilment_status: fulfilment.into(),
            not_fulfilled_state: state.into(),
            reason: reason.into(),
            waits_for: waits_for.into(),
            hint: hint.into(),
        }
    }
}

/// The next row of the table, or the same when nothing asks for another. Asked again with the row it gave, it ends.
pub(super) fn step(now: &InForce, from: Row) -> Row {
    let running = now.starts_at.is_none() && now.instances.iter().all(|i| i.standing == Standing::Running);
    let hopeless = now.instances.iter().any(|i| i.standing == Standing::Hopeless);
    // What runs is feasible, whatever was computed.
    let failed = hopeless || (!now.infeasible.is_empty() && !running);
    if now.is_suspended() {
        return Row::Suspended;
    }
    match from {
        Row::Submitted | Row::Suspended => Row::Acknowledged,
        Row::Failed if failed => Row::Failed,
        Row::Failed => Row::Acknowledged,
        Row::Acknowledged if failed => Row::Failed,
        Row::Acknowledged if running => Row::Compliant,
        Row::Acknowledged => Row::Acknowledged,
        Row::Compliant | Row::Fulfilled | Row::Degraded => {
            // What nobody uses is not degraded: its state waits for requests.
            let blind = |t: &Target| t.unmeasured >= UNMEASURED_MAX && !t.is_of_traffic();
            let missed = now.targets.iter().any(|t| t.missed >= MISSED_MAX || blind(t));
            // To run is all that is wanted of what has no target.
            let held = now.targets.iter().all(|t| t.fulfilled);
            if hopeless {
                Row::Failed
            } else if !running || missed {
                Row::Degraded
            } else if held {
                Row::Fulfilled
            } else {
                from
            }
        }
        Row::Terminated => Row::Terminated,
    }
}

/// A row in words, with what makes one telling of it different from another.
pub(super) struct Words {
    /// The state.
    pub(super) state: State,
    /// Equal for two tellings of the same thing with other figures.
    pub(super) mark: Vec<String>,
}

/// Tells what is known as this row.
pub(super) fn describe(now: &InForce, row: Row) -> Words {
    let mut told = Told::default();
    let several = now.instances.len() > 1;
    let of = |instance: &Instance, text: &str| match several {
        true => format!("expectation {}: {text}", instance.expectation),
        false => text.to_owned(),
    };
    let troubles = |told: &mut Told, of_standing: fn(Standing) -> bool| {
        for instance in now.instances.iter().filter(|i| of_standing(i.standing)) {
            if let Some(trouble) = trouble(instance) {
                told.add(&of(instance, &trouble.reason), &trouble.waits_for);
                told.hint(&trouble.hint);
            }
        }
    };
    let infeasible =
        (!now.infeasible.is_empty()).then(|| format!("no registered cluster can take it: {}", now.infeasible));
    match row {
        Row::Submitted | Row::Terminated => {}
        Row::Suspended => {
            for lost in now.conflicts.iter().filter(|c| c.loses) {
                told.add(
                    &format!("suspended by a conflict: {}", lost.reason),
                    &format!("intent {} to end or to change", lost.conflicting_intent),
                );
                told.hint(&lost.hint);
            }
            if now.suspended {
                let text = "suspended: its targets are not watched, its instances are left as they are";
                told.add(text, "its resumption");
                told.hint("resume it");
            }
        }
        Row::Acknowledged if now.starts_at.is_some() => {
            let start = now.starts_at.unwrap_or_default();
            told.add(&format!("accepted, and begins at {start}"), "its start time");
        }
        Row::Acknowledged => {
            troubles(&mut told, |_| true);
            told.otherwise("accepted, and its instances run", "the next look at its instances");
        }
        Row::Failed => {
            troubles(&mut told, |standing| standing == Standing::Hopeless);
            if let Some(text) = &infeasible {
                told.add(text, "a cluster that can take it");
                told.hint("register a cluster that can take it, or update the intent to ask for less");
            }
            told.otherwise("it can be met again", "the next look at its instances");
        }
        Row::Compliant | Row::Fulfilled => {
            for target in now.targets.iter().filter(|t| t.missed > 0) {
                let mark = format!("missed {} {}", target.expectation, target.name);
                told.marked(mark, format!("{} in the last period", target.figures()), "");
            }
            for target in now.targets.iter().filter(|t| t.unmeasured > 0) {
                let mark = format!("unmeasured {} {}", target.expectation, target.name);
                let text = match target.is_of_traffic() {
                    true => format!("{} was not observed in the last period: no request came", target.name),
                    false => format!("{} was not measured in the last period", target.name),
                };
                told.marked(mark, text, if target.is_of_traffic() { "requests to its exposed route" } else { "" });
            }
            if row == Row::Fulfilled {
                let remarks: Vec<String> = now.targets.iter().filter_map(Target::remark).collect();
                let separator = if remarks.is_empty() { "" } else { "; " };
                told.otherwise(&format!("every target holds{separator}{}", remarks.join("; ")), "");
            } else {
                told.otherwise("all replicas run", "");
                told.waits("one whole period in which every target holds");
            }
            if let Some(text) = &infeasible {
                told.add(&format!("it runs, though {text}"), "");
            }
        }
        Row::Degraded => {
            troubles(&mut told, |_| true);
            let down = !told.reasons.is_empty();
            for instance in now.instances.iter().filter(|i| i.standing == Standing::Running) {
                let targets = || now.targets.iter().filter(|t| t.expectation == instance.expectation);
                let missed = targets().any(|t| t.missed >= MISSED_MAX);
                for target in targets().filter(|t| t.missed > 0) {
                    let mark = format!("missed {} {} {missed}", target.expectation, target.name);
                    told.marked(mark, of(instance, &target.figures()), if missed { "" } else { "the next period" });
                }
                for target in targets().filter(|t| t.unmeasured > 0) {
                    let mark = format!("unmeasured {} {}", target.expectation, target.name);
                    if target.is_of_traffic() {
                        let text = format!("no request came, so {} was not observed", target.name);
                        told.marked(mark, of(instance, &text), "requests to its exposed route");
                        told.hint("send it requests through the gateway: only those are measured");
                        continue;
                    }
                    told.marked(mark, of(instance, &format!("no measurement of {}", target.name)), "its measurement");
                    told.hint("look whether the collector runs and the cluster's agent is reached");
                }
                if missed && !instance.to_cluster.is_empty() {
                    told.add("a move is under way", &format!("its move to {}", instance.to_cluster));
                } else if missed && !instance.stuck.is_empty() {
                    told.add(
                        &format!("it stays on {}: {}", instance.cluster, instance.stuck),
                        "a cluster where every target holds",
                    );
                    told.hint("add a cluster, free capacity, or terminate and update it with other targets");
                } else if missed {
                    told.waits("a remedy");
                }
            }
            if let Some(text) = infeasible.as_ref().filter(|_| down) {
                told.add(text, "");
            }
            told.otherwise("it runs again", "one whole period in which every target holds");
        }
    }
    told.words(row)
}

#[derive(Default)]
struct Told {
    reasons: Vec<String>,
    waits: Vec<String>,
    hints: Vec<String>,
    mark: Vec<String>,
}

impl Told {
    fn marked(&mut self, mark: String, reason: String, waits: &str) {
        self.mark.push(mark);
        self.reasons.push(reason);
        self.waits(waits);
    }

    fn add(&mut self, reason: &str, waits: &str) {
        self.marked(format!("{reason} {waits}"), reason.to_owned(), waits);
    }

    fn otherwise(&mut self, reason: &str, waits: &str) {
        if self.reasons.is_empty() {
            self.add(reason, waits);
        }
    }

    fn waits(&mut self, waits: &str) {
        if !waits.is_empty() && !self.waits.iter().any(|w| w == waits) {
            self.waits.push(waits.to_owned());
        }
    }

    fn hint(&mut self, hint: &str) {
        if !hint.is_empty() && !self.hints.iter().any(|c| c == hint) {
            self.hints.push(hint.to_owned());
        }
    }

    fn words(self, row: Row) -> Words {
        // Nothing is waited for once every target holds.
        let waits = if row == Row::Fulfilled { String::new() } else { self.waits.join("; ") };
        Words { state: row.state(self.reasons.join("; "), waits, self.hints.join("; ")), mark: self.mark }
    }
}

/// Why an instance does not run.
struct Trouble {
    reason: String,
    waits_for: String,
    hint: String,
}

/// Why connectivity is not there.
fn connecting(instance: &Instance) -> Option<Trouble> {
    let said = |text: &str| match instance.reason.as_str() {
        "" => text.to_owned(),
        reason => format!("{text}: {reason}"),
    };
    let (reason, waits_for) = match instance.standing {
        Standing::Running => return None,
        Standing::Starting => (said("it is being connected"), "its connection"),
        Standing::Hopeless => (said("it cannot be connected"), "an update"),
        Standing::Stopped => (said("it is withdrawn"), "its connection"),
        _ => (said("waiting for the network exposer"), "the network exposer"),
    };
    Some(Trouble { reason, waits_for: waits_for.into(), hint: instance.hint.clone() })
}

fn trouble(instance: &Instance) -> Option<Trouble> {
    if instance.network {
        return connecting(instance);
    }
    let said = instance.reason.as_str();
    let cluster = match instance.cluster.as_str() {
        "" => "its cluster".to_owned(),
        id => format!("cluster {id}"),
    };
    let object = if instance.workload.is_empty() { &instance.id } else { &instance.workload };
    let because = |text: String| if said.is_empty() { text } else { format!("{text}: {said}") };
    let log = || format!("read its log: continuum workload logs {}", instance.id);
    let (reason, waits_for, hint) = match instance.standing {
        Standing::Running => return None,
        Standing::Unheard if instance.workload.is_empty() => (
            format!("nothing is heard of instance {object} yet"),
            format!("news or measurements of instance {object}"),
            String::new(),
        ),
        Standing::Unheard => ("waiting for a cluster".into(), format!("a cluster for {object}"), String::new()),
        Standing::Unavailable => {
            let reason = if said.is_empty() { format!("{object} cannot be made") } else { said.to_owned() };
            (reason, format!("{object} to be there"), instance.hint.clone())
        }
        Standing::Pending => {
            (because("waiting for a cluster".into()), format!("a cluster for {object}"), String::new())
        }
        Standing::Unplaced => {
            let hint = "add a cluster, free capacity, or ask for less";
            (because("no cluster can take it".into()), "capacity".into(), hint.into())
        }
        Standing::Assigned => (format!("{cluster} is chosen"), format!("{cluster} to start it"), String::new()),
        Standing::Starting => {
            (because(format!("{cluster} is starting it")), "all replicas to run".into(), String::new())
        }
        Standing::Restarting => {
            (because(format!("it went down on {cluster}")), format!("its restart on {cluster}"), log())
        }
        Standing::Failed => (because(format!("it failed on {cluster}")), "another try".into(), log()),
        Standing::Hopeless => {
            let hint = "correct the workload and push it as a new version, then update the intent";
            (because("it cannot run anywhere".into()), "an update".into(), hint.into())
        }
        Standing::Stopped => (because(format!("it is stopped on {cluster}")), "its start".into(), String::new()),
        Standing::Lost => {
            (because(format!("{cluster} is lost")), "another cluster, or its return".into(), String::new())
        }
    };
    Some(Trouble { reason, waits_for, hint })
}
