//! Series in InfluxDB 2: a measurement per name, in one bucket that keeps everything until it is forgotten.
//!
//! A point is a line `<name>,series=<series>,<label>=<text> <value>=<number> <time>`; what is written again takes the
//! place of itself. Positions are points of `continuum_applied` at time 0, and the schema one of `continuum_schema`.
//! Names and labels have everything but letters, digits and a few signs of ASCII replaced by `%XX`: then neither the
//! line protocol nor Flux nor a delete's predicate has anything to escape.
//!
//! The crate `influxdb2` speaks HTTP/1.1 without TLS: the server belongs on this machine, or behind a proxy that adds it.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use chrono::{DateTime, NaiveDateTime};
use fallible_iterator::FallibleIterator as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use influxdb2::{
    Client, ClientBuilder, RequestError,
    api::{buckets::ListBucketsRequest, organization::ListOrganizationRequest, write::TimestampPrecision},
    models::{PostBucketRequest, Query},
};
use influxdb2_structmap::value::Value;
use mesh_proto::Timestamp;

use crate::{
    Answer, Applied, Columns, Error, Points, Range, lost,
    remote::{Address, Connection, Positions, failed, signed, within},
    series::{check, nanos_clamped as clamped, newest},
};

const EXPECTED: &str = "influxdb://:token@host:8086/organisation/bucket";
/// The schema that this release writes.
const SCHEMA: i64 = 1;
const SCHEMA_NAME: &str = "continuum_schema";
const APPLIED: &str = "continuum_applied";
/// Lines of one request.
const LINES_MAX: usize = 5_000;
/// Series of one question, and questions under way.
const SERIES_MAX: usize = 100;
const QUESTIONS_AT_ONCE: usize = 2;
/// Answers of the server to what it will never take: not a line, too large, outside what the bucket keeps.
const REFUSALS: [u16; 3] = [400, 413, 422];

/// A bucket of series.
pub(crate) struct Influx {
    address: Address,
    org: String,
    bucket: String,
    connection: Connection<Client>,
}

impl Influx {
    /// Does not connect yet.
    pub(crate) fn open(url: &str) -> Result<Self, Error> {
        let address = Address::parse(url, 8086, EXPECTED)?;
        let [org, bucket] = address.path.as_slice() else { return Err(Error::Url { expected: EXPECTED }) };
        // Flux has no other way to name a bucket than a text in quotes.
        if encoded(bucket) != *bucket || bucket.is_empty() {
            return Err(Error::Url { expected: "a bucket whose name has only letters, digits and -_.:@/" });
        }
        let (org, bucket) = (org.clone(), bucket.clone());
        Ok(Self { address, org, bucket, connection: Connection::default() })
    }

    /// The series of a name.
    pub(crate) fn series(self: &Arc<Self>, name: &str) -> Series {
        Series { influx: self.clone(), name: name.to_owned(), positions: Positions::default() }
    }

    async fn client(&self) -> Result<Arc<Client>, Error> {
        self.connection.get(self.connect()).await
    }

    async fn connect(&self) -> Result<Client, Error> {
        let url = format!("http://{}:{}", self.address.host, self.address.port);
        let builder = ClientBuilder::new(url, self.org.clone(), self.address.password.clone());
        let client = builder.build().map_err(|error| failed("connect to InfluxDB", error))?;
        self.migrate(&client).await?;
        Ok(client)
    }

    /// Makes the bucket if it is missing, and brings it to the schema of this release; refuses that of a newer one.
    async fn migrate(&self, client: &Client) -> Result<(), Error> {
        let (name, org) = (Some(self.bucket.clone()), Some(self.org.clone()));
        let request = ListBucketsRequest { name, org: org.clone(), ..ListBucketsRequest::default() };
        let found = match within("find bucket", client.list_buckets(Some(request))).await {
            Ok(found) => found.buckets.into_iter().find(|bucket| bucket.name == self.bucket),
            Err(Error::Engine { source, .. }) if status(&*source) == Some(404) => None,
            Err(error) => return Err(error),
        };
        match found {
            Some(bucket) => {
                if let Some(rule) = bucket.retention_rules.iter().find(|rule| rule.every_seconds > 0) {
                    let problem = format!(
                        "its bucket {} drops what is older than {} s, and positions with it: let it keep everything, what is \
                         old is removed by the services",
                        self.bucket, rule.every_seconds
                    );
                    return Err(Error::Unfit { engine: "InfluxDB", problem });
                }
            }
            None => {
                let request = ListOrganizationRequest { org, ..ListOrganizationRequest::default() };
                let found = within("find organisation", client.list_organizations(request)).await?;
                let id = found.orgs.into_iter().find(|found| found.name == self.org).and_then(|found| found.id);
                let id = id.ok_or_else(|| failed("find organisation", format!("InfluxDB knows no {:?}", self.org)))?;
                let request = PostBucketRequest::new(id, self.bucket.clone());
                within("make bucket", client.create_bucket(Some(request))).await?;
            }
        }
        let found = self.marker(client, SCHEMA_NAME, "version", "kind", "series").await?.unwrap_or_default();
        if found > SCHEMA {
            return Err(Error::Newer { engine: "InfluxDB", found, known: SCHEMA });
        }
        if found < SCHEMA {
            let line = format!("{SCHEMA_NAME},kind=series version={SCHEMA}i 0\n");
            self.send(client, "write schema version", line, TimestampPrecision::Nanoseconds).await?;
        }
        Ok(())
    }

