//! The ledger on a real bus, with accounts in a real MongoDB and entries in a real Cassandra: asked for, lost and made again.

#![cfg(test)]

use std::{fmt::Debug, path::Path};

use accounting::Config;
use bytes::Bytes;
use ledger::{Ledger, MAIN, cluster_account, note::Signer, service_account, tariff, tree::leaf_hash};
use mesh_bus::{Bus, Written};
use mesh_core::{Decision, Outgoing};
use mesh_kit::{Running, Settings, Stopped};
use mesh_proto::{
    Event as _, Timestamp,
    account::{
        ConsistencyRequest, EntriesRequest, HeadRequest, InclusionRequest, Posted, Region, StatementRequest,
        account_queries_client::AccountQueriesClient,
    },
    account_head::HeadSigned,
    query::ListRequest,
    usage::UsageClosed,
};
use mesh_test::{Database, Kind, TestBus, now, soon, until};
use prost::Message as _;
use tonic::{Code, transport::Channel};

type Client = AccountQueriesClient<Channel>;

/// Clusters and workloads that have accounts.
const ACCOUNTS: u64 = 5;
/// Entries in one write.
const AT_ONCE: u64 = 64;

/// Writes entries as the ledger's rules make them.
#[derive(Default)]
struct Writer {
    ledger: Ledger,
    sequence: u64,
}

impl Writer {
    fn next(&mut self) -> Posted {
        let (number, at) = (self.ledger.size(), now());
        let of = number % ACCOUNTS;
        let entry = if number == 0 {
            self.ledger.opening(tariff::default_tariff(), at)
        } else if number <= ACCOUNTS {
            self.ledger.registration(&cluster_account(&format!("c{of}")), at).map(Option::unwrap)
        } else if number <= 2 * ACCOUNTS {
            self.ledger.registration(&service_account("local", &format!("w{of}")), at).map(Option::unwrap)
        } else if number == 2 * ACCOUNTS + 1 {
            self.ledger.region_set(Region { name: "r".into(), ..Region::default() }, at)
        } else if number.is_multiple_of(7) {
            self.ledger.top_up(&service_account("local", &format!("w{of}")), number, at)
        } else {
            let usage = UsageClosed {
                cluster_id: format!("c{}", number % 3),
                instance_id: format!("i{of}"),
                owner: "local".into(),
                workload: format!("w{of}"),
                region: "r".into(),
                window: number,
                window_ms: 5_000,
                begin: Some(Timestamp::from_millis(number.cast_signed() * 5_000)),
                end: Some(Timestamp::from_millis((number.cast_signed() + 1) * 5_000)),
                cpu_ms: 4_500,
                samples: 5,
                cluster_cpu_ms: 5_000,
                cluster_memory_byte_seconds: 1_000_000,
                cluster_cpu_capacity_ms: 5_000,
                cluster_memory_capacity_byte_seconds: 1_000_000_000,
                ..UsageClosed::default()
            };
            self.ledger.window(usage, at).map(Option::unwrap)
        };
        let entry = entry.unwrap();
        let bytes = Bytes::from(entry.encode_to_vec());
        self.ledger.fold(&entry, leaf_hash(&bytes));
        let root = Bytes::copy_from_slice(&self.ledger.tree.root());
        Posted { ledger: MAIN.into(), index: number, entry: bytes, root, command_id: String::new() }
    }

    /// Writes entries until the ledger has this size.
    async fn fill(&mut self, bus: &Bus, size: u64) {
        while self.ledger.size() < size {
            let (mut messages, at) = (vec![], now());
            for _ in 0..AT_ONCE.min(size - self.ledger.size()) {
                let posted = self.next();
                messages.push(Outgoing::new(&posted, format!("posted-{}", posted.index), at).unwrap());
            }
            let decision = Decision { entity: "account.*.*.main".into(), expected: self.sequence, messages };
            let written = bus.writer("ACCOUNT").write(decision).await.unwrap();
            assert!(matches!(written, Written::Stored { .. }), "{written:?}");
            self.sequence = bus.log("ACCOUNT").last("account.*.*.main").await.unwrap().unwrap().sequence;
        }
    }
}

fn said<T: Debug>(question: impl Debug, answer: Result<tonic::Response<T>, tonic::Status>) -> String {
    let answer = answer.map(tonic::Response::into_inner);
    format!("{question:?}: {:?}", answer.map_err(|status| (status.code(), status.message().to_owned())))
}

/// What is answered to every kind of question about a ledger of this size.
async fn answers(client: &Client, size: u64) -> Vec<String> {
    let (mut client, mut said_all) = (client.clone(), vec![]);
    let list = |state: &str, page_size, page_token: &str| ListRequest {
        state: state.into(),
        page_size,
        page_token: page_token.into(),
        ..ListRequest::default()
    };
    for question in [
        list("", 0, ""),
        list("", 3, ""),
        list("", 3, "cluster/c2"),
        list("", 4, "no such account"),
        list("cluster/", 2, ""),
        list("cluster/", 2, "cluster/c1"),
        list("cluster/c2", 1, ""),
        list("service/local/w", 5, ""),
        list("service/local/w", 9, "a"),
        list("service/local/w", 9, "treasury"),
        list("$where", 0, ""),
        list("treasury", 0, ""),
        ListRequest { owner: "local".into(), ..ListRequest::default() },
    ] {
        said_all.push(said(&question, client.list(question.clone()).await));
    }
    for account in ["treasury", "issuance", "cluster/c0", "cluster/c4", "service/local/w1", "service/local/none", ""] {
        for (from_index, page_size) in [(0, 0), (0, 7), (1, 3), (255, 2), (256, 1), (300, 1_000), (size, 0), (9_999, 0)]
        {
            let question = StatementRequest { account: account.into(), from_index, page_size };
            said_all.push(said(&question, client.get_statement(question.clone()).await));
        }
    }
    for at in [0, 1, 255, 256, 257, 511, 512, 600, size, 99_999] {
        let question = HeadRequest { size: at };
        said_all.push(said(question, client.get_head(question).await));
        for index in [0, 1, 255, 256, 500, size - 1, size, 99_999] {
            let question = InclusionRequest { index, size: at };
            said_all.push(said(question, client.prove_inclusion(question).await));
            let question = ConsistencyRequest { from_size: index, to_size: at };
            said_all.push(said(question, client.prove_consistency(question).await));
        }
    }
    for (from_index, page_size) in [(0, 0), (0, 10), (250, 10), (256, 256), (size - 1, 5), (size, 0), (99_999, 3)] {
        let question = EntriesRequest { from_index, page_size };
        said_all.push(said(question, client.entries(question).await));
    }
    said_all
}

