//! The port of REST and TMF921: routes from the table, limits on connections and time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    RequestExt as _, Router,
    body::Body,
    extract::RawPathParams,
    response::Response,
    routing::{MethodFilter, MethodRouter, any, get, on},
};
use http::{HeaderName, Request, StatusCode, header};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use mesh_proto::intent::{Intent, IntentView};
use mesh_rest::{
    body,
    http::{empty, json, refuse, with},
    problem::{self, Kind, Problem},
};
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        cors::{self, Origins},
        forms::{self, ActionInput, IntentTemplate, RollbackInput, TargetUpdate},
        table::{self, Op, ROUTES, Route},
        tmf,
    },
    shell::{access::PREFIX, gateway::Gateway, identity::is_for_identity, intents::RestView, pages},
};

/// Headers of a request take no longer.
const HEADER_LIMIT: Duration = Duration::from_secs(15);
/// Headers of a request, bytes.
const HEADER_BYTES_MAX: u32 = 32 * 1024;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;

/// The id that a document names itself by, which a read does not show.
fn own_id(view: &IntentView) -> String {
    view.intent.as_ref().map(|intent| intent.id.clone()).unwrap_or_default()
}

/// What requests count.
#[derive(Clone)]
struct Counts {
    requests: Counter<u64>,
    seconds: Histogram<f64>,
}

impl Counts {
    fn count(&self, op: String, response: &Response, begun: std::time::Instant) {
        let attributes = [KeyValue::new("op", op), KeyValue::new("status", i64::from(response.status().as_u16()))];
        self.requests.add(1, &attributes);
        self.seconds.record(begun.elapsed().as_secs_f64(), &attributes[..1]);
    }
}