    /// A whole number that is kept at time 0.
    async fn marker(
        &self,
        client: &Client,
        name: &str,
        field: &str,
        tag: &str,
        value: &str,
    ) -> Result<Option<i64>, Error> {
        let flux = format!(
            "from(bucket: \"{}\") |> range(start: time(v: 0), stop: time(v: 1)) |> filter(fn: (r) => \
             r._measurement == \"{name}\" and r._field == \"{field}\" and r[\"{tag}\"] == \"{value}\") |> last()",
            self.bucket
        );
        let mut found = None;
        let mut rows = self.rows(client, flux).await?;
        while let Some(row) = rows.pop() {
            found = found.max(row.get("_value").and_then(Value::i64));
        }
        Ok(found)
    }

    async fn rows(&self, client: &Client, flux: String) -> Result<Vec<BTreeMap<String, Value>>, Error> {
        let found = within("query series", client.query_raw_iter(Some(Query::new(flux)))).await?;
        found.result().map(|record| Ok(record.values)).collect().map_err(|error| failed("query series", error))
    }

    async fn send(
        &self,
        client: &Client,
        operation: &'static str,
        lines: String,
        precision: TimestampPrecision,
    ) -> Result<(), Error> {
        let writing = client.write_line_protocol_with_precision(&self.org, &self.bucket, lines, precision);
        within(operation, writing).await.map_err(|error| match error {
            Error::Engine { source, .. } if status(&*source).is_some_and(|status| REFUSALS.contains(&status)) => {
                Error::Invalid(format!("InfluxDB refuses points: {source}"))
            }
            error => error,
        })
    }
}