/// Waits until one answers as the other does.
async fn same(what: &str, memory: &Client, kept: &Client, size: u64) {
    let read = async || memory.clone().get_head(HeadRequest { size: 0 }).await.unwrap().into_inner().size;
    until("a ledger in memory", read, |read| *read == size).await;
    let expected = answers(memory, size).await;
    let found = until(what, async || answers(kept, size).await, |found| *found == expected).await;
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected, "{what}");
    }
}

async fn accounting(settings: &Settings, key: &Path) -> (Running, Client) {
    let config = Config { signing_key_file: Some(key.to_owned()), head_every_ms: 100, ..Config::default() };
    let running = mesh_kit::join("accounting", settings.clone(), config, accounting::start).await.unwrap();
    let client = AccountQueriesClient::connect(running.endpoint()).await.unwrap();
    (running, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_answer_every_question_as_memory_does() {
    let suite = "accounting, the ledger in databases";
    let Some(test_bus) = TestBus::start(suite).await else { return };
    let Some(mut mongo) = Database::start(suite, Kind::Mongod).await else { return };
    let Some(mut cassandra) = Database::start(suite, Kind::Cassandra).await else { return };
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("ledger.key");
    std::fs::write(&key, Signer::from_seed([5; 32]).unwrap().secret() + "\n").unwrap();
    let bus = test_bus.connect("accounting").await;
    let mut writer = Writer::default();
    writer.fill(&bus, 700).await;

    let in_memory = test_bus.settings("accounting");
    let in_mongo = Settings { documents_url: mongo.url("ledger"), ..in_memory.clone() };
    let in_cassandra = Settings { history_url: cassandra.url("ledger"), ..in_memory.clone() };
    let in_both = Settings { documents_url: mongo.url("ledger"), ready_lag_max: 5, ..in_cassandra.clone() };
    let (memory, of_memory) = accounting(&in_memory, &key).await;
    let (kept, of_kept) = accounting(&in_both, &key).await;
    same("a ledger of the past", &of_memory, &of_kept, 700).await;
    let owing = of_memory.clone().list(ListRequest::default()).await.unwrap().into_inner();
    assert!(owing.accounts.iter().any(|account| !account.owes.is_empty()), "somebody owes: {:?}", owing.accounts);

    // Away: questions are refused, and the service says why it is not ready. What is posted meanwhile comes later.
    cassandra.kill();
    writer.fill(&bus, 750).await;
    let endpoint = kept.endpoint();
    let page = async || mesh_test::page(&endpoint, "/readyz?verbose").await.unwrap();
    let says = |(status, page): &(u16, String)| *status == 503 && page.contains("store of ledger");
    until("a service that says its store is away", page, says).await;
    let refused = of_kept.clone().get_head(HeadRequest { size: 300 }).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    cassandra.start_again().await;
    same("entries that were away", &of_memory, &of_kept, 750).await;
    mongo.kill();
    let refused = of_kept.clone().list(ListRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    writer.fill(&bus, 800).await;
    mongo.start_again().await;
    same("accounts that were away", &of_memory, &of_kept, 800).await;

    // Emptied while entries are posted: made again from the stream, the one and the other.
    tokio::join!(mongo.start_empty(), writer.fill(&bus, 1_500));
    same("accounts that were lost", &of_memory, &of_kept, 1_500).await;
    tokio::join!(cassandra.start_empty(), writer.fill(&bus, 1_900));
    same("entries that were lost", &of_memory, &of_kept, 1_900).await;
    until("a service that is ready", page, |(status, _)| *status == 200).await;
    assert_eq!(soon("the end", kept.stop()).await, Stopped::Settled);

    // Other processes go on with what is there, with one of the databases too.
    for (what, settings) in [("both", &in_both), ("accounts", &in_mongo), ("entries", &in_cassandra)] {
        let (again, of_again) = accounting(settings, &key).await;
        same(what, &of_memory, &of_again, 1_900).await;
        assert_eq!(soon("the end", again.stop()).await, Stopped::Settled);
    }

    // Heads are published without the view in memory too.
    assert_eq!(soon("the end", memory.stop()).await, Stopped::Settled);
    let (again, _) = accounting(&in_both, &key).await;
    writer.fill(&bus, 1_950).await;
    let contract = mesh_proto::contract().event(HeadSigned::MESSAGE).unwrap();
    let newest = async || {
        let last = bus.log(&contract.stream).last(&contract.filter()).await.unwrap();
        last.and_then(|last| last.event::<HeadSigned>().unwrap()).map_or(0, |head| head.size)
    };
    until("a signed head", newest, |size| *size == 1_950).await;
    assert_eq!(soon("the end", again.stop()).await, Stopped::Settled);
}