impl Gateway {
    async fn serve(
        &self,
        route: &'static Route,
        params: Vec<String>,
        request: Request<Body>,
    ) -> Result<Response, Problem> {
        if is_for_identity(route.op) {
            return self.to_identity(route, &params, request).await;
        }
        let admitted = &mut self.admit(route, params, request).await?;
        match admitted.route.op {
            Op::WhoAmI => Ok(self.whoami(&admitted.caller)),
            Op::ListIntents => self.list_intents(admitted).await,
            Op::SubmitIntent => {
                let sent = forms::intent(admitted.written())?.of(&admitted.owner()?)?;
                self.create(admitted, (sent.id, sent.intent), RestView::Rest).await
            }
            Op::SubmitTemplate => {
                let template: IntentTemplate = body::form(admitted.written())?;
                let intent = template.expand(None)?;
                self.create(admitted, (None, intent), RestView::Rest).await
            }
            Op::IntentTypes => self.types().await,
            Op::CheckIntent => {
                let sent = forms::intent(admitted.written())?.of(&admitted.owner()?)?;
                self.check(admitted, sent).await
            }
            Op::GetIntent => self.show(admitted, RestView::Rest).await,
            Op::UpdateIntent => {
                let intent = forms::intent(admitted.written())?.about(&admitted.id(0), &admitted.owner()?)?;
                let change = |before: &IntentView| Ok(Intent { id: own_id(before), ..intent });
                self.redefine(admitted, RestView::Rest, change).await
            }
            Op::EndIntent => self.end(admitted, RestView::Rest).await,
            Op::ActOnIntent => {
                let input: ActionInput = body::form(admitted.written())?;
                self.acted(admitted, input.action, RestView::Rest).await
            }
            Op::UpdateTarget => {
                let update: TargetUpdate = body::form(admitted.written())?;
                let change = |before: &IntentView| {
                    let mut intent = before.intent.clone().unwrap_or_default();
                    update.apply(&mut intent).map(|()| intent)
                };
                self.amend(admitted, RestView::Rest, change).await
            }
            Op::IntentReport => self.report(admitted).await,
            Op::IntentHistory => self.history(admitted).await,
            Op::IntentAchieved => self.achieved(admitted).await,
            Op::RollbackIntent => {
                let input: RollbackInput = body::form(admitted.written())?;
                self.roll_back(admitted, input.version, RestView::Rest).await
            }
            Op::WatchIntent => self.watch(admitted).await,
            Op::WhyIntent | Op::WhyInstance => self.why(admitted).await,
            Op::ListWorkloads => self.list_workloads(admitted, false).await,
            Op::RegisterWorkload => self.register(admitted).await,
            Op::UploadChart => self.upload(admitted).await,
            Op::DropWorkload => self.drop_document(admitted).await,
            Op::GetWorkload => self.show_document(admitted).await,
            Op::RunInstance => self.run(admitted).await,
            Op::ListInstances => self.list_workloads(admitted, true).await,
            Op::GetInstance => self.show_instance(admitted).await,
            Op::StopInstance => self.stop(admitted).await,
            Op::UpgradeInstance => self.upgrade(admitted).await,
            Op::RollbackInstance => self.revert(admitted).await,
            Op::MigrateInstance => self.migrate(admitted).await,
            Op::Manifests => self.manifests(admitted).await,
            Op::RegisterCluster => self.confirm_cluster(admitted).await,
            Op::ListClusters => self.list_clusters().await,
            Op::GetCluster => self.show_cluster(admitted).await,
            Op::ListTwins => self.list_twins(admitted).await,
            Op::GetTwin => self.show_twin(admitted).await,
            Op::TwinHistory => self.twin_history(admitted).await,
            Op::TwinDiff => self.twin_diff(admitted).await,
            Op::ClusterData => self.cluster_data(admitted).await,
            Op::InstanceData => self.instance_data(admitted).await,
            Op::SecurityEvents => self.security_events(admitted).await,
            Op::CmdtData => self.cmdt_data(admitted).await,
            Op::TmfList => self.list_tmf(admitted).await,
            Op::TmfCreate => {
                let new = tmf::read(&tmf::spelt(admitted.written())?)?;
                match new.creates {
                    tmf::Creates::Intent => self.create(admitted, (new.id, new.intent), RestView::Tmf).await,
                    tmf::Creates::Probe => self.probe(admitted, new.intent).await,
                }
            }
            Op::TmfGet => self.show(admitted, RestView::Tmf).await,
            Op::TmfPatch => self.patch_tmf(admitted).await,
            Op::TmfDelete => self.end(admitted, RestView::Tmf).await,
            Op::TmfReports => self.reports_tmf(admitted).await,
            Op::TmfReport => self.report_tmf(admitted).await,
            Op::TmfSubscribe => self.subscribe(admitted).await,
            Op::TmfSubscription => self.show_subscription(admitted).await,
            Op::TmfUnsubscribe => self.unsubscribe(admitted).await,
            Op::QueryTelemetry => self.query_telemetry(admitted).await,
            Op::TelemetryInventory => self.inventory(admitted).await,
            Op::StreamTelemetry => self.stream_telemetry(admitted).await,
            Op::StreamAnomalies => self.stream_facts(admitted, "ANOMALY").await,
            Op::StreamObservations => self.stream_facts(admitted, "OBSERVATION").await,
            Op::StreamTwins => self.stream_twins(admitted).await,
            Op::Metrics => self.metrics(admitted).await,
            Op::ListSettings => self.list_settings(admitted),
            Op::GetSetting => self.show_setting(admitted),
            Op::PutSetting => self.put_setting(admitted).await,
            Op::DeleteSetting => self.delete_setting(admitted).await,
            Op::ListConditions => self.list_conditions(admitted).await,
            Op::GetCondition => self.show_condition(admitted),
            Op::PutCondition => self.put_condition(admitted).await,
            Op::DeleteCondition => self.delete_condition(admitted).await,
            Op::SerranoProbeMonitor
            | Op::SerranoProbeInventory
            | Op::SerranoCollection
            | Op::SerranoStreamEnd
            | Op::SerranoRegister
            | Op::SerranoAgent
            | Op::SerranoChangeAgent
            | Op::SerranoUnregister
            | Op::SerranoStreaming
            | Op::SerranoAgentMonitor
            | Op::SerranoAgentInventory
            | Op::SerranoEntities
            | Op::SerranoCentral
            | Op::SerranoChangeCentral
            | Op::SerranoCentralInventory
            | Op::SerranoInfrastructure
            | Op::SerranoStorage
            | Op::SerranoClusters
            | Op::SerranoCluster
            | Op::SerranoClusterInventory
            | Op::SerranoClusterMonitor
            | Op::SerranoClusterMetrics
            | Op::SerranoDeployments
            | Op::SerranoAddDeployment
            | Op::SerranoDeployment
            | Op::SerranoAllocation
            | Op::SerranoKernels => self.serrano(admitted).await,
            // Answered by the identity service.
            Op::Login | Op::Logout | Op::ListAccounts | Op::PutAccount | Op::DeleteAccount => {
                Err(Problem::new(Kind::Internal, "this request has no handler", "see the log of the gateway"))
            }
        }
    }

