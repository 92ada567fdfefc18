//! Questions about what targets achieved: what is asked, page by page, and what the values were to be.

use std::{cmp::Reverse, collections::BTreeMap};

use mesh_core::query::{Error, Page, owner};
use mesh_intent::{Bound, types};
use mesh_proto::{
    Timestamp,
    intent::{AchievedReply, AchievedRequest, AchievedValue, Intent},
};

/// The latest time that series keep, nanoseconds since 1970.
const END_NANOS: i64 = i64::MAX;

/// A question for a page of values, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) owner: String,
    pub(crate) intent_id: String,
    /// Of periods that ended from this time on.
    pub(crate) from: Timestamp,
    /// Of periods that ended up to and with this time: where the page begins, for the newest come first.
    pub(crate) to: Timestamp,
    /// All if empty.
    target_name: String,
    /// Values of the page.
    size: usize,
    /// Values of the time `to` that the pages before held.
    passed: usize,
}

impl Asked {
    /// From a request.
    ///
    /// # Errors
    /// Invalid argument: a target that no type has, a page token that no page ended with, an end before the beginning.
    pub(crate) fn read(request: &AchievedRequest) -> Result<Self, Error> {
        let target_name = &request.target_name;
        if !target_name.is_empty() && types::target_of(target_name).is_none() {
            let name: String = target_name.chars().take(64).collect();
            let hint = "`continuum intent types` lists the targets that there are";
            return Err(Error::invalid(format!("unknown target {name:?}"), hint));
        }
        let latest = Timestamp::from_nanos(i128::from(END_NANOS));
        let (from, to) = (request.from.unwrap_or_default(), request.to.unwrap_or(latest));
        if from > to {
            return Err(Error::invalid(format!("from {from} is later than to {to}"), "exchange them"));
        }
        let page = Page::new(request.page_size, &request.page_token)?;
        let (to, passed) = match page.after() {
            "" => (to, 0),
            after => reached(after).filter(|(at, _)| from <= *at && *at <= to).ok_or_else(|| page.invalid())?,
        };
        Ok(Self {
            owner: owner(&request.owner).to_owned(),
            intent_id: request.intent_id.clone(),
            from,
            to,
            target_name: target_name.clone(),
            size: page.size(),
            passed,
        })
    }

    /// Points of a series to read at once.
    pub(crate) fn read_max(&self) -> usize {
        (2 * self.size.saturating_add(self.passed)).clamp(1_000, 10_000)
    }
}

/// Where a page ended, from its token: a time, and how many values of that time had been shown.
fn reached(token: &str) -> Option<(Timestamp, usize)> {
    let (nanos, passed) = token.split_once('-')?;
    let nanos: i64 = nanos.parse().ok()?;
    Some((Timestamp::from_nanos(i128::from(nanos)), passed.parse().ok()?))
}

/// A page that is being filled, from the newest values to older ones.
#[derive(Debug)]
pub(crate) struct Filling<'a> {
    asked: &'a Asked,
    /// What is read next ends at this time, inclusive.
    pub(crate) to: Timestamp,
    found: Vec<AchievedValue>,
}

impl<'a> Filling<'a> {
    /// An empty page.
    pub(crate) fn new(asked: &'a Asked) -> Self {
        Self { asked, to: asked.to, found: vec![] }
    }

    /// Takes in the newest values up to `to`, in any order; `are_all`: are there no older ones? Answers whether the page is
    /// complete.
    pub(crate) fn take(&mut self, mut values: Vec<AchievedValue>, are_all: bool) -> bool {
        let times = || values.iter().filter_map(|value| value.at);
        let (oldest, newest) = (times().min().unwrap_or_default(), times().max().unwrap_or_default());
        if !are_all {
            // Of the oldest time some may not have been read, unless nothing else was: then as much of it as is read at once is
            // more than any intent has targets.
            if oldest < newest {
                values.retain(|value| value.at > Some(oldest));
                self.to = oldest;
            } else {
                self.to = Timestamp::from_nanos(oldest.as_nanos() - 1);
            }
        }
        let wanted = &self.asked.target_name;
        values.retain(|value| wanted.is_empty() || value.target_name == *wanted);
        values.sort_by(|a, b| order(a).cmp(&order(b)));
        self.found.extend(values);
        are_all || self.to < self.asked.from || self.found.len() > self.asked.size.saturating_add(self.asked.passed)
    }

