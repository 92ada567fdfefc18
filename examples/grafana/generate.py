#!/usr/bin/env python3
"""Writes the dashboards and alert rules in this folder. `generate.py` writes them; `generate.py --check` only compares.

One line is one panel: its title, its unit, and what it asks Prometheus. Names of metrics are those of `GET /api/v1/metrics/`, and
those that begin with `mesh_` or with a service's name are on the `/metrics` of the services themselves.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
SOURCE = {"type": "prometheus", "uid": "continuum"}
CLUSTER = 'cluster=~"$cluster"'

# Dashboard -> what it is for, and its panels: title, unit, legend, query.
DASHBOARDS = {
    "fleet": ("Nodes and clusters", [
        ("CPU busy", "percentunit", "{{node}}", f'system_cpu_busy_ratio{{{CLUSTER}}}'),
        ("CPU time by mode", "percentunit", "{{node}} {{cpu_mode}}",
         f'sum by (node, cpu_mode) (rate(system_cpu_time_seconds_total{{{CLUSTER}}}[$__rate_interval]))'),
        ("Memory not available", "percentunit", "{{node}}", f'system_memory_utilization_ratio{{{CLUSTER}}}'),
        ("Memory by state", "bytes", "{{node}} {{system_memory_state}}", f'system_memory_usage_bytes{{{CLUSTER}}}'),
        ("Load, 1 min", "short", "{{node}}", f'system_cpu_load_average_1m{{{CLUSTER}}}'),
        ("Power", "watt", "{{cluster}} {{provenance}}", f'sum by (cluster, provenance) (hw_power_watts{{{CLUSTER}}})'),
    ]),
    "workload": ("Instances of workloads", [
        ("CPU, cores", "short", "{{entity_id}}", f'container_cpu_usage{{{CLUSTER}}}'),
        ("CPU, of the cluster's", "percentunit", "{{entity_id}}", f'container_cpu_utilization_ratio{{{CLUSTER}}}'),
        ("Memory", "bytes", "{{entity_id}}", f'container_memory_usage_bytes{{{CLUSTER}}}'),
        ("Reads and writes", "Bps", "{{entity_id}}",
         f'container_disk_read_rate_bytes_per_second{{{CLUSTER}}} + on (entity_id) '
         f'container_disk_write_rate_bytes_per_second{{{CLUSTER}}}'),
        ("Restarts", "short", "{{entity_id}}", f'container_restarts{{{CLUSTER}}}'),
        ("Replicas that run", "short", "{{entity_id}}", f'container_replicas{{{CLUSTER}}}'),
        ("Requests through the gateway, by code", "reqps", "{{entity_id}} {{http_response_status_code}}",
         f'sum by (entity_id, http_response_status_code) (rate(http_server_request_count_total{{{CLUSTER}}}[$__rate_interval]))'),
        ("Share of requests answered with 5xx", "percentunit", "{{entity_id}}",
         f'(sum by (entity_id) (rate(http_server_request_count_total{{{CLUSTER}, http_response_status_code=~"5.."}}[$__rate_interval])) '
         f'or 0 * sum by (entity_id) (rate(http_server_request_count_total{{{CLUSTER}}}[$__rate_interval]))) '
         f'/ sum by (entity_id) (rate(http_server_request_count_total{{{CLUSTER}}}[$__rate_interval]))'),
        ("Time until an answer begins, by quantile", "s", "{{entity_id}} {{measured_quantile}}",
         f'max by (entity_id, measured_quantile) (http_server_request_duration_seconds{{{CLUSTER}}})'),
    ]),
    "intent": ("What intents achieve, and what happens to them", [
        ("Fulfilled", "bool_yes_no", "{{owner}} {{intent}}", 'continuum_intent_fulfilled'),
        ("Intents by state", "short", "{{state}}", 'sum by (state) (continuum_intent_state)'),
        ("Achieved in the last period, in the target's unit", "short", "{{owner}} {{intent}} {{target}} {{unit}}",
         'continuum_intent_target_achieved'),
        ("Achieved, as a share of the bound", "percentunit", "{{owner}} {{intent}} {{target}}",
         'continuum_intent_target_achieved / continuum_intent_target_bound'),
        ("Target holds", "bool_yes_no", "{{owner}} {{intent}} {{target}}", 'continuum_intent_target_held'),
        ("Facts of intents, each second", "ops", "{{stream}}",
         'rate(continuum_stream_messages_total{stream="INTENT"}[$__rate_interval])'),
        ("Verdicts", "ops", "{{stream}}", 'rate(continuum_stream_messages_total{stream="VALIDATION"}[$__rate_interval])'),
        ("Placements and assignments", "ops", "{{stream}}",
         'rate(continuum_stream_messages_total{stream=~"PLACEMENT|ASSIGNMENT"}[$__rate_interval])'),
        ("Observed targets and crossings", "ops", "{{stream}}",
         'rate(continuum_stream_messages_total{stream="OBSERVATION"}[$__rate_interval])'),
        ("Anomalies and remedies", "ops", "{{stream}}",
         'rate(continuum_stream_messages_total{stream=~"ANOMALY|REMEDY"}[$__rate_interval])'),
    ]),
    "bus": ("The bus and the metrics themselves", [
        ("Stored, each second", "ops", "{{stream}}", 'rate(continuum_stream_messages_total[$__rate_interval])'),
        ("Stored ever", "short", "{{stream}}", 'continuum_stream_messages_total'),
        ("Commands stored, each second", "ops", "commands", 'sum(rate(continuum_stream_messages_total{stream=~".*_ASK"}[$__rate_interval]))'),
        ("Messages that a consumer has not taken in yet", "short", "{{service}} {{consumer}}",
         'max by (service, consumer) (mesh_consumer_lag)'),
        ("Messages taken in and not done with", "short", "{{service}} {{consumer}}",
         'sum by (service, consumer) (mesh_consumer_open)'),
        ("Decisions and writes taken again, each second", "ops", "{{service}} {{consumer}}",
         'sum by (service, consumer) (rate(mesh_consumer_retried_total[$__rate_interval]))'),
        ("Messages given up (dead letters), in the last hour", "short", "{{service}} {{consumer}}",
         'sum by (service, consumer) (increase(mesh_consumer_dead_total[1h]))'),
        ("Services answer", "bool_yes_no", "{{service_name}}", 'up{job="continuum-services"}'),
        ("Gateway answers", "bool_yes_no", "{{instance}}", 'up{job="continuum"}'),
        ("Time of a scrape", "s", "{{instance}}", 'scrape_duration_seconds{job="continuum"}'),
        ("Series shown, and left out", "short", "{{__name__}}",
         '{__name__=~"continuum_metrics_series|continuum_metrics_left_out", job="continuum"}'),
    ]),
    "storage": ("Storage locations and disks", [
        ("Used", "percentunit", "{{node}} {{entity_id}}", f'system_filesystem_utilization_ratio{{{CLUSTER}}}'),
        ("Free and used", "bytes", "{{entity_id}} {{system_filesystem_state}}", f'system_filesystem_usage_bytes{{{CLUSTER}}}'),
        ("Disks", "Bps", "{{node}} {{system_device}} {{disk_io_direction}}",
         f'rate(system_disk_io_bytes_total{{{CLUSTER}}}[$__rate_interval])'),
    ]),
    "network": ("Interfaces", [
        ("Bytes", "Bps", "{{node}} {{network_interface_name}} {{network_io_direction}}",
         f'rate(system_network_io_bytes_total{{{CLUSTER}}}[$__rate_interval])'),
        ("Errors", "ops", "{{node}} {{network_interface_name}}",
         f'sum by (node, network_interface_name) (rate(system_network_errors_total{{{CLUSTER}}}[$__rate_interval]))'),
        ("Facts of the network", "ops", "{{stream}}",
         'rate(continuum_stream_messages_total{stream=~"NETWORK|COST"}[$__rate_interval])'),
    ]),
}

# Name -> title, query, threshold, for how long, what it means.
ALERTS = {
    "gateway-silent": ("The gateway does not answer", 'up{job="continuum"}', ("lt", 1), "1m",
                       "Nothing is known of the mesh: see `continuum status`."),
    "service-silent": ("A service does not answer", 'up{job="continuum-services"}', ("lt", 1), "1m",
                       "See `continuum status` and its log. A process that ended for good: write services.json again."),
    "intent-unfulfilled": ("An intent is not fulfilled", "min by (owner, intent) (continuum_intent_fulfilled)", ("lt", 1), "5m",
                           "`continuum intent get` says what it waits for, `continuum intent achieved` what its targets achieved."),
    "anomaly": ("An anomaly goes on", "max(sar_open)", ("gt", 0), "1m", "`continuum anomaly list` names it with its cause."),
    "consumer-lag": ("A consumer is behind", "max by (service, consumer) (mesh_consumer_lag)", ("gt", 10_000), "5m",
                     "It has more than 10,000 messages before it: see what else the service does, and its log."),
    "dead-letters": ("Messages are given up", "sum by (service, consumer) (increase(mesh_consumer_dead_total[10m]))",
                     ("gt", 0), "0s", "`continuum dead list` shows them with the reason."),
    "cpu-busy": ("A node is busy", "max by (cluster, node) (system_cpu_busy_ratio)", ("gt", 0.95), "10m",
                 "All its processors work: see what runs there in the dashboard Workload."),
    "memory-full": ("A node has little memory", "max by (cluster, node) (system_memory_utilization_ratio)", ("gt", 0.95), "5m",
                    "Less than a twentieth is available."),
    "storage-full": ("A storage location is nearly full", "max by (cluster, entity_id) (system_filesystem_utilization_ratio)",
                     ("gt", 0.9), "5m", "Writes will wait once it is full."),
    "restarts": ("An instance restarts", "max by (cluster, entity_id) (container_restarts)", ("gt", 5), "1m",
                 "`continuum why` says why."),
    "placements-flap": ("Instances are moved again and again",
                        'sum(rate(continuum_stream_messages_total{stream="PLACEMENT"}[10m]))', ("gt", 1), "10m",
                        "More than one placement a second, for ten minutes: `continuum why` names what each follows from."),
    "services-flap": ("Services come and go", 'sum(increase(continuum_stream_messages_total{stream="LIFECYCLE"}[10m]))',
                      ("gt", 60), "0s", "They lose the bus, or end and start again: see `continuum status` and their logs."),
    "interface-errors": ("An interface has errors",
                         "sum by (node, network_interface_name) (rate(system_network_errors_total[5m]))", ("gt", 1), "5m",
                         "A link, or its card, is bad."),
    "metrics-cut": ("Metrics are left out", "continuum_metrics_left_out", ("gt", 0), "5m",
                    "Raise gateway.metrics_series_max, or scrape by kind."),
}


def panel(number, title, unit, legend, query):
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": SOURCE,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                    "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [{"refId": "A", "datasource": SOURCE, "expr": query, "legendFormat": legend, "range": True}],
    }


def dashboard(name, about, panels):
    of_cluster = any("$cluster" in query for *_, query in panels)
    variable = {
        "name": "cluster", "label": "Cluster", "type": "query", "datasource": SOURCE,
        "query": {"query": "label_values(cluster)", "refId": "cluster"},
        "multi": True, "includeAll": True, "allValue": ".*", "refresh": 2, "current": {"text": "All", "value": "$__all"},
    }
    return {
        "uid": f"continuum-{name}",
        "title": f"Continuum: {name}",
        "description": about,
        "tags": ["continuum"],
        "timezone": "browser",
        "editable": True,
        "schemaVersion": 39,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [variable] if of_cluster else []},
        "panels": [panel(number, *one) for number, one in enumerate(panels)],
    }


def alerts():
    rules = []
    for uid, (title, query, (way, line), hold, meaning) in ALERTS.items():
        rules.append({
            "uid": f"continuum-{uid}", "title": title, "condition": "C", "for": hold,
            "noDataState": "NoData", "execErrState": "Error", "annotations": {"summary": meaning},
            "labels": {"team": "continuum"},
            "data": [
                {"refId": "A", "relativeTimeRange": {"from": 600, "to": 0}, "datasourceUid": "continuum",
                 "model": {"refId": "A", "expr": query, "instant": True}},
                {"refId": "C", "relativeTimeRange": {"from": 600, "to": 0}, "datasourceUid": "__expr__",
                 "model": {"refId": "C", "type": "threshold", "expression": "A",
                           "conditions": [{"evaluator": {"type": way, "params": [line]}}]}},
            ],
        })
    group = {"orgId": 1, "name": "continuum", "folder": "Continuum", "interval": "30s", "rules": rules}
    return {"apiVersion": 1, "groups": [group]}


def rules():
    """The same alert rules for Prometheus itself."""
    sign = {"lt": "<", "gt": ">"}
    made = [{
        "alert": "Continuum" + "".join(word.capitalize() for word in uid.split("-")),
        "expr": f"({query}) {sign[way]} {line}", "for": hold,
        "labels": {"team": "continuum"}, "annotations": {"summary": title, "description": meaning},
    } for uid, (title, query, (way, line), hold, meaning) in ALERTS.items()]
    return {"groups": [{"name": "continuum", "interval": "30s", "rules": made}]}


def files():
    for name, (about, panels) in DASHBOARDS.items():
        yield HERE / "dashboards" / f"{name}.json", dashboard(name, about, panels)
    # JSON is YAML.
    yield HERE / "provisioning" / "alerting" / "continuum.yaml", alerts()
    yield HERE / "rules.yml", rules()


def main():
    check, stale = "--check" in sys.argv[1:], []
    for path, content in files():
        text = json.dumps(content, indent=2) + "\n"
        if not path.exists() or path.read_text() != text:
            stale.append(path.name)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    if check and stale:
        sys.exit(f"not current: {', '.join(stale)}; run examples/grafana/generate.py")


main()