    async fn answer(self, route: &'static Route, counts: Counts, mut request: Request<Body>) -> Response {
        let begun = std::time::Instant::now();
        let path = request.uri().path().to_owned();
        let limit = Duration::from_millis(self.inner.config.request_limit_ms.into());
        let served = async {
            let params = request.extract_parts::<RawPathParams>().await;
            let params = params.map_err(|_| Problem::malformed("the path is not UTF-8", "encode it as UTF-8"))?;
            let params: Vec<String> = params.iter().map(|(_, value)| value.to_owned()).collect();
            self.serve(route, params, request).await
        };
        let response = match tokio::time::timeout(limit, served).await {
            Ok(Ok(response)) => response,
            Ok(Err(problem)) => refuse(&problem, &path),
            Err(_) => {
                let detail = format!("it took more than {} s", limit.as_secs());
                refuse(&Problem::new(Kind::Late, detail, "look whether it was done, then try again"), &path)
            }
        };
        counts.count(format!("{:?}", route.op), &response, begun);
        with(response, HeaderName::from_static("x-content-type-options"), "nosniff")
    }
}

/// All that is answered.
pub(crate) fn router(gateway: &Gateway, base: &str) -> Router {
    let meter = gateway.inner.mesh.meter();
    let counts = Counts {
        requests: meter.u64_counter("gateway_requests_total").with_description("requests answered").build(),
        seconds: meter.f64_histogram("gateway_request_seconds").with_description("time to an answer's head").build(),
    };
    let mut paths: BTreeMap<&str, MethodRouter> = BTreeMap::new();
    for route in ROUTES {
        let (own, counts) = (gateway.clone(), counts.clone());
        let handler = move |request: Request<Body>| own.clone().answer(route, counts.clone(), request);
        let filter = match route.method {
            "GET" => MethodFilter::GET,
            "POST" => MethodFilter::POST,
            "PUT" => MethodFilter::PUT,
            "PATCH" => MethodFilter::PATCH,
            _ => MethodFilter::DELETE,
        };
        let methods = paths.remove(route.path).unwrap_or_default();
        paths.insert(route.path, methods.merge(on(filter, handler)));
    }
    let mut router = Router::new();
    for (path, methods) in paths {
        // With and without the last slash: clients differ.
        let other = path.strip_suffix('/').map_or_else(|| format!("{path}/"), str::to_owned);
        router = router.route(path, methods.clone()).route(&other, methods);
    }
    let access = {
        let (own, counts) = (gateway.clone(), counts.clone());
        any(move |request: Request<Body>| {
            let (own, counts) = (own.clone(), counts.clone());
            async move {
                let begun = std::time::Instant::now();
                let response = own.access(request).await;
                counts.count("Access".into(), &response, begun);
                response
            }
        })
    };
    let document: Arc<str> = table::openapi().to_string().into();
    let page: Arc<str> = pages::openapi().into();
    let discovery = gateway.discovery(base);
    let html = |text: Arc<str>| async move { ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], text.to_string()) };
    let identity = {
        let own = gateway.clone();
        move |request: Request<Body>| {
            let own = own.clone();
            async move {
                let path = request.uri().path().to_owned();
                own.oauth(request).await.unwrap_or_else(|problem| refuse(&problem, &path))
            }
        }
    };
    router
        .route(&format!("{PREFIX}/{{owner}}/{{instance}}"), access.clone())
        .route(&format!("{PREFIX}/{{owner}}/{{instance}}/"), access.clone())
        .route(&format!("{PREFIX}/{{owner}}/{{instance}}/{{*rest}}"), access)
        .route(
            "/openapi.json",
            get(move || async move { ([(header::CONTENT_TYPE, "application/json")], document.to_string()) }),
        )
        .route("/", get(move || html(page.clone())))
        .route("/problems/{slug}", get(explained))
        .route("/.well-known/openid-configuration", get(move || async move { json(StatusCode::OK, &discovery) }))
        .route("/oauth/jwks", get(identity.clone()))
        .route("/oauth/token", axum::routing::post(identity.clone()))
        .route("/oauth/authorize", get(identity.clone()).post(identity))
        .method_not_allowed_fallback(|request: Request<Body>| async move {
            let detail = format!("{} is not a method of this path", request.method());
            refuse(&Problem::new(Kind::Method, detail, "see the Allow header, or /"), request.uri().path())
        })
        .fallback(|request: Request<Body>| async move {
            let problem = Problem::new(Kind::NotFound, "this path does not exist", "see / for all paths");
            refuse(&problem, request.uri().path())
        })
}