/// The HTTP status that an error of the crate is of.
fn status(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Option<u16> {
    match error.downcast_ref::<RequestError>()? {
        RequestError::Http { status, .. } => Some(status.as_u16()),
        _ => None,
    }
}

/// A measurement.
pub(crate) struct Series {
    influx: Arc<Influx>,
    name: String,
    positions: Positions,
}

impl Series {
    async fn covers(&self, applied: &Applied) -> Result<bool, Error> {
        if let Some(covered) = self.positions.cover(applied) {
            return Ok(covered);
        }
        Ok(applied.sequence <= self.read_position(&applied.stream).await?)
    }

    fn stream_tag(&self, stream: &str) -> String {
        // One tag for both: what is asked for is one series.
        format!("{}/{}", encoded(&self.name), encoded(stream))
    }

    async fn read_position(&self, stream: &str) -> Result<u64, Error> {
        let position = match self.stored_position(stream).await? {
            Some(position) => position,
            None => {
                // From here on a database that is emptied lacks it, and advances nothing.
                self.write_position(stream, 0).await?;
                0
            }
        };
        self.positions.read(stream, position);
        Ok(position)
    }

    async fn stored_position(&self, stream: &str) -> Result<Option<u64>, Error> {
        let client = self.influx.client().await?;
        let found = self.influx.marker(&client, APPLIED, "sequence", "of", &self.stream_tag(stream)).await?;
        Ok(found.map(i64::unsigned_abs))
    }

    async fn write_position(&self, stream: &str, sequence: u64) -> Result<(), Error> {
        let line = format!("{APPLIED},of={} sequence={}i 0\n", self.stream_tag(stream), signed(sequence)?);
        let client = self.influx.client().await?;
        self.influx.send(&client, "write position", line, TimestampPrecision::Nanoseconds).await
    }

    async fn write_all(&self, all: Vec<(Applied, Points)>) -> Result<(), Error> {
        let mut refused = Ok(());
        let mut rows = vec![];
        for (applied, points) in &all {
            if self.covers(applied).await? {
                continue;
            }
            match check(points) {
                Ok(()) => rows.extend(Row::of(points)),
                Err(error) => refused = refused.and(Err(error)),
            }
        }
        // The server sorts by series and time: what comes so is taken in faster.
        rows.sort_by(|a, b| (a.series, a.labels, a.at).cmp(&(b.series, b.labels, b.at)));
        let client = self.influx.client().await?;
        for rows in rows.chunks(LINES_MAX) {
            let (unit, precision) = precision(rows);
            match self.influx.send(&client, "write points", lines(&self.name, rows, unit), precision).await {
                Err(error @ Error::Engine { .. }) => return Err(error),
                answer => refused = refused.and(answer),
            }
        }
        refused
    }

    /// The points of these series, at most [`SERIES_MAX`], in turn.
    async fn find(&self, series: &[&str], range: Range) -> Result<Vec<Vec<Columns>>, Error> {
        let (from, to) = (clamped(range.from), clamped(range.to));
        if from > to || range.limit == 0 {
            return Ok(series.iter().map(|_| vec![]).collect());
        }
        let is_one = |name: &&str| format!("r.series == \"{}\"", encoded(name));
        let asked = format!(
            "from(bucket: \"{}\") |> range(start: time(v: {from}), stop: time(v: {})) |> filter(fn: (r) => \
             r._measurement == \"{}\" and ({}))",
            self.influx.bucket,
            to.saturating_add(1),
            encoded(&self.name),
            series.iter().map(is_one).collect::<Vec<_>>().join(" or "),
        );
        const REST: &str = "drop(columns: [\"_start\", \"_stop\", \"_measurement\"])";
        // The server reads the first rows for a third of what it takes to find the newest. Mostly they are all there are.
        let first = format!("{asked} |> limit(n: {}) |> {REST}", range.limit.saturating_add(1));
        let (mut found, most) = self.ask(first).await?;
        if most > range.limit {
            // The newest rows of each field hold all fields of the newest points; what is older may lack some, and is left
            // out.
            (found, _) = self.ask(format!("{asked} |> tail(n: {}) |> {REST}", range.limit)).await?;
        }
        Ok(series.iter().map(|name| found.remove(&encoded(name)).unwrap_or_default().columns(range.limit)).collect())
    }

    /// What a question finds, by series, and the most rows that there are of one field.
    async fn ask(&self, flux: String) -> Result<(BTreeMap<String, Found>, usize), Error> {
        let client = self.influx.client().await?;
        let (mut found, mut most) = (BTreeMap::<String, Found>::new(), 0);
        let mut keep = |of: Column| {
            most = most.max(of.values.len());
            found.entry(of.series).or_default().add(of.labels, of.field, of.values);
        };
        // Rows of one table follow each other.
        let mut last = Column::default();
        for mut row in self.influx.rows(&client, flux).await? {
            let (time, field, value) = (row.remove("_time"), row.remove("_field"), row.remove("_value"));
            let (Some(Value::TimeRFC(time)), Some(Value::String(field)), Some(value)) = (time, field, value) else {
                continue;
            };
            let (Some(at), Some(value)) = (time.timestamp_nanos_opt(), value.f64()) else { continue };
            let Some(Value::String(series)) = row.remove("series") else { continue };
            row.remove("table");
            row.remove("result");
            if !last.is_of(&series, &field, &row) {
                let labels = row.into_iter().filter_map(|(name, value)| Some((name, value.string()?))).collect();
                keep(std::mem::replace(&mut last, Column { series, field, labels, values: vec![] }));
            }
            last.values.push((at, value));
        }
        if !last.values.is_empty() {
            keep(last);
        }
        Ok((found, most))
    }

    async fn find_all(&self, series: &[&str], range: Range) -> Result<Vec<Vec<Columns>>, Error> {
        let ask = |first: usize| {
            let last = (first + SERIES_MAX).min(series.len());
            self.find(&series[first..last], range)
        };
        let asked = stream::iter((0..series.len()).step_by(SERIES_MAX)).map(ask).buffered(QUESTIONS_AT_ONCE);
        asked.try_concat().await
    }

    /// Removes what is older, of one series or of all.
    async fn remove(&self, series: Option<&str>, before: Timestamp) -> Result<(), Error> {
        // Whole seconds, with the end of the range: none of what is to stay.
        let stop = clamped(before).saturating_sub(1).div_euclid(1_000_000_000) - 1;
        let (Some(start), Some(stop)) = (second(i64::MIN / 1_000_000_000 + 1), second(stop)) else { return Ok(()) };
        if stop <= start {
            return Ok(());
        }
        let client = self.influx.client().await?;
        let mut predicate = format!("_measurement=\"{}\"", encoded(&self.name));
        if let Some(series) = series {
            // Bare, `series` is a word of the predicates' language.
            let _ = write!(predicate, " AND \"series\"=\"{}\"", encoded(series));
        }
        within("forget points", client.delete(&self.influx.bucket, start, stop, Some(predicate))).await
    }

    async fn move_on(&self, from: u64, applied: &Applied) -> Result<(), Error> {
        if self.covers(applied).await? {
            return Ok(());
        }
        // There are no conditional writes: what is emptied between this question and the write is not seen.
        let position = self.stored_position(&applied.stream).await?;
        if position.is_none_or(|position| position < from) {
            return Err(lost(applied, from, position.unwrap_or_default()));
        }
        self.write_position(&applied.stream, applied.sequence).await?;
        self.positions.read(&applied.stream, applied.sequence);
        Ok(())
    }
}

type Labels = BTreeMap<String, String>;
/// The values of each field with their times.
type Fields = BTreeMap<String, Vec<(i64, f64)>>;

/// Rows of an answer that are of one series, field and labels.
#[derive(Default)]
struct Column {
    series: String,
    field: String,
    labels: Labels,
    values: Vec<(i64, f64)>,
}

impl Column {
    /// Is a row of them, whose other columns are its labels?
    fn is_of(&self, series: &str, field: &str, row: &BTreeMap<String, Value>) -> bool {
        let texts = row.iter().filter_map(|(name, value)| match value {
            Value::String(text) => Some((name, text)),
            _ => None,
        });
        self.series == series && self.field == field && self.labels.iter().eq(texts)
    }
}

/// What an answer holds of one series, by labels.
#[derive(Default)]
struct Found(BTreeMap<Labels, Fields>);

impl Found {
    fn add(&mut self, labels: Labels, field: String, values: Vec<(i64, f64)>) {
        self.0.entry(labels).or_default().entry(field).or_default().extend(values);
    }

    /// The newest points: those that have the same labels and fields as columns.
    fn columns(self, limit: usize) -> Vec<Columns> {
        let mut all = vec![];
        for (labels, fields) in self.0 {
            let labels: Labels = labels.into_iter().map(|(name, value)| (decoded(&name), decoded(&value))).collect();
            let labels = Arc::new(labels);
            // Their order is that of their names, not of their encoded ones.
            let fields: Fields = fields.into_iter().map(|(field, values)| (decoded(&field), values)).collect();
            let names: Vec<&String> = fields.keys().collect();
            let of_field = |(place, values): (usize, &Vec<(i64, f64)>)| {
                values.iter().map(|(at, value)| (*at, place, *value)).collect::<Vec<_>>()
            };
            let mut values: Vec<(i64, usize, f64)> = fields.values().enumerate().flat_map(of_field).collect();
            values.sort_by_key(|(at, place, _)| (*at, *place));
            let (mut tables, mut by_places) = (Vec::<Columns>::new(), BTreeMap::<Vec<usize>, usize>::new());
            // Most points have the fields of the one before.
            let (mut places, mut table) = (vec![], 0);
            for point in values.chunk_by(|a, b| a.0 == b.0) {
                if !point.iter().map(|(_, place, _)| place).eq(&places) {
                    places = point.iter().map(|(_, place, _)| *place).collect();
                    table = *by_places.entry(places.clone()).or_insert_with(|| {
                        let names = places.iter().map(|place| names[*place].clone()).collect();
                        tables.push(Columns { labels: labels.clone(), names, at_nanos: vec![], values: vec![] });
                        tables.len() - 1
                    });
                }
                tables[table].at_nanos.push(point[0].0);
                tables[table].values.extend(point.iter().map(|(.., value)| *value));
            }
            all.extend(tables);
        }
        all.sort_by(|a, b| (&a.labels, &a.names).cmp(&(&b.labels, &b.names)));
        newest(&mut all, limit);
        all
    }
}

/// One point of a series.
#[derive(Clone, Copy)]
struct Row<'a> {
    series: &'a str,
    labels: &'a Labels,
    names: &'a [String],
    /// Nanoseconds since 1970.
    at: i64,
    values: &'a [f64],
}

