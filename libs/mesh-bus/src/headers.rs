//! Headers: what travels beside a body, and how it is read back.
//!
//! A publisher may send headers that the server also sets. The server appends its own, so the last value of
//! a `Nats-` header is the server's, and the first value of any other is the publisher's.

use async_nats::{HeaderMap, HeaderName, HeaderValue, Message};
use bytes::Bytes;
use mesh_proto::{Timestamp, contract};

use mesh_core::{Cause, Outgoing, Stored};

static CE_ID: HeaderName = HeaderName::from_static("ce-id");
static CE_TYPE: HeaderName = HeaderName::from_static("ce-type");
static CE_SOURCE: HeaderName = HeaderName::from_static("ce-source");
static CE_TIME: HeaderName = HeaderName::from_static("ce-time");
static CE_SPECVERSION: HeaderName = HeaderName::from_static("ce-specversion");
static CE_DATACONTENTTYPE: HeaderName = HeaderName::from_static("ce-datacontenttype");
static CAUSE: HeaderName = HeaderName::from_static("mesh-cause");
static WORLD: HeaderName = HeaderName::from_static("mesh-world");
static DEAD_REASON: HeaderName = HeaderName::from_static("mesh-dead-reason");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static MSG_ID: HeaderName = HeaderName::from_static("Nats-Msg-Id");
static EXPECTED: HeaderName = HeaderName::from_static("Nats-Expected-Last-Subject-Sequence");
static EXPECTED_SUBJECT: HeaderName = HeaderName::from_static("Nats-Expected-Last-Subject-Sequence-Subject");
static BATCH_ID: HeaderName = HeaderName::from_static("Nats-Batch-Id");
static BATCH_SEQUENCE: HeaderName = HeaderName::from_static("Nats-Batch-Sequence");
static BATCH_COMMIT: HeaderName = HeaderName::from_static("Nats-Batch-Commit");

/// A header value; line ends, which would break the protocol, become spaces.
fn value(mut text: String) -> HeaderValue {
    if text.bytes().any(|b| b == b'\r' || b == b'\n') {
        text = text.replace(['\r', '\n'], " ");
    }
    HeaderValue::from(text)
}

/// The headers of a message published by `source`, by whose id the server knows it again.
pub(crate) fn of(message: &Outgoing, source: &str) -> HeaderMap {
    let mut headers = of_fact(message, source);
    headers.insert(MSG_ID.clone(), value(message.id.clone()));
    headers
}

/// The headers of a message that the server need not know again: that of a decision, which has a condition.
///
/// Few: each is stored, and read by everyone who reads the message. The body is protobuf unless a header says otherwise.
pub(crate) fn of_fact(message: &Outgoing, source: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut set = |name: &HeaderName, text: String| headers.insert(name.clone(), value(text));
    set(&CE_ID, message.id.clone());
    set(&CE_SPECVERSION, "1.0".to_owned());
    set(&CE_TYPE, message.message.clone());
    set(&CE_SOURCE, source.to_owned());
    set(&CE_TIME, format_time(message.time));
    if let Some(Cause { stream, sequence, id }) = &message.cause {
        set(&CAUSE, format!("{stream}:{sequence}:{id}"));
    }
    if !message.world.is_empty() {
        let positions = message.world.iter().map(|(stream, sequence)| format!("{stream}={sequence}"));
        set(&WORLD, positions.collect::<Vec<_>>().join(","));
    }
    if let Some(trace) = &message.traceparent {
        set(&TRACEPARENT, trace.clone());
    }
    headers
}

/// Makes the headers those of a dead letter: its reason, and the content type its body came with, if any.
pub(crate) fn dead(mut headers: HeaderMap, reason: &str, content_type: Option<&str>) -> HeaderMap {
    headers.insert(DEAD_REASON.clone(), value(reason.to_owned()));
    // Unknown stays unknown: whoever replays it guesses from the body, as the first reader did.
    headers.insert(CE_DATACONTENTTYPE.clone(), value(content_type.unwrap_or_default().to_owned()));
    headers
}

