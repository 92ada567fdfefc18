//! Documents and instances as people ask for them: a projection of WORKLOAD.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
};

use mesh_core::{
    Derived, Projector, Stored,
    query::{Error, Page, narrowed_by, owner},
};
use mesh_proto::{
    EventSet as _, Timestamp,
    deciders::stream_workload::Event,
    query::{GetRequest, ListRequest},
    workload::{InstancePhase, InstanceView, WorkloadList, WorkloadView},
};
use semver::Version;

use super::entry::{About, about, awaits_checks, fold_instance, fold_version};

/// Stopped instances kept: those that stopped last.
pub const STOPPED_MAX: usize = 10_000;

/// An owner's name for something.
type Named = (String, String);
/// A version in order of precedence; what is not a semantic version comes first.
pub(super) type Ordered = (Option<Version>, String);

/// Every document, and every instance that is not long over.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalogue {
    documents: BTreeMap<Named, BTreeMap<Ordered, WorkloadView>>,
    instances: BTreeMap<Named, InstanceView>,
    /// Stopped instances, longest first; may name one that runs again.
    stopped: VecDeque<Named>,
}

impl Projector for Catalogue {
    fn apply(&mut self, fact: &Stored) -> Vec<Derived> {
        // A fact of a later version of this service is ignored here.
        if let Ok(event) = Event::decode(&fact.message, &fact.body) {
            self.tell(event, fact.time);
        }
        vec![]
    }
}

impl Catalogue {
    fn tell(&mut self, event: Event, at: Timestamp) {
        match about(&event) {
            Some(About::Version { owner, name, version }) => {
                let (key, version) = ((owner.to_owned(), name.to_owned()), ordered(version));
                let versions = self.documents.entry(key.clone()).or_default();
                let mut view = versions.remove(&version);
                fold_version(&mut view, event, at);
                versions.extend(view.map(|view| (version, view)));
                if versions.is_empty() {
                    self.documents.remove(&key);
                }
            }
            Some(About::Instance { owner, instance_id }) => {
                let key = (owner.to_owned(), instance_id.to_owned());
                let mut view = self.instances.remove(&key);
                let is_stopped = |view: &Option<InstanceView>| {
                    view.as_ref().is_some_and(|view| view.phase() == InstancePhase::Stopped)
                };
                let stops = matches!(event, Event::InstanceChanged(_)) && !is_stopped(&view);
                fold_instance(&mut view, event, at);
                let stops = stops && is_stopped(&view);
                self.instances.extend(view.map(|view| (key.clone(), view)));
                if stops {
                    self.stopped.push_back(key);
                    self.forget();
                }
            }
            None => {}
        }
    }

    /// Charts whose checks are to be made.
    pub fn onboarding(&self) -> impl Iterator<Item = &WorkloadView> {
        self.documents.values().flat_map(BTreeMap::values).filter(|view| awaits_checks(view))
    }

    /// Forgets those that stopped longest ago.
    fn forget(&mut self) {
        while self.stopped.len() > STOPPED_MAX {
            let Some(key) = self.stopped.pop_front() else { return };
            let stopped = self.instances.get(&key).is_some_and(|v| v.phase() == InstancePhase::Stopped);
            if stopped && !self.stopped.contains(&key) {
                self.instances.remove(&key);
            }
        }
    }

    /// A document by `name` (its newest version) or `name@version`.
    ///
    /// # Errors
    /// Not found, with what to do.
    pub fn workload(&self, request: &GetRequest) -> Result<WorkloadView, Error> {
        let owner = owner(&request.owner);
        let (name, version) = named(&request.id);
        let versions = self.documents.get(&(owner.to_owned(), name.to_owned()));
        let found = versions.and_then(|versions| match version {
            Some(version) => versions.get(&ordered(version)),
            None => versions.values().next_back(),
        });
        let newest = || versions.and_then(|v| v.values().next_back()).map(|newest| newest.version.as_str());
        found.cloned().ok_or_else(|| unknown_document(owner, &request.id, newest()))
    }

