//! The raw sides of the parts `stores` and `queries`: what somebody would write who has one database, one kind of data, and
//! no positions, labels of any name, migrations or limits to keep.

use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use cdrs_tokio::{
    cluster::{
        NodeTcpConfigBuilder, TcpConnectionManager,
        session::{Session, SessionBuilder as _, TcpSessionBuilder},
    },
    load_balancing::RoundRobinLoadBalancingStrategy,
    query::{PreparedQuery, QueryValues},
    statement::StatementParamsBuilder,
    transport::TransportTcp,
    types::{ByName as _, blob::Blob, value::Value},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use mongodb::bson::{Binary, Document as Bsons, doc, spec::BinarySubtype};

/// A document as it is written by hand.
pub(super) struct Plain {
    pub(super) id: String,
    pub(super) indexes: Vec<String>,
    pub(super) body: Vec<u8>,
}

/// A collection of MongoDB.
pub(super) struct Mongo(mongodb::Database);

impl Mongo {
    pub(super) async fn connect(url: &str) -> anyhow::Result<Self> {
        let client = mongodb::Client::with_uri_str(url).await.context("connect to MongoDB")?;
        Ok(Self(client.default_database().context("the URL has no database")?))
    }

    /// An empty collection with the same index as ours.
    pub(super) async fn make(&self, name: &str) -> anyhow::Result<()> {
        let keys =
            doc! { "createIndexes": name, "indexes": [{ "key": { "indexes": 1, "_id": 1 }, "name": "indexes" }] };
        self.0.run_command(keys).await.context("make an index")?;
        Ok(())
    }

    /// Each document over the one of its id, if there is one; safe from a crash of the server once it answers.
    pub(super) async fn write(&self, name: &str, documents: Vec<Plain>) -> anyhow::Result<()> {
        let update = |Plain { id, indexes, body }| {
            let body = Binary { subtype: BinarySubtype::Generic, bytes: body };
            doc! { "q": { "_id": id }, "u": { "$set": { "indexes": indexes, "body": body } }, "upsert": true }
        };
        let updates: Vec<Bsons> = documents.into_iter().map(update).collect();
        let answer = self
            .0
            .run_command(doc! { "update": name, "updates": updates, "ordered": false, "writeConcern": { "j": true } })
            .await;
        let answer = answer.context("write documents")?;
        anyhow::ensure!(!answer.contains_key("writeErrors"), "{answer}");
        Ok(())
    }

    /// Bodies of the first documents of an indexed value, by id.
    pub(super) async fn page(&self, name: &str, index: &str, limit: i64) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let collection = self.0.collection::<Bsons>(name);
        let found = collection.find(doc! { "indexes": index }).sort(doc! { "_id": 1 }).limit(limit).await?;
        let found: Vec<Bsons> = found.try_collect().await.context("list documents")?;
        let row = |mut one: Bsons| {
            let id = one.get_str("_id").context("a document without id")?.to_owned();
            match one.remove("body") {
                Some(mongodb::bson::Bson::Binary(body)) => Ok((id, body.bytes)),
                _ => Err(anyhow!("a document without body")),
            }
        };
        found.into_iter().map(row).collect()
    }
}

type Link =
    Session<TransportTcp, TcpConnectionManager, RoundRobinLoadBalancingStrategy<TransportTcp, TcpConnectionManager>>;

/// Statements that are under way at once.
const AT_ONCE: usize = 128;
const HOUR_NANOS: i64 = 3_600_000_000_000;

/// A version as it is written by hand.
pub(super) struct Row {
    pub(super) key: Arc<str>,
    pub(super) at_nanos: i64,
    pub(super) version: i64,
    pub(super) body: Vec<u8>,
}

/// A table of Cassandra with the key that ours has.
pub(super) struct Cassandra {
    link: Link,
    insert: PreparedQuery,
    hour: PreparedQuery,
}

impl Cassandra {
    /// The keyspace is made if it is missing, the table is empty.
    pub(super) async fn connect(address: std::net::SocketAddr) -> anyhow::Result<Self> {
        let node = NodeTcpConfigBuilder::new().with_contact_point(address.into()).build().await?;
        let session = TcpSessionBuilder::new(RoundRobinLoadBalancingStrategy::new(), node);
        let link = session.with_transport_buffer_size(64 << 10).build().await.context("connect to Cassandra")?;
        link.query(
            "CREATE KEYSPACE IF NOT EXISTS by_hand WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}",
        )
        .await?;
        link.query(
            "CREATE TABLE IF NOT EXISTS by_hand.versions (history text, key text, hour bigint, at bigint, version bigint, \
             body blob, PRIMARY KEY ((history, key, hour), at, version)) \
             WITH CLUSTERING ORDER BY (at DESC, version DESC)",
        )
        .await?;
        let insert = "INSERT INTO by_hand.versions (history, key, hour, at, version, body) VALUES (?, ?, ?, ?, ?, ?)";
        let of = "history = ? AND key = ? AND hour = ?";
        let hour = format!("SELECT at, version, body FROM by_hand.versions WHERE {of}");
        Ok(Self { insert: link.prepare(insert).await?, hour: link.prepare(hour).await?, link })
    }