impl<'a> Row<'a> {
    fn of(Points { series, columns }: &'a Points) -> impl Iterator<Item = Self> {
        columns.iter().flat_map(move |of| {
            of.rows().map(move |(at, values)| Self { series, labels: &of.labels, names: &of.names, at, values })
        })
    }
}

/// The coarsest unit of time that loses nothing, nanoseconds.
fn precision(rows: &[Row<'_>]) -> (i64, TimestampPrecision) {
    if rows.iter().all(|row| row.at % 1_000_000 == 0) {
        (1_000_000, TimestampPrecision::Milliseconds)
    } else {
        (1, TimestampPrecision::Nanoseconds)
    }
}

/// Lines of these points, with times in a unit of that many nanoseconds.
fn lines(name: &str, rows: &[Row<'_>], unit: i64) -> String {
    let mut lines = String::with_capacity(rows.len() * 200);
    let name = encoded(name);
    // Neighbours mostly have the same series and labels.
    let (mut head, mut of) = (String::new(), None);
    for row in rows {
        if of != Some((row.series, row.labels)) {
            head.clear();
            let _ = write!(head, "{name},series={}", encoded(row.series));
            for (label, value) in row.labels {
                let _ = write!(head, ",{}={}", encoded_key(label), encoded(value));
            }
            of = Some((row.series, row.labels));
        }
        lines.push_str(&head);
        for (number, (value, of)) in row.names.iter().zip(row.values).enumerate() {
            lines.push(if number == 0 { ' ' } else { ',' });
            push_encoded(&mut lines, value, is_reserved(value));
            let _ = write!(lines, "={of:?}");
        }
        let _ = writeln!(lines, " {}", row.at / unit);
    }
    lines
}

/// The lines that a write sends for these points, with times in nanoseconds, in the given order. For tests and measurements
/// that send them by other ways; what InfluxDB does not keep is left out.
pub fn influx_lines<'a>(name: &str, points: impl IntoIterator<Item = &'a Points>) -> String {
    let rows = points.into_iter().filter(|points| check(points).is_ok()).flat_map(Row::of);
    lines(name, &rows.collect::<Vec<_>>(), 1)
}

fn second(seconds: i64) -> Option<NaiveDateTime> {
    DateTime::from_timestamp(seconds, 0).map(|time| time.naive_utc())
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.:@/".contains(&byte)
}

/// A name that means something as a tag, a field, or a column of an answer.
fn is_reserved(name: &str) -> bool {
    name.starts_with('_') || matches!(name, "series" | "time" | "table" | "result" | "error" | "reference")
}

/// A text as it is written in lines and in Flux; `%` if it is empty.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    push_encoded(&mut encoded, text, false);
    encoded
}