    /// An instance by its id.
    ///
    /// # Errors
    /// Not found, with what to do.
    pub fn instance(&self, request: &GetRequest) -> Result<InstanceView, Error> {
        let owner = owner(&request.owner);
        let found = self.instances.get(&(owner.to_owned(), request.id.clone()));
        found.cloned().ok_or_else(|| unknown_instance(owner, &request.id))
    }

    /// A page of an owner's documents, then of the instances.
    ///
    /// # Errors
    /// Invalid argument: a phase or page token that there is not.
    pub fn list(&self, request: &ListRequest) -> Result<WorkloadList, Error> {
        let Asked { owner, phase, size, after } = Asked::read(request)?;
        let (after_document, after_instance) = match after {
            After::Nothing => (None, None),
            After::Document { name, version } => (Some((name, version)), None),
            After::Instance(id) => (None, Some(id)),
        };
        let mut page = WorkloadList::default();
        if after_instance.is_none() {
            let after = after_document.map(|(name, version)| (name, ordered(version)));
            let from = (owner.clone(), after.as_ref().map_or("", |a| a.0).to_owned());
            let named = self.documents.range(from..).take_while(|((o, _), _)| *o == owner);
            let all = named.flat_map(|((_, name), versions)| versions.iter().map(move |(v, view)| (name, v, view)));
            for (name, version, view) in all {
                if after.as_ref().is_some_and(|(n, v)| (name.as_str(), version) <= (*n, v)) {
                    continue;
                }
                if page.workloads.len() == size {
                    page.next_page_token = token(&page);
                    return Ok(page);
                }
                page.workloads.push(view.clone());
            }
        }
        let from = Bound::Excluded((owner.clone(), after_instance.unwrap_or_default().to_owned()));
        let rest = self.instances.range((from, Bound::Unbounded)).take_while(|((o, _), _)| *o == owner);
        for (_, view) in rest.filter(|(_, v)| phase.is_none_or(|p| v.phase() == p)) {
            if page.workloads.len() + page.instances.len() == size {
                page.next_page_token = token(&page);
                return Ok(page);
            }
            page.instances.push(view.clone());
        }
        Ok(page)
    }
}

/// What a list is asked for.
#[derive(Debug, PartialEq)]
pub(crate) struct Asked<'a> {
    pub(crate) owner: String,
    /// Of instances in this phase only.
    pub(crate) phase: Option<InstancePhase>,
    /// Documents and instances on the page, at most.
    pub(crate) size: usize,
    pub(crate) after: After<'a>,
}

/// Where the page before ended.
#[derive(Debug, PartialEq)]
pub(crate) enum After<'a> {
    Nothing,
    Document { name: &'a str, version: &'a str },
    Instance(&'a str),
}

impl<'a> Asked<'a> {
    /// # Errors
    /// Invalid argument: a phase or page token that there is not.
    pub(crate) fn read(request: &'a ListRequest) -> Result<Self, Error> {
        narrowed_by(request, &["owner", "state"])?;
        let wanted = Page::new(request.page_size, &request.page_token)?;
        let after = match request.page_token.split_once('/') {
            None if request.page_token.is_empty() => After::Nothing,
            Some(("document", id)) => {
                let (name, version) = id.split_once('@').ok_or_else(|| wanted.invalid())?;
                After::Document { name, version }
            }
            Some(("instance", id)) => After::Instance(id),
            _ => return Err(wanted.invalid()),
        };
        let (owner, phase) = (owner(&request.owner).to_owned(), phase(&request.state)?);
        Ok(Self { owner, phase, size: wanted.size(), after })
    }
}

/// The token of what comes after the last of a page.
pub(crate) fn token(page: &WorkloadList) -> String {
    match (page.instances.last(), page.workloads.last()) {
        (Some(last), _) => format!("instance/{}", last.instance_id),
        (None, Some(last)) => format!("document/{}@{}", last.name, last.version),
        (None, None) => String::new(),
    }
}

/// A document's name, and its version if that is asked for.
pub(crate) fn named(id: &str) -> (&str, Option<&str>) {
    id.split_once('@').map_or((id, None), |(name, version)| (name, Some(version)))
}

