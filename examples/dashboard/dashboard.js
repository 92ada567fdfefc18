// Hears a mesh over NATS WebSocket as the identity `dashboard`, which may only listen, decodes what comes with the contract
// itself, and plots it. `npm install && npm run build`, then open dist/index.html; address and key may also stand behind
// `#server=…&key=…`, which a browser sends to nobody.
import { nkeyAuthenticator, wsconnect } from "@nats-io/nats-core";
import protobuf from "protobufjs";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import anomaly from "../../proto/continuum/anomaly/v1/anomaly.proto";
import observation from "../../proto/continuum/observation/v1/observation.proto";
import telemetry from "../../proto/continuum/telemetry/v1/telemetry.proto";

const SHOWN_S = 120; // Seconds that are plotted.
const SERIES_MAX = 20; // Lines in the plot.
const VALUES_MAX = 2000; // Values of each.
const METRICS_MAX = 500; // Names to choose from.
const EVENTS_MAX = 30; // Rows of the table.
const LATENCIES_MAX = 10000;
const INSTANCE_METRICS = { "instance.cpu_percent": "cpuPercent", "instance.memory_bytes": "memoryBytes" };

const root = new protobuf.Root();
root.addJSON(protobuf.common.get("google/protobuf/timestamp.proto").nested);
for (const text of [telemetry, anomaly, observation]) protobuf.parse(text, root);

const at = (id) => document.getElementById(id);
const millis = (time) => Number(time?.seconds ?? 0) * 1000 + (time?.nanos ?? 0) / 1e6;
const now = () => performance.timeOrigin + performance.now();

const series = new Map(); // metric -> line -> {t: [seconds], v: [values]}
// What a test or the console looks at.
const seen = (window.dashboard = { values: 0, events: 0, undecoded: 0, latencies_ms: [], errors: [], connection: null });

/** Keeps one value; time in milliseconds. */
function keep(metric, line, time, value) {
  seen.values += 1;
  if (!series.has(metric)) {
    if (series.size >= METRICS_MAX) return;
    series.set(metric, new Map());
    at("metric").append(new Option(metric, metric));
  }
  const lines = series.get(metric);
  if (!lines.has(line)) {
    if (lines.size >= SERIES_MAX) return;
    lines.set(line, { t: [], v: [] });
  }
  const { t, v } = lines.get(line);
  t.push(time / 1000);
  v.push(value);
  const oldest = now() / 1000 - SHOWN_S;
  while (t.length && (t[0] < oldest || t.length > VALUES_MAX)) {
    t.shift();
    v.shift();
  }
}

function latency(time) {
  seen.latencies_ms.push(now() - time);
  if (seen.latencies_ms.length > LATENCIES_MAX) seen.latencies_ms.shift();
}

/** A row of the table; the text is of others, and is never read as HTML. */
function row(what, text) {
  seen.events += 1;
  const tr = at("events").insertRow(0);
  for (const cell of [new Date().toLocaleTimeString(), what, text]) tr.insertCell().textContent = cell;
  while (at("events").rows.length > EVENTS_MAX) at("events").deleteRow(-1);
}

const handlers = {
  "continuum.telemetry.v1.Packed": ({ samples }) => {
    for (const sample of samples) {
      const time = millis(sample.at);
      latency(time);
      for (const [metric, field] of Object.entries(INSTANCE_METRICS)) {
        keep(metric, `${sample.clusterId} ${sample.instanceId.slice(0, 8)}`, time, Number(sample[field]));
      }
    }
  },
  "continuum.telemetry.v1.Readings": (pack) => {
    const begin = millis(pack.at);
    pack.values.forEach((value, i) => {
      const metric = pack.metrics[pack.metric[i]];
      const entity = metric && pack.entities[metric.entity];
      if (!entity) return;
      const time = begin + pack.afterMs[i];
      latency(time);
      const labels = Object.entries(metric.labels).map(([name, label]) => `${name}=${label}`).join(" ");
      keep(`${metric.name} [${metric.unit}]`, `${entity.kind} ${entity.id} ${labels}`.trim(), time, value);
    });
  },
  "continuum.anomaly.v1.AnomalyDetected": (event) => row("anomaly", event.sentence),
  "continuum.anomaly.v1.AnomalyCleared": (event) => row("anomaly over", event.reason),
  "continuum.observation.v1.ThresholdCrossed": (event) =>
    row(event.raised ? "crossed" : "is back", `${event.conditionId}: ${event.metric} of ${event.entityId} at ${event.value}`),
};

/** Decodes a message by the type in its header, as every stored message names it. */
function take(message) {
  const type = message.headers?.get("ce-type");
  if (!handlers[type]) return;
  try {
    handlers[type](root.lookupType(type).decode(message.data));
  } catch (error) {
    seen.undecoded += 1;
    console.error(type, error);
  }
}

let plot = null;
let shown = "";
function draw() {
  const lines = series.get(at("metric").value);
  if (lines?.size) {
    const names = [...lines.keys()];
    const data = uPlot.join([...lines.values()].map(({ t, v }) => [t, v]));
    if (shown !== names.join()) {
      shown = names.join();
      plot?.destroy();
      const colour = (i) => `hsl(${(i * 137) % 360} 70% 40%)`;
      plot = new uPlot(
        {
          width: Math.min(1080, document.body.clientWidth),
          height: 360,
          series: [{}, ...names.map((label, i) => ({ label, stroke: colour(i), spanGaps: true }))],
        },
        data,
        at("plot"),
      );
    } else {
      plot.setData(data);
    }
  }
  setTimeout(draw, 250);
}

function state(text, error) {
  at("state").textContent = text;
  if (error) seen.errors.push(text);
}

async function watch(connection) {
  for await (const status of connection.status()) {
    state(`${connection.getServer()}: ${status.type} ${status.error ?? ""}`, status.type === "error");
  }
}

async function connect(server, key) {
  await seen.connection?.close();
  state(`Connecting to ${server} …`);
  try {
    const connection = await wsconnect({
      servers: server,
      authenticator: nkeyAuthenticator(new TextEncoder().encode(key.trim())),
      inboxPrefix: "_INBOX_dashboard",
      maxReconnectAttempts: -1,
    });
    seen.connection = connection;
    for (const subject of ["live.telemetry.>", "anomaly.>", "observation.>"]) {
      connection.subscribe(subject, { callback: (error, message) => (error ? state(String(error), true) : take(message)) });
    }
    await connection.flush();
    state(`Connected to ${server}.`);
    watch(connection);
  } catch (error) {
    state(`${server}: ${error.message}`, true);
  }
}

at("connect").addEventListener("submit", (event) => {
  event.preventDefault();
  connect(at("server").value, at("key").value);
});
draw();
const given = new URLSearchParams(location.hash.slice(1));
if (given.has("server")) {
  at("server").value = given.get("server");
  at("key").value = given.get("key") ?? "";
  connect(given.get("server"), given.get("key") ?? "");
}
