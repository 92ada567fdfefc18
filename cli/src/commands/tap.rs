//! `tap`: live messages of every stream that a subject touches, decoded, with their headers.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use futures::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use mesh_bus::Tail;
use mesh_core::Stored;
use mesh_proto::{contract::matches, shown};
use mesh_why::{address, body, describe::writer};
use serde_json::{Value as Json, json};

use super::dead;
use crate::{
    context::Context,
    output::{self, Format, clock, event, plain},
};

/// Options of `tap`.
#[derive(Debug, Args)]
pub struct TapOptions {
    /// Subject, with `*` and `>` as in NATS.
    #[arg(default_value = ">")]
    pub subject: String,
    /// Only messages in whose decoded body this field has this value, for example `targets.0.measured=true`; may be repeated.
    #[arg(long, value_name = "FIELD=VALUE")]
    pub filter: Vec<String>,
    /// One JSON object a line.
    #[arg(long)]
    pub json_lines: bool,
    /// End after this number of messages.
    #[arg(long)]
    pub count: Option<u64>,
}

/// Shows messages as they are stored, until interrupted or as many as asked for were seen.
pub async fn run(context: &Context<'_>, options: TapOptions) -> anyhow::Result<ExitCode> {
    let filters: Vec<(String, String)> = options.filter.iter().map(|text| condition(text)).collect::<Result<_, _>>()?;
    let streams: Vec<_> = mesh_proto::contract()
        .streams
        .iter()
        .filter(|s| touch(&s.subject, &options.subject) && own(&s.name, &options.subject))
        .collect();
    if streams.is_empty() {
        bail!(
            "no stream stores anything on {}; the subjects are in schemas/ and `continuum status -o json`",
            options.subject
        );
    }
    let client = context.client().await?;
    let mut next = FuturesUnordered::new();
    for stream in &streams {
        let log = client.bus().log(&stream.name);
        let from = log.last_sequence().await.with_context(|| format!("read the end of {}", stream.name))? + 1;
        next.push(step(log.tail(&stream.subject, from)).boxed());
    }
    output::note(format!("listening to {}", streams.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ")));
    let format = if options.json_lines { Format::Json } else { context.format };
    let mut seen = 0;
    while options.count.is_none_or(|count| seen < count) {
        let (tail, stored) = tokio::select! {
            Some(arrived) = next.next() => arrived?,
            _ = tokio::signal::ctrl_c() => break,
            else => break,
        };
        next.push(step(tail).boxed());
        if !matches(&options.subject, &stored.subject) {
            continue;
        }
        let data = body(&stored);
        if filters.iter().all(|(path, wanted)| at(&data, path).is_some_and(|found| plain(found) == *wanted)) {
            seen += 1;
            let mut value = whole(&stored, &data);
            let mut why = String::new();
            if stored.stream == "DEAD" {
                why = dead::reason(&client, &stored).await?;
                value["reason"] = json!(why);
            }
            event(format, &value, || match why.is_empty() {
                true => text(&stored, &data),
                false => format!("{}\n    dead because: {}", text(&stored, &data), shown::line(&why)),
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn step(mut tail: Tail) -> anyhow::Result<(Tail, Stored)> {
    let stored = tail.next().await.context("listen")?;
    Ok((tail, stored))
}

/// A condition `field=value`.
fn condition(text: &str) -> anyhow::Result<(String, String)> {
    match text.split_once('=') {
        Some((path, value)) if !path.is_empty() => Ok((path.to_owned(), value.to_owned())),
        _ => bail!("--filter {text:?} is not FIELD=VALUE, for example `--filter intentId=my-intent`"),
    }
}

/// The part of a value at a path of names and positions joined by dots.
fn at<'a>(value: &'a Json, path: &str) -> Option<&'a Json> {
    path.split('.').try_fold(value, |inner, part| match inner {
        Json::Array(list) => part.parse().ok().and_then(|index: usize| list.get(index)),
        other => other.get(part),
    })
}

/// Can both filters match one subject?
fn touch(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

/// A stream of facts takes in `<area>.>` but never holds what its commands' stream does.
fn own(stream: &str, subject: &str) -> bool {
    subject.split('.').nth(1) != Some("ask") || stream.ends_with("_ASK")
}

fn whole(stored: &Stored, data: &Json) -> Json {
    let cause = stored.cause.as_ref().map(|c| json!({"stream": c.stream, "sequence": c.sequence, "id": c.id}));
    json!({
        "subject": stored.subject,
        "stream": stored.stream,
        "sequence": stored.sequence,
        "id": stored.id,
        "type": stored.message,
        "source": stored.source,
        "time": stored.time.to_string(),
        "stored": stored.stored.to_string(),
        "cause": cause,
        "traceparent": stored.traceparent,
        "data": data,
    })
}

fn text(stored: &Stored, data: &Json) -> String {
    let cause = match &stored.cause {
        Some(cause) if !cause.stream.is_empty() => format!("{}:{}", cause.stream, cause.sequence),
        Some(cause) => cause.id.clone(),
        None => "-".to_owned(),
    };
    let trace = stored.traceparent.as_deref().unwrap_or("-");
    format!(
        "{}  {}  {}\n    from {}, id {}, cause {}, trace {}\n    {data}",
        clock(stored.stored),
        address(stored),
        stored.subject,
        shown::line(&writer(stored)),
        shown::line(&stored.id),
        shown::line(&cause),
        shown::line(trace),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_reaches_into_lists_and_objects() {
        let data = json!({"targets": [{"measured": true}], "intentId": "a"});
        assert_eq!(at(&data, "targets.0.measured").map(plain).as_deref(), Some("true"));
        assert_eq!(at(&data, "intentId").map(plain).as_deref(), Some("a"));
        assert_eq!(at(&data, "targets.1.measured"), None);
        assert_eq!(condition("a.b=c=d").unwrap(), ("a.b".to_owned(), "c=d".to_owned()));
        assert!(condition("nothing").is_err());
    }

    #[test]
    fn a_subject_selects_the_streams_that_can_hold_it() {
        assert!(
            touch("intent.>", ">")
                && touch("intent.>", "intent.submitted.v1.*.a")
                && touch("intent.>", "*.submitted.>")
        );
        assert!(!touch("intent.>", "twin.>") && !touch("intent.>", "intent"));
        assert!(own("INTENT_ASK", "intent.ask.>") && !own("INTENT", "intent.ask.>") && own("INTENT", "intent.*.v1.>"));
    }
}