/// The answer where there is no such document.
pub(crate) fn unknown_document(owner: &str, id: &str, newest: Option<&str>) -> Error {
    let hint = match newest {
        Some(newest) => format!("its newest version is {newest}"),
        None => "push it with `continuum workload push FILE`".into(),
    };
    Error::not_found(format!("workload document {owner}/{id}"), hint)
}

/// The answer where there is no such instance.
pub(crate) fn unknown_instance(owner: &str, id: &str) -> Error {
    Error::not_found(format!("instance {owner}/{id}"), "list them with `continuum workload list`")
}

pub(super) fn ordered(version: &str) -> Ordered {
    (chart::structure::version(version).ok(), version.to_owned())
}

fn phase(name: &str) -> Result<Option<InstancePhase>, Error> {
    if name.is_empty() {
        return Ok(None);
    }
    match InstancePhase::from_str_name(&name.to_uppercase()) {
        Some(InstancePhase::Unspecified) | None => {
            let known = (1..).map_while(|n| InstancePhase::try_from(n).ok()).map(|p| p.as_str_name());
            let known: Vec<&str> = known.collect();
            let what = format!("{:?} is not a phase", name.chars().take(64).collect::<String>());
            Err(Error::invalid(what, format!("use one of {}", known.join(", "))))
        }
        known => Ok(known),
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::{
        intent::Problem,
        workload::{
            InstanceChanged, InstanceUnavailable, InstanceUnwanted, InstanceWanted, LifecycleEvent, Release,
            WorkloadDocument, WorkloadRegistered, WorkloadRejected, WorkloadSubmitted,
        },
    };
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::domain::entry::EVENTS_MAX;

    fn tell(catalogue: &mut Catalogue, event: impl Into<Event>) {
        catalogue.tell(event.into(), Timestamp::from_millis(7));
    }

    fn submitted(name: &str, version: &str) -> WorkloadSubmitted {
        let document = WorkloadDocument { name: name.into(), version: version.into(), ..Default::default() };
        WorkloadSubmitted {
            owner: "local".into(),
            name: name.into(),
            version: version.into(),
            document: document.encode_to_vec().into(),
            command_id: String::new(),
        }
    }

    fn wanted(id: &str, replicas: u32) -> InstanceWanted {
        let workload = "spinner@1.0.0".to_owned();
        InstanceWanted { owner: "local".into(), instance_id: id.into(), workload, replicas, ..Default::default() }
    }

    fn changed(id: &str, phase: InstancePhase) -> InstanceChanged {
        let event = Some(LifecycleEvent { r#type: "x".into(), ..Default::default() });
        InstanceChanged {
            owner: "local".into(),
            instance_id: id.into(),
            phase: phase.into(),
            event,
            ..Default::default()
        }
    }

    fn get(id: &str) -> GetRequest {
        GetRequest { owner: String::new(), id: id.into() }
    }

    #[test]
    fn a_document_is_found_by_name_in_its_newest_version_or_by_version() {
        let mut catalogue = Catalogue::default();
        for version in ["1.10.0", "1.9.0", "1.10.0-rc.1"] {
            tell(&mut catalogue, submitted("spinner", version));
        }
        assert_eq!(catalogue.workload(&get("spinner")).unwrap().version, "1.10.0");
        assert_eq!(catalogue.workload(&get("spinner@1.9.0")).unwrap().document.unwrap().version, "1.9.0");
        let text = catalogue.workload(&get("spinner@2.0.0")).unwrap_err().to_string();
        assert_eq!(text, "workload document local/spinner@2.0.0 not found; its newest version is 1.10.0");
        assert!(catalogue.workload(&get("web")).unwrap_err().to_string().contains("workload push FILE"));
        assert!(catalogue.instance(&get("x")).unwrap_err().to_string().contains("workload list"));
        let other = GetRequest { owner: "other".into(), id: "spinner".into() };
        assert!(catalogue.workload(&other).is_err(), "another owner's");
    }

    #[test]
    fn the_status_of_a_document_follows_its_verdict() {
        let mut catalogue = Catalogue::default();
        let key = || ("local".to_owned(), "spinner".to_owned(), "1.0.0".to_owned());
        tell(&mut catalogue, submitted("spinner", "1.0.0"));
        assert_eq!(catalogue.workload(&get("spinner")).unwrap().status, "pending");
        let ((owner, name, version), problems) = (key(), vec![Problem::default()]);
        tell(&mut catalogue, WorkloadRejected { owner, name, version, problems });
        let view = catalogue.workload(&get("spinner")).unwrap();
        assert_eq!((view.status.as_str(), view.problems.len()), ("rejected", 1));
        tell(&mut catalogue, submitted("spinner", "1.0.0"));
        let (owner, name, version) = key();
        tell(&mut catalogue, WorkloadRegistered { owner, name, version, document: Default::default() });
        let view = catalogue.workload(&get("spinner")).unwrap();
        assert_eq!((view.status.as_str(), view.problems.len()), ("accepted", 0));
    }

    #[test]
    fn a_chart_shows_that_no_agent_runs_it_and_the_name_of_its_release() {
        let mut catalogue = Catalogue::default();
        let mut statement = |kind: &str, driver: &str| {
            let document = WorkloadDocument { kind: kind.into(), driver: driver.into(), ..Default::default() };
            let document = document.encode_to_vec().into();
            tell(&mut catalogue, WorkloadSubmitted { document, ..submitted("web", "1.0.0") });
            catalogue.workload(&get("web")).unwrap().statement
        };
        assert!(statement("chart", "").contains("no agent of this release runs charts"));
        assert!(statement("process", "simulated").contains("nothing runs"));
        assert!(statement("process", "any").contains("may be placed on a simulated cluster"));
        assert_eq!(statement("process", ""), "");

        let release = |kind: &str, release: Option<Release>| {
            let mut catalogue = Catalogue::default();
            let document = WorkloadDocument { kind: kind.into(), ..Default::default() }.encode_to_vec().into();
            let workload = "Web@1.0.0".into();
            tell(&mut catalogue, InstanceWanted { document, release, workload, ..wanted("0190aabb-cc", 1) });
            catalogue.instance(&get("0190aabb-cc")).unwrap().release_name
        };
        assert_eq!(release("chart", None), "web-0190aabb");
        assert_eq!(release("chart", Some(Release { name: "mine".into(), ..Default::default() })), "mine");
        assert_eq!(release("process", None), "", "a process has no release");
    }

    #[test]
    fn an_instance_that_cannot_be_made_shows_why_until_nobody_waits() {
        let mut catalogue = Catalogue::default();
        let waits = InstanceUnavailable {
            owner: "local".into(),
            instance_id: "n".into(),
            reason: "not registered".into(),
            hint: "push it".into(),
            workload: "spinner@1.0.0".into(),
            ..Default::default()
        };
        tell(&mut catalogue, waits.clone());
        let view = catalogue.instance(&get("n")).unwrap();
        assert_eq!((view.phase(), view.reason.as_str()), (InstancePhase::Pending, "not registered; push it"));
        tell(
            &mut catalogue,
            InstanceUnwanted { owner: "local".into(), instance_id: "n".into(), intent_id: String::new() },
        );
        assert!(catalogue.instance(&get("n")).is_err());
        tell(&mut catalogue, waits);
        tell(&mut catalogue, wanted("n", 1));
        let view = catalogue.instance(&get("n")).unwrap();
        assert_eq!((view.reason.as_str(), view.lifecycle_events[0].r#type.as_str()), ("", "rendered"));
        assert_eq!(view.lifecycle_events[0].timestamp, Some(Timestamp::from_millis(7)));
    }

    #[test]
    fn of_each_instance_the_newest_events_are_kept() {
        let mut catalogue = Catalogue::default();
        tell(&mut catalogue, wanted("n", 1));
        for n in 0..EVENTS_MAX as i64 {
            let event = LifecycleEvent { r#type: n.to_string(), ..Default::default() };
            tell(&mut catalogue, InstanceChanged { event: Some(event), ..changed("n", InstancePhase::Running) });
        }
        let events = catalogue.instance(&get("n")).unwrap().lifecycle_events;
        assert_eq!((events.len(), events[0].r#type.as_str()), (EVENTS_MAX, "0"), "rendered is forgotten");
    }

    #[test]
    fn instances_stopped_long_ago_are_forgotten_unless_run_again() {
        let mut catalogue = Catalogue::default();
        for n in 0..STOPPED_MAX + 10 {
            let id = format!("n{n}");
            tell(&mut catalogue, wanted(&id, 1));
            tell(&mut catalogue, changed(&id, InstancePhase::Stopped));
            if n == 5 {
                tell(&mut catalogue, wanted(&id, 1));
            }
        }
        assert!(catalogue.instance(&get("n4")).is_err());
        assert_eq!(catalogue.instance(&get("n5")).unwrap().phase(), InstancePhase::Pending);
        assert!(catalogue.instance(&get("n10")).is_ok());
        assert_eq!((catalogue.instances.len(), catalogue.stopped.len()), (STOPPED_MAX + 1, STOPPED_MAX));
    }

    #[test]
    fn a_list_is_filtered_by_phase_and_refuses_what_is_no_phase_or_token() {
        let mut catalogue = Catalogue::default();
        for (id, phase) in [("a", InstancePhase::Running), ("b", InstancePhase::Failed)] {
            tell(&mut catalogue, wanted(id, 1));
            tell(&mut catalogue, changed(id, phase));
        }
        let list = |state: &str, token: &str| {
            let (state, page_token) = (state.to_owned(), token.to_owned());
            catalogue.list(&ListRequest { state, page_token, ..Default::default() })
        };
        let found: Vec<String> = list("failed", "").unwrap().instances.into_iter().map(|i| i.instance_id).collect();
        assert_eq!(found, ["b"]);
        let text = list("sleeping", "").unwrap_err().to_string();
        assert!(text.contains("PENDING, ASSIGNED, STARTING, RUNNING, RESTARTING, FAILED, STOPPED, LOST"), "{text}");
        for bad in ["x", "document/a", "other/a"] {
            assert!(list("", bad).unwrap_err().to_string().contains("next_page_token"), "{bad}");
        }
    }

    proptest! {
        /// Page by page, whatever their size, everything of an owner is listed once and in order.
        #[test]
        fn pages_together_are_the_whole(
            versions in prop::collection::btree_set((0..4u8, 0..12u8), 0..20),
            instances in prop::collection::btree_set(0..40u8, 0..20),
            size in 1..9u32,
        ) {
            let mut catalogue = Catalogue::default();
            for (name, version) in &versions {
                tell(&mut catalogue, submitted(&format!("w{name}"), &format!("1.{version}.0")));
            }
            tell(&mut catalogue, WorkloadSubmitted { owner: "other".into(), ..submitted("w0", "1.0.0") });
            for id in &instances {
                tell(&mut catalogue, wanted(&format!("n{id:02}"), 1));
            }
            tell(&mut catalogue, InstanceWanted { owner: "other".into(), ..wanted("n00", 1) });
            let (mut found, mut token, mut pages) = (vec![], String::new(), 0);
            loop {
                let request = ListRequest { page_size: size, page_token: token, ..Default::default() };
                let page = catalogue.list(&request).unwrap();
                pages += 1;
                prop_assert!(page.workloads.len() + page.instances.len() <= size as usize);
                found.extend(page.workloads.iter().map(|w| format!("{}@{}", w.name, w.version)));
                found.extend(page.instances.iter().map(|i| i.instance_id.clone()));
                token = page.next_page_token;
                if token.is_empty() {
                    break;
                }
            }
            let all = versions.iter().map(|(n, v)| format!("w{n}@1.{v}.0"));
            let all: Vec<String> = all.chain(instances.iter().map(|i| format!("n{i:02}"))).collect();
            prop_assert_eq!(pages, all.len().div_ceil(size as usize).max(1));
            prop_assert_eq!(found, all);
        }
    }
}