    /// The page, and the token of the next one.
    pub(crate) fn page(self) -> AchievedReply {
        let Asked { size, passed, to, .. } = *self.asked;
        // What was shown of the first time is as much as is still there of it.
        let shown = self.found.iter().take_while(|value| value.at == Some(to)).count().min(passed);
        let is_last = self.found.len() <= shown.saturating_add(size);
        let values: Vec<AchievedValue> = self.found.into_iter().skip(shown).take(size).collect();
        let next_page_token = match values.last().and_then(|last| last.at) {
            Some(at) if !is_last => {
                let of_last = values.iter().rev().take_while(|value| value.at == Some(at)).count();
                let passed = of_last + if at == to { shown } else { 0 };
                format!("{}-{passed}", at.as_nanos())
            }
            _ => String::new(),
        };
        AchievedReply { values, next_page_token }
    }
}

fn order(value: &AchievedValue) -> (Reverse<Option<Timestamp>>, &str, &str, &str) {
    (Reverse(value.at), &value.expectation_id, &value.target_name, &value.instance_id)
}

/// What the versions of an intent demand of its targets: by version, expectation and name.
#[derive(Debug, Default)]
pub(crate) struct Demands(BTreeMap<(u64, String, String), Vec<Bound>>);

impl Demands {
    /// Adds those of a version.
    pub(crate) fn add(&mut self, version: u64, intent: Intent) {
        for expectation in intent.intent_expectations {
            for target in &expectation.expectation_targets {
                let Ok(bound) = Bound::of(target) else { continue };
                let key = (version, expectation.expectation_id.clone(), target.target_name.clone());
                self.0.entry(key).or_default().push(bound);
            }
        }
    }