/// Makes a write conditional on the entity's last sequence.
pub(crate) fn expect(headers: &mut HeaderMap, entity: &str, sequence: u64) {
    headers.insert(EXPECTED.clone(), HeaderValue::from(sequence));
    headers.insert(EXPECTED_SUBJECT.clone(), value(entity.to_owned()));
}

/// Makes a message one of an atomic batch; `commit` on the last.
pub(crate) fn batch(headers: &mut HeaderMap, id: &str, position: usize, commit: bool) {
    headers.insert(BATCH_ID.clone(), value(id.to_owned()));
    headers.insert(BATCH_SEQUENCE.clone(), HeaderValue::from(position));
    if commit {
        headers.insert(BATCH_COMMIT.clone(), HeaderValue::from(1_u64));
    }
}

/// The headers of interest of one message.
#[derive(Default)]
struct Found<'a> {
    id: Option<&'a str>,
    kind: Option<&'a str>,
    source: Option<&'a str>,
    time: Option<&'a str>,
    content_type: Option<&'a str>,
    cause: Option<&'a str>,
    cause_stream: Option<&'a str>,
    cause_sequence: Option<&'a str>,
    cause_id: Option<&'a str>,
    world: Option<&'a str>,
    traceparent: Option<&'a str>,
    stream: Option<&'a str>,
    subject: Option<&'a str>,
    sequence: Option<&'a str>,
    stamp: Option<&'a str>,
    last: Option<&'a str>,
}

fn find(headers: Option<&HeaderMap>) -> Found<'_> {
    let mut found = Found::default();
    for (name, values) in headers.iter().flat_map(|h| h.iter()) {
        let name: &str = name.as_ref();
        let (first, last) = (values.first().map(HeaderValue::as_str), values.last().map(HeaderValue::as_str));
        match name {
            "ce-id" => found.id = first,
            "ce-type" => found.kind = first,
            "ce-source" => found.source = first,
            "ce-time" => found.time = first,
            "ce-datacontenttype" => found.content_type = first,
            "mesh-cause" => found.cause = first,
            // As releases up to 0.1 wrote it.
            "mesh-cause-stream" => found.cause_stream = first,
            "mesh-cause-sequence" => found.cause_sequence = first,
            "mesh-cause-id" => found.cause_id = first,
            "mesh-world" => found.world = first,
            "traceparent" => found.traceparent = first,
            "Nats-Stream" => found.stream = last,
            "Nats-Subject" => found.subject = last,
            "Nats-Sequence" => found.sequence = last,
            "Nats-Time-Stamp" => found.stamp = last,
            "Nats-Last-Sequence" => found.last = last,
            _ => {}
        }
    }
    found
}

/// Where a message is stored.
struct Place {
    stream: String,
    sequence: u64,
    subject: String,
    stored: Timestamp,
    previous_on_subject: Option<u64>,
    delivered: u64,
}

fn stored(found: &Found<'_>, place: Place, body: Bytes) -> Stored {
    let id = match found.id {
        Some(id) if !id.is_empty() => id.to_owned(),
        _ => format!("{}:{}", place.stream, place.sequence),
    };
    let message = match found.kind {
        Some(kind) if !kind.is_empty() => kind.to_owned(),
        _ => contract().event_on(&place.subject).map(|e| e.message.clone()).unwrap_or_default(),
    };
    let in_parts =
        || Some((found.cause_stream.unwrap_or_default(), found.cause_sequence.unwrap_or_default(), found.cause_id?));
    let cause = found.cause.and_then(parse_cause).or_else(in_parts).map(|(stream, sequence, id)| Cause {
        stream: stream.to_owned(),
        sequence: sequence.parse().unwrap_or_default(),
        id: id.to_owned(),
    });
    let world = found.world.map(parse_world).unwrap_or_default();
    Stored {
        id,
        message,
        time: found.time.and_then(parse_time).unwrap_or(place.stored),
        cause,
        traceparent: found.traceparent.map(str::to_owned),
        world,
        content_type: found.content_type.filter(|t| !t.is_empty()).map(str::to_owned),
        source: found.source.map(str::to_owned),
        stream: place.stream,
        sequence: place.sequence,
        subject: place.subject,
        stored: place.stored,
        previous_on_subject: place.previous_on_subject,
        delivered: place.delivered,
        body,
    }
}

