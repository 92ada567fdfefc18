//! When an intent begins and ends: the times in its contexts.

use mesh_proto::{
    Timestamp,
    intent::{Context, Intent},
    json,
};

/// The start and the end of an intent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// When it begins; at once when there is none.
    pub start: Option<Timestamp>,
    /// When it ends; never when there is none.
    pub end: Option<Timestamp>,
}

/// What is wrong with a time, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Path to the context.
    pub path: String,
    /// What is wrong.
    pub reason: String,
    /// Is it well formed, and cannot be met?
    pub infeasible: bool,
}

/// Context attributes that are times: those of TS 28.312, and as templates spell them.
pub const ATTRIBUTES: [&str; 6] = [
    "ServiceStartTime",
    "ServiceEndTime",
    "StartTime",
    "TargetAssuranceTime",
    "service_start_time",
    "service_end_time",
];

impl Window {
    /// The window of an intent, from its own contexts and its expectations'.
    ///
    /// # Errors
    /// Every context that is not a time, or differs from one before it, and a start that is not before the end.
    pub fn of(intent: &Intent) -> Result<Self, Vec<Wrong>> {
        let (mut window, mut wrong) = (Self::default(), vec![]);
        let own = intent.intent_contexts.iter().enumerate().map(|(i, c)| (format!("intentContexts[{i}]"), c));
        let theirs = intent.intent_expectations.iter().enumerate().flat_map(|(i, e)| {
            let contexts = e.expectation_contexts.iter().enumerate();
            contexts.map(move |(j, c)| (format!("intentExpectations[{i}].expectationContexts[{j}]"), c))
        });
        let mut last = String::new();
        for (path, context) in own.chain(theirs).filter(|(_, c)| is_time(&c.context_attribute)) {
            if let Err(reason) = window.take(context) {
                wrong.push(Wrong { path: format!("{path}.contextValueRange"), reason, infeasible: false });
            }
            last = format!("{path}.contextValueRange");
        }
        if let (Some(start), Some(end)) = (window.start, window.end)
            && start >= end
            && wrong.is_empty()
        {
            let reason = format!("it would end at {end}, not after its start at {start}");
            wrong.push(Wrong { path: last, reason, infeasible: true });
        }
        if wrong.is_empty() { Ok(window) } else { Err(wrong) }
    }

    fn take(&mut self, context: &Context) -> Result<(), String> {
        if !matches!(context.context_condition.as_str(), "" | "IS_EQUAL_TO") {
            return Err(format!("a time takes IS_EQUAL_TO, not {:.64}", context.context_condition));
        }
        let text = context.context_value_range.as_str();
        match context.context_attribute.as_str() {
            "ServiceStartTime" | "StartTime" | "service_start_time" => set(&mut self.start, text, "start"),
            "ServiceEndTime" | "service_end_time" => set(&mut self.end, text, "end"),
            _ => {
                let window = json::value_of(text);
                let at = |name: &str| window.as_ref().and_then(|w| w.get(name)).and_then(|v| v.as_str());
                if at("startTime").is_none() && at("endTime").is_none() {
                    return Err("it is not a time window".into());
                }
                at("startTime").map_or(Ok(()), |text| set(&mut self.start, text, "start"))?;
                at("endTime").map_or(Ok(()), |text| set(&mut self.end, text, "end"))
            }
        }
    }
}

/// Is this context a time?
pub fn is_time(attribute: &str) -> bool {
    ATTRIBUTES.contains(&attribute)
}

/// The context that says when an intent starts.
pub fn start_context(at: Timestamp) -> Context {
    context("ServiceStartTime", at)
}

/// The context that says when an intent ends.
pub fn end_context(at: Timestamp) -> Context {
    context("ServiceEndTime", at)
}

fn context(attribute: &str, at: Timestamp) -> Context {
    Context {
        context_attribute: attribute.into(),
        context_condition: "IS_EQUAL_TO".into(),
        context_value_range: at.to_string(),
        id: 0,
    }
}

fn set(slot: &mut Option<Timestamp>, text: &str, what: &str) -> Result<(), String> {
    let time: Timestamp = text.parse()?;
    match slot {
        Some(other) if *other != time => Err(format!("an intent has one {what}, and {other} is it already")),
        _ => {
            *slot = Some(time);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::intent::IntentExpectation;

    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Intent {
        let contexts = pairs.iter().map(|(attribute, value)| Context {
            context_attribute: (*attribute).into(),
            context_condition: "IS_EQUAL_TO".into(),
            context_value_range: (*value).into(),
            id: 0,
        });
        Intent { intent_contexts: contexts.collect(), ..Default::default() }
    }

    fn at(text: &str) -> Option<Timestamp> {
        Some(text.parse().unwrap())
    }

    const ONE: &str = "2027-01-01T00:00:00Z";
    const TWO: &str = "2027-01-02T00:00:00Z";

    #[test]
    fn times_are_read_in_every_spelling_and_from_expectations() {
        assert_eq!(Window::of(&with(&[])), Ok(Window::default()));
        let both = Window { start: at(ONE), end: at(TWO) };
        assert_eq!(Window::of(&with(&[("ServiceStartTime", ONE), ("ServiceEndTime", TWO)])), Ok(both));
        assert_eq!(Window::of(&with(&[("service_start_time", ONE), ("service_end_time", TWO)])), Ok(both));
        let window = format!("{{\"startTime\":\"{ONE}\",\"endTime\":\"{TWO}\"}}");
        assert_eq!(Window::of(&with(&[("TargetAssuranceTime", &window)])), Ok(both));
        let inner = with(&[("ServiceEndTime", TWO)]).intent_contexts;
        let mut outer = with(&[("StartTime", ONE)]);
        outer.intent_expectations = vec![IntentExpectation { expectation_contexts: inner, ..Default::default() }];
        assert_eq!(Window::of(&outer), Ok(both));
        let shifted = Window::of(&with(&[("ServiceStartTime", "2027-01-01T02:00:00+02:00")])).unwrap();
        assert_eq!(shifted.start, at(ONE));
    }

    #[test]
    fn times_out_of_order_cannot_be_met_and_what_is_no_time_is_wrong() {
        let wrong = |pairs: &[(&str, &str)]| Window::of(&with(pairs)).unwrap_err().remove(0);
        let order = wrong(&[("ServiceStartTime", TWO), ("ServiceEndTime", ONE)]);
        assert!(order.infeasible && order.path == "intentContexts[1].contextValueRange", "{order:?}");
        for bad in ["", "tomorrow", "2027-01-01", "2027-01-01T00:00:00", "2027-13-01T00:00:00Z"] {
            let found = wrong(&[("ServiceEndTime", bad)]);
            assert!(!found.infeasible && found.reason.contains("RFC 3339"), "{bad} {found:?}");
        }
        assert!(wrong(&[("StartTime", ONE), ("ServiceStartTime", TWO)]).reason.contains("one start"));
        assert!(wrong(&[("TargetAssuranceTime", "[]")]).reason.contains("time window"));
    }
}