/// The same as the name of a tag.
fn encoded_key(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    push_encoded(&mut encoded, name, is_reserved(name));
    encoded
}

fn push_encoded(to: &mut String, text: &str, first_too: bool) {
    if text.is_empty() {
        to.push('%');
        return;
    }
    for (place, byte) in text.bytes().enumerate() {
        if is_plain(byte) && !(first_too && place == 0) {
            to.push(char::from(byte));
        } else {
            let _ = write!(to, "%{byte:02X}");
        }
    }
}

fn decoded(text: &str) -> String {
    if text == "%" {
        return String::new();
    }
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

impl crate::Series for Series {
    fn write<'a>(&'a self, points: Vec<(Applied, Points)>) -> Answer<'a, ()> {
        Box::pin(async move { self.influx.connection.after(self.write_all(points).await).await })
    }

    fn columns<'a>(&'a self, series: &'a [&'a str], range: Range) -> Answer<'a, Vec<Vec<Columns>>> {
        Box::pin(async move { self.influx.connection.after(self.find_all(series, range).await).await })
    }

    fn forget(&self, before: Timestamp) -> Answer<'_, ()> {
        Box::pin(async move { self.influx.connection.after(self.remove(None, before).await).await })
    }

    fn forget_series<'a>(&'a self, series: &'a str, before: Timestamp) -> Answer<'a, ()> {
        Box::pin(async move { self.influx.connection.after(self.remove(Some(series), before).await).await })
    }

    fn advance<'a>(&'a self, from: u64, applied: &'a Applied) -> Answer<'a, ()> {
        Box::pin(async move { self.influx.connection.after(self.move_on(from, applied).await).await })
    }

    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64> {
        Box::pin(async move { self.influx.connection.after(self.read_position(stream).await).await })
    }

    fn is_remote(&self) -> bool {
        true
    }
}