/// `STREAM:SEQUENCE:ID`; an id may hold colons.
fn parse_cause(text: &str) -> Option<(&str, &str, &str)> {
    let mut parts = text.splitn(3, ':');
    Some((parts.next()?, parts.next()?, parts.next()?))
}

fn parse_world(text: &str) -> Vec<(String, u64)> {
    text.split(',')
        .filter_map(|part| part.split_once('='))
        .filter_map(|(stream, sequence)| Some((stream.to_owned(), sequence.parse().ok()?)))
        .collect()
}

/// A message that was read by direct get. `None` if it lacks the server's headers.
pub(crate) fn from_direct_get(message: Message) -> Option<Stored> {
    let found = find(message.headers.as_ref());
    let place = place(&found, None)?;
    Some(stored(&found, place, message.payload))
}

/// A message as the stream republished it. `None` if it did not come from this stream: whoever may publish on
/// a neighbouring subject can forge headers, but not the subject.
pub(crate) fn from_republished(message: Message, stream: &str) -> Option<Stored> {
    let found = find(message.headers.as_ref());
    let previous = found.last.and_then(|s| s.parse().ok());
    if found.stream != Some(stream) || found.subject != Some(message.subject.as_str()) || is_command(&message.subject) {
        return None;
    }
    let place = place(&found, previous)?;
    Some(stored(&found, place, message.payload))
}

fn is_command(subject: &str) -> bool {
    subject.split('.').nth(1) == Some("ask")
}

fn place(found: &Found<'_>, previous_on_subject: Option<u64>) -> Option<Place> {
    Some(Place {
        stream: found.stream?.to_owned(),
        sequence: found.sequence?.parse().ok()?,
        subject: found.subject?.to_owned(),
        stored: parse_time(found.stamp?)?,
        previous_on_subject,
        delivered: 1,
    })
}

/// A message that a durable delivered, with the reply on which it is acknowledged. `None` if the reply is not an
/// acknowledgement subject.
pub(crate) fn from_delivery(message: Message) -> Option<(Stored, async_nats::Subject)> {
    let reply = message.reply?;
    let delivery = parse_ack(&reply)?;
    let found = find(message.headers.as_ref());
    let place = Place {
        stream: delivery.stream.to_owned(),
        sequence: delivery.sequence,
        subject: message.subject.into_string(),
        stored: Timestamp::from_nanos(delivery.nanos),
        previous_on_subject: None,
        delivered: delivery.count,
    };
    Some((stored(&found, place, message.payload), reply))
}

struct Delivery<'a> {
    stream: &'a str,
    count: u64,
    sequence: u64,
    nanos: i128,
}

/// `$JS.ACK.<stream>.<consumer>.<count>.<stream sequence>.<consumer sequence>.<nanoseconds>.<pending>`, or the longer
/// form with domain and account before the stream and perhaps a random token at the end.
fn parse_ack(reply: &str) -> Option<Delivery<'_>> {
    let rest = reply.strip_prefix("$JS.ACK.")?;
    let skip = match rest.split('.').count() {
        7 => 0,
        9.. => 2,
        _ => return None,
    };
    let mut tokens = rest.split('.').skip(skip);
    let stream = tokens.next()?;
    let mut numbers = tokens.skip(1);
    let count = numbers.next()?.parse().ok()?;
    let sequence = numbers.next()?.parse().ok()?;
    let nanos = numbers.nth(1)?.parse().ok()?;
    Some(Delivery { stream, count, sequence, nanos })
}