async fn explained(request: Request<Body>) -> Response {
    let path = request.uri().path();
    match problem::explain(path.rsplit('/').next().unwrap_or_default()) {
        Some(text) => with(Response::new(Body::from(text)), header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        None => refuse(&Problem::not_found("this type of problem"), path),
    }
}

/// The listener, and where it is.
pub(crate) async fn listen(address: &str) -> anyhow::Result<(TcpListener, String)> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    let bound = listener.local_addr().context("read the address")?;
    let host = match bound.ip() {
        ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
        ip if ip.is_ipv6() => format!("[{ip}]"),
        ip => ip.to_string(),
    };
    Ok((listener, format!("http://{host}:{}", bound.port())))
}

/// Answers until the process stops; requests under way are finished.
pub(crate) async fn serve(
    gateway: Gateway,
    listener: TcpListener,
    router: Router,
    origins: Origins,
) -> anyhow::Result<()> {
    let stopping = gateway.inner.mesh.stopping();
    let max = gateway.inner.config.connections_max.max(1) as usize;
    let origins = Arc::new(origins);
    let connection = |socket: TcpStream| serve_connection(socket, router.clone(), origins.clone(), stopping.clone());
    mesh_kit::serve_connections(&listener, max, &stopping, connection).await;
    Ok(())
}

async fn serve_connection(socket: TcpStream, router: Router, origins: Arc<Origins>, stopping: CancellationToken) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        shared(router.clone(), origins.clone(), request.map(Body::new))
    });
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(socket), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = &*error, "connection");
    }
}

/// Answers, and says which page of another origin may read the answer. Workloads behind `/access` say that themselves.
async fn shared(
    router: Router,
    origins: Arc<Origins>,
    request: Request<Body>,
) -> Result<Response, std::convert::Infallible> {
    let passed_on = request.uri().path().starts_with(&format!("{PREFIX}/"));
    let Some(origin) = origins.of(request.headers()).filter(|_| !passed_on).cloned() else {
        return tower_call(router, request).await;
    };
    let preflight = cors::is_preflight(request.method(), request.headers());
    let mut response = if preflight { empty(StatusCode::NO_CONTENT) } else { tower_call(router, request).await? };
    cors::allow(response.headers_mut(), origin, preflight);
    Ok(response)
}

async fn tower_call(mut router: Router, request: Request<Body>) -> Result<Response, std::convert::Infallible> {
    tonic::codegen::Service::call(&mut router, request).await
}