    /// Writes into a value what was demanded of it, and whether it was met. Of several demands on one target that is the first
    /// that was missed, if any was.
    pub(crate) fn judge(&self, value: &mut AchievedValue) {
        let key = (value.version, value.expectation_id.clone(), value.target_name.clone());
        let Some(bounds) = self.0.get(&key) else { return };
        let Some(achieved) = value.value else { return };
        let missed = bounds.iter().find(|bound| !bound.holds(achieved));
        let Some(bound) = missed.or_else(|| bounds.first()) else { return };
        bound.condition().name().clone_into(&mut value.target_condition);
        bound.text().clone_into(&mut value.target_value_range);
        value.held = Some(missed.is_none());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::tests::{plain, target};

    fn request() -> AchievedRequest {
        AchievedRequest { intent_id: "plant".into(), ..AchievedRequest::default() }
    }

    fn value(at_ms: i64, target: &str) -> AchievedValue {
        AchievedValue {
            at: Some(Timestamp::from_millis(at_ms)),
            target_name: target.into(),
            version: 1,
            ..AchievedValue::default()
        }
    }

    /// All pages of what a series holds, read in parts of at most `read_max` points, the newest.
    fn pages(all: &[AchievedValue], request: &AchievedRequest, read_max: usize) -> Vec<Vec<AchievedValue>> {
        let (mut request, mut pages) = (request.clone(), vec![]);
        loop {
            let asked = Asked::read(&request).unwrap();
            let mut filling = Filling::new(&asked);
            loop {
                let within = all.iter().filter(|value| value.at >= Some(asked.from) && value.at <= Some(filling.to));
                let mut within: Vec<AchievedValue> = within.cloned().collect();
                within.sort_by_key(|value| value.at);
                let are_all = within.len() < read_max;
                let newest = within.split_off(within.len().saturating_sub(read_max));
                if filling.take(newest, are_all) {
                    break;
                }
            }
            let AchievedReply { values, next_page_token } = filling.page();
            pages.push(values);
            if next_page_token.is_empty() {
                return pages;
            }
            request.page_token = next_page_token;
        }
    }

    proptest! {
        #[test]
        fn pages_together_are_every_value_once_and_the_newest_first(
            times in proptest::collection::vec(1..20_i64, 0..80),
            size in 1..9_u32,
            span in (0..12_i64, 8..22_i64),
            narrowed: bool,
        ) {
            // Four values of one time at most, so that what is read at once holds more than one time.
            let names = ["cpuUsage", "ramUsage"];
            let mut count = BTreeMap::<i64, usize>::new();
            let all: Vec<AchievedValue> = times.iter().filter_map(|at| {
                let number = count.entry(*at).or_default();
                *number += 1;
                let mut value = value(*at, names[*number % 2]);
                value.instance_id = number.to_string();
                (*number <= 4).then_some(value)
            }).collect();
            let (from, to) = (Timestamp::from_millis(span.0), Timestamp::from_millis(span.1));
            prop_assume!(from <= to);
            let target_name = if narrowed { "ramUsage".to_owned() } else { String::new() };
            let request = AchievedRequest {
                from: Some(from), to: Some(to), target_name: target_name.clone(), page_size: size, ..request()
            };
            let mut expected: Vec<AchievedValue> = all.iter().filter(|value| {
                value.at >= Some(from) && value.at <= Some(to) && (!narrowed || value.target_name == target_name)
            }).cloned().collect();
            expected.sort_by(|a, b| order(a).cmp(&order(b)));
            for read_max in [5, 9, 1_000] {
                let pages = pages(&all, &request, read_max);
                prop_assert_eq!(pages.concat(), expected.clone());
                prop_assert!(pages.iter().rev().skip(1).all(|page| page.len() == size as usize));
            }
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused_with_its_value() {
        let at = |ms| Some(Timestamp::from_millis(ms));
        for (request, named) in [
            (AchievedRequest { target_name: "speed".into(), ..request() }, "\"speed\""),
            (AchievedRequest { from: at(2), to: at(1), ..request() }, "is later than"),
            (AchievedRequest { page_token: "plant".into(), ..request() }, "\"plant\""),
            (AchievedRequest { page_token: "7-x".into(), ..request() }, "\"7-x\""),
            (AchievedRequest { page_token: "7-0".into(), from: at(1), ..request() }, "\"7-0\""),
        ] {
            let refused = Asked::read(&request).unwrap_err();
            assert!(
                matches!(refused, Error::InvalidArgument { .. }) && refused.to_string().contains(named),
                "{refused}"
            );
        }
        assert_eq!(Asked::read(&request()).unwrap().size, 100);
    }

    #[test]
    fn a_value_is_judged_by_the_version_that_was_in_force() {
        let demanding = |bounds: &[(&str, &str)]| {
            let mut intent = plain();
            let targets = bounds.iter().map(|(condition, bound)| target("cpuUsage", condition, bound));
            intent.intent_expectations[0].expectation_targets = targets.collect();
            intent
        };
        let mut demands = Demands::default();
        demands.add(1, demanding(&[("IS_LESS_THAN", "20")]));
        demands.add(2, demanding(&[("IS_LESS_THAN", "50"), ("IS_GREATER_THAN", "30")]));
        let judged = |version, achieved: f64| {
            let expectation_id = plain().intent_expectations[0].expectation_id.clone();
            let mut value = AchievedValue { version, expectation_id, value: Some(achieved), ..value(1, "cpuUsage") };
            demands.judge(&mut value);
            (value.held, value.target_value_range)
        };
        assert_eq!(judged(1, 25.0), (Some(false), "20".to_owned()));
        assert_eq!(judged(2, 25.0), (Some(false), "30".to_owned()), "the demand that was missed");
        assert_eq!(judged(2, 40.0), (Some(true), "50".to_owned()));
        assert_eq!(judged(3, 40.0), (None, String::new()), "of a version that is not kept nothing is known");
    }
}