/// RFC 3339. The server and we write UTC with `Z`, which is read without detours; anything else as it may come.
pub(crate) fn parse_time(text: &str) -> Option<Timestamp> {
    parse_utc(text.as_bytes()).or_else(|| text.parse().ok())
}

fn parse_utc(text: &[u8]) -> Option<Timestamp> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        text.get(range)?.iter().try_fold(0_i64, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
    };
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if text.len() < 20 || text.last() != Some(&b'Z') || marks.iter().any(|(at, mark)| text[*at] != *mark) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let fraction = 20..text.len() - 1;
    let nanos = match (text[19], fraction.len()) {
        (b'Z', _) if text.len() == 20 => 0,
        (b'.', digits @ 1..=9) => number(fraction)? * 10_i64.pow(9 - digits as u32),
        _ => return None,
    };
    // Days since 1970 in the proleptic Gregorian calendar, counted from 1 March so that leap days come last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(Timestamp { seconds: days * 86_400 + hour * 3_600 + minute * 60 + second, nanos: nanos as i32 })
}

fn format_time(time: Timestamp) -> String {
    time.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing() -> Outgoing {
        Outgoing {
            id: "an-id".into(),
            message: "continuum.intent.v1.IntentSubmitted".into(),
            stream: "INTENT".into(),
            subject: "intent.submitted.v1.local.a".into(),
            time: Timestamp::from_millis(1_795_318_929_462),
            cause: Some(Cause { stream: "INTENT_ASK".into(), sequence: 7, id: "why\r\nNats-Rollup: all".into() }),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            world: vec![("CLUSTER".into(), 12), ("WORKLOAD".into(), 40)],
            body: Bytes::from_static(b"body"),
        }
    }

    fn message(subject: &str, headers: HeaderMap) -> Message {
        Message {
            subject: subject.into(),
            reply: None,
            payload: Bytes::from_static(b"body"),
            headers: Some(headers),
            status: None,
            description: None,
            length: 0,
        }
    }

    fn server(headers: &mut HeaderMap, subject: &str, sequence: u64) {
        headers.append("Nats-Stream", "INTENT");
        headers.append("Nats-Subject", subject);
        headers.append("Nats-Sequence", sequence.to_string());
        headers.append("Nats-Time-Stamp", "2026-11-22T04:02:09.462Z");
        headers.append("Nats-Last-Sequence", "5");
    }

    #[test]
    fn what_is_sent_is_what_is_read_and_no_value_becomes_a_header() {
        let sent = outgoing();
        let mut headers = of(&sent, "intent-manager");
        expect(&mut headers, "intent.*.*.local.a", 3);
        batch(&mut headers, "b", 1, true);
        assert!(headers.get("Nats-Rollup").is_none());
        server(&mut headers, &sent.subject, 9);
        let read = from_republished(message(&sent.subject, headers), "INTENT").unwrap();
        assert_eq!((read.id.as_str(), read.message.as_str()), ("an-id", sent.message.as_str()));
        assert_eq!((read.sequence, read.previous_on_subject), (9, Some(5)));
        assert_eq!((read.time, &read.world, &read.traceparent), (sent.time, &sent.world, &sent.traceparent));
        assert_eq!(read.cause.as_ref().unwrap().id, "why  Nats-Rollup: all");
        assert_eq!(read.source.as_deref(), Some("intent-manager"));
        assert_eq!(read.protobuf().unwrap(), read.body);
    }

    #[test]
    fn a_message_without_headers_is_known_by_its_place() {
        let mut headers = HeaderMap::new();
        server(&mut headers, "intent.submitted.v1.local.a", 9);
        let read = from_direct_get(message("_INBOX.x", headers)).unwrap();
        assert_eq!((read.id.as_str(), read.message.as_str()), ("INTENT:9", "continuum.intent.v1.IntentSubmitted"));
        assert_eq!(read.time, read.stored);
        assert_eq!(read.subject, "intent.submitted.v1.local.a");
    }

    #[test]
    fn headers_of_the_server_cannot_be_forged_by_the_publisher() {
        let subject = "intent.submitted.v1.local.a";
        let mut headers = HeaderMap::new();
        headers.append("Nats-Sequence", "1");
        headers.append("Nats-Subject", "intent.refused.v1.local.b");
        server(&mut headers, subject, 9);
        let read = from_direct_get(message("_INBOX.x", headers.clone())).unwrap();
        assert_eq!((read.sequence, read.subject.as_str()), (9, subject));
        assert!(from_republished(message("intent.ask.submit.v1.local.a", headers.clone()), "INTENT").is_none());
        assert!(from_republished(message(subject, headers), "TWIN").is_none());
        let mut command = HeaderMap::new();
        server(&mut command, "intent.ask.v1.local.a", 9);
        assert!(from_republished(message("intent.ask.v1.local.a", command), "INTENT").is_none());
    }

    #[test]
    fn both_forms_of_the_acknowledgement_subject_are_read() {
        let short = parse_ack("$JS.ACK.INTENT.intents.2.41.17.1795318929462000000.5").unwrap();
        assert_eq!((short.stream, short.count, short.sequence), ("INTENT", 2, 41));
        assert_eq!(Timestamp::from_nanos(short.nanos).as_millis(), 1_795_318_929_462);
        for long in [
            "$JS.ACK.hub.ACC.INTENT.intents.2.41.17.1795318929462000000.5.xyz",
            "$JS.ACK._.ACC.INTENT.intents.2.41.17.1.5",
        ] {
            let long = parse_ack(long).unwrap();
            assert_eq!((long.stream, long.count, long.sequence), ("INTENT", 2, 41));
        }
        assert!(parse_ack("_INBOX.x").is_none());
        assert!(parse_ack("$JS.ACK.INTENT.intents.x").is_none());
    }

    #[test]
    fn the_fast_reader_of_times_agrees_with_the_general_one() {
        for text in [
            "1970-01-01T00:00:00Z",
            "2026-11-22T04:02:09.462Z",
            "2024-02-29T23:59:59.999999999Z",
            "2100-03-01T00:00:00.000000001Z",
            "1969-12-31T23:59:59.5Z",
            "2000-02-29T12:00:00Z",
        ] {
            assert_eq!(parse_utc(text.as_bytes()), Some(text.parse().unwrap()), "{text}");
        }
        for other in ["2026-11-22T05:02:09.462+01:00", "2026-11-22 04:02:09Z", "2026-13-22T04:02:09Z", "", "Z", "x"] {
            assert_eq!(parse_utc(other.as_bytes()), None, "{other}");
        }
        assert_eq!(parse_time("2026-11-22T05:02:09.462+01:00"), parse_time("2026-11-22T04:02:09.462Z"));
    }

    #[test]
    fn a_cause_is_read_in_one_header_and_in_the_three_of_earlier_releases() {
        let subject = "intent.submitted.v1.local.a";
        let read = |given: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            given.iter().for_each(|(name, text)| headers.insert(*name, *text));
            server(&mut headers, subject, 9);
            from_direct_get(message("_INBOX.x", headers)).unwrap().cause
        };
        let expected = Cause { stream: "INTENT_ASK".into(), sequence: 7, id: "due:2026-11-22T04:02:09Z".into() };
        assert_eq!(read(&[("mesh-cause", "INTENT_ASK:7:due:2026-11-22T04:02:09Z")]), Some(expected.clone()));
        let before = [
            ("mesh-cause-stream", "INTENT_ASK"),
            ("mesh-cause-sequence", "7"),
            ("mesh-cause-id", "due:2026-11-22T04:02:09Z"),
        ];
        assert_eq!(read(&before), Some(expected));
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[("mesh-cause", "forged")]), None);
        let timeless = read(&[("mesh-cause", ":0:due:x")]).unwrap();
        assert_eq!((timeless.stream.as_str(), timeless.sequence, timeless.id.as_str()), ("", 0, "due:x"));
    }
}
