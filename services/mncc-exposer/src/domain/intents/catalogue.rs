//! Installed libraries, and the way from a document to its calls.

use std::collections::{BTreeMap, BTreeSet};

use mesh_intent::secret::redact_json;
use mesh_proto::{Refusal, network::PlannedCall};
use serde_json::Value;

use super::document::{Expectation, NetworkIntent, refusal};

/// How often expectations may be rewritten before they are found to go round in a circle.
const REWRITES_MAX: usize = 8;
/// Calls of an intent.
const CALLS_MAX: usize = 256;

/// What a library understands: label, verb, object type; at each leaf the library that takes it.
pub type Tree = BTreeMap<String, BTreeMap<String, BTreeMap<String, String>>>;

/// One call of an adaptor.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Expectation that it serves.
    pub expectation_id: String,
    /// Who makes it.
    pub executioner: String,
    /// What is done.
    pub operation: String,
    /// Where.
    pub target: String,
    /// With what; may hold secrets.
    pub body: Value,
    /// What undoes it, if anything does.
    pub undo: Option<(String, Value)>,
}

/// What a library makes of its expectations.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Less abstract ones, to be classified again.
    Rewritten(Vec<Expectation>),
    /// Calls: an intent logic unit.
    Calls(Vec<Call>),
}

/// One library: a technology, or a vocabulary above technologies.
pub trait Library: Send + Sync {
    /// Its name.
    fn name(&self) -> &str;

    /// What it understands, and who takes it.
    fn tree(&self) -> Tree;

    /// Makes calls, or less abstract expectations, of those that it takes.
    ///
    /// # Errors
    /// If an attribute is missing or wrong.
    fn translate(&self, intent: &NetworkIntent, expectations: &[&Expectation]) -> Result<Outcome, Refusal>;
}

/// A translated intent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Keywords of each classification.
    pub keywords: Vec<Vec<String>>,
    /// Libraries in the order in which they were chosen.
    pub libraries: Vec<String>,
    /// Calls in order, each with its library.
    pub calls: Vec<(String, Call)>,
}

impl Plan {
    /// The calls as facts tell them.
    pub fn told(&self) -> Vec<PlannedCall> {
        let told = |(library, call): &(String, Call)| PlannedCall {
            expectation_id: call.expectation_id.clone(),
            library: library.clone(),
            executioner: call.executioner.clone(),
            operation: call.operation.clone(),
            target: call.target.clone(),
            body: redact_json(&call.body).to_string(),
        };
        self.calls.iter().map(told).collect()
    }
}

/// The installed libraries, in the order of installation.
#[derive(Default)]
pub struct Catalogue {
    libraries: Vec<Box<dyn Library>>,
}

impl std::fmt::Debug for Catalogue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.libraries.iter().map(|library| library.name())).finish()
    }
}

/// A tree of one label and verb.
pub(super) fn tree(label: &str, verb: &str, leaves: &[(&str, &str)]) -> Tree {
    let leaves = leaves.iter().map(|(object_type, library)| ((*object_type).to_owned(), (*library).to_owned()));
    BTreeMap::from([(label.to_owned(), BTreeMap::from([(verb.to_owned(), leaves.collect())]))])
}

impl Catalogue {
    /// Adds a library; one of the same name is replaced.
    pub fn install(&mut self, library: Box<dyn Library>) {
        self.libraries.retain(|installed| installed.name() != library.name());
        self.libraries.push(library);
    }

    /// The library that takes an expectation: the first match among the trees, whose leaf is installed.
    fn classify(&self, label: &str, expectation: &Expectation) -> Result<&dyn Library, Refusal> {
        for library in &self.libraries {
            let tree = library.tree();
            let leaf = tree.get(label).and_then(|verbs| verbs.get(&expectation.verb));
            let Some(leaf) = leaf.and_then(|types| types.get(&expectation.object_type)) else { continue };
            if let Some(taker) = self.libraries.iter().find(|l| l.name() == leaf) {
                return Ok(taker.as_ref());
            }
        }
        let known: BTreeSet<String> = self.keywords().collect();
        Err(refusal(
            format!(
                "no installed library takes {label} / {} / {} (expectation {:?})",
                expectation.verb, expectation.object_type, expectation.id
            ),
            format!("use one of: {}; or install a library for it", known.into_iter().collect::<Vec<_>>().join(", ")),
        ))
    }

    fn keywords(&self) -> impl Iterator<Item = String> {
        self.libraries.iter().flat_map(|library| library.tree()).flat_map(|(label, verbs)| {
            verbs.into_iter().flat_map(move |(verb, types)| {
                let label = label.clone();
                types.into_keys().map(move |object_type| format!("{label} / {verb} / {object_type}"))
            })
        })
    }

    /// Classifies and translates until only calls are left.
    ///
    /// # Errors
    /// If a keyword matches nothing, or an attribute is missing or wrong: then there are no calls at all.
    pub fn plan(&self, intent: &NetworkIntent) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        let mut open: Vec<Expectation> = intent.expectations.clone();
        for _ in 0..REWRITES_MAX {
            let pairs = open.iter().flat_map(|e| [e.verb.clone(), e.object_type.clone()]);
            plan.keywords.push(std::iter::once(intent.user_label.clone()).chain(pairs).collect());
            // Expectations of one library are translated together: a network and its clusters belong together.
            let mut groups: Vec<(&dyn Library, Vec<&Expectation>)> = vec![];
            for expectation in &open {
                let library = self.classify(&intent.user_label, expectation)?;
                match groups.iter_mut().find(|(known, _)| known.name() == library.name()) {
                    Some((_, members)) => members.push(expectation),
                    None => groups.push((library, vec![expectation])),
                }
            }
            let mut next = vec![];
            for (library, expectations) in groups {
                if !plan.libraries.iter().any(|known| known == library.name()) {
                    plan.libraries.push(library.name().to_owned());
                }
                match library.translate(intent, &expectations)? {
                    Outcome::Rewritten(less) => next.extend(less),
                    Outcome::Calls(calls) => {
                        plan.calls.extend(calls.into_iter().map(|c| (library.name().to_owned(), c)))
                    }
                }
            }
            if plan.calls.len() > CALLS_MAX {
                return Err(refusal(
                    format!("{} calls", plan.calls.len()),
                    format!("divide it: at most {CALLS_MAX} each"),
                ));
            }
            if next.is_empty() {
                return Ok(plan);
            }
            open = next;
        }
        Err(refusal(
            format!("rewritten {REWRITES_MAX} times and still no calls: {}", plan.libraries.join(", ")),
            "correct the libraries: their rewrites go round in a circle",
        ))
    }
}