    pub(super) async fn write(&self, history: &str, rows: &[Row]) -> anyhow::Result<()> {
        let put = |row: &Row| {
            let values: Vec<Value> = vec![
                history.into(),
                (&*row.key).into(),
                row.at_nanos.div_euclid(HOUR_NANOS).into(),
                row.at_nanos.into(),
                row.version.into(),
                Blob::from(row.body.clone()).into(),
            ];
            self.link.exec_with_values(&self.insert, QueryValues::SimpleValues(values))
        };
        let writing = stream::iter(rows.iter().map(put)).buffer_unordered(AT_ONCE);
        writing.try_for_each(|_| async { Ok(()) }).await.context("write versions")
    }

    /// Versions of a thing in these hours, the newest first.
    pub(super) async fn list(&self, history: &str, key: &str, hours: &[i64]) -> anyhow::Result<Vec<(i64, Vec<u8>)>> {
        let mut found = vec![];
        for hour in hours {
            let mut state = None;
            loop {
                let values: Vec<Value> = vec![history.into(), key.into(), (*hour).into()];
                let mut parameters =
                    StatementParamsBuilder::new().with_values(QueryValues::SimpleValues(values)).with_page_size(5_000);
                if let Some(state) = state.take() {
                    parameters = parameters.with_paging_state(state);
                }
                let answer = self.link.exec_with_params(&self.hour, &parameters.build()).await?;
                let body = answer.response_body()?;
                state = body.as_rows_metadata().and_then(|metadata| metadata.paging_state.clone());
                for row in body.into_rows().unwrap_or_default() {
                    let version: i64 = row.r_by_name("version")?;
                    let body: Blob = row.r_by_name("body")?;
                    found.push((version, body.into_vec()));
                }
                if state.is_none() {
                    break;
                }
            }
        }
        Ok(found)
    }
}

/// A bucket of InfluxDB, or VictoriaMetrics, which takes the same writes.
pub(super) struct Influx {
    client: influxdb2::Client,
    bucket: String,
}

impl Influx {
    pub(super) fn new(address: std::net::SocketAddr, bucket: &str) -> Self {
        let client = influxdb2::Client::new(format!("http://{address}"), "test", "secret-token");
        Self { client, bucket: bucket.to_owned() }
    }

    /// Makes the bucket.
    pub(super) async fn make(&self) -> anyhow::Result<()> {
        let found =
            self.client.list_organizations(influxdb2::api::organization::ListOrganizationRequest::default()).await?;
        let org = found.orgs.into_iter().find_map(|org| org.id).context("InfluxDB has no organisation")?;
        let request = influxdb2::models::PostBucketRequest::new(org, self.bucket.clone());
        self.client.create_bucket(Some(request)).await.context("make a bucket")
    }

    /// Lines with times in milliseconds, 5,000 a request.
    pub(super) async fn write(&self, lines: String) -> anyhow::Result<()> {
        let precision = influxdb2::api::write::TimestampPrecision::Milliseconds;
        let writing = self.client.write_line_protocol_with_precision("test", &self.bucket, lines, precision);
        writing.await.context("write points")
    }

    /// Lines with times in nanoseconds.
    pub(super) async fn write_nanos(&self, lines: String) -> anyhow::Result<()> {
        self.client.write_line_protocol("test", &self.bucket, lines).await.context("write points")
    }

    /// Times and values that a question of Flux finds.
    pub(super) async fn ask(&self, flux: String) -> anyhow::Result<Vec<(i64, f64)>> {
        use fallible_iterator::FallibleIterator as _;
        use influxdb2_structmap::value::Value;
        let found = self.client.query_raw_iter(Some(influxdb2::models::Query::new(flux))).await?;
        let row = |mut record: influxdb2::api::query::FluxRecord| match (
            record.values.remove("_time"),
            record.values.remove("_value"),
        ) {
            (Some(Value::TimeRFC(time)), Some(Value::Double(value))) => {
                Ok((time.timestamp_nanos_opt().unwrap_or_default(), *value))
            }
            _ => Ok((0, f64::NAN)),
        };
        found.result().map(row).collect().context("query series")
    }
}
