// What the host's probes and node_exporter both say, by one name. Included by the test and by the benchmark.

use std::collections::BTreeMap;

use cluster_agent::shell::measure::{
    Roots, Value,
    host::{Host, What},
};

/// Counters by name and labels.
pub(crate) type Counters = BTreeMap<String, f64>;

/// The counters that both have, as the probes say them.
pub(crate) fn ours() -> Result<Counters, String> {
    let mut all = Counters::new();
    for what in [What::Cpu, What::Memory, What::Disk, What::Network, What::Pressure] {
        for value in Host::new(what, "bench", Roots::default()).look()? {
            all.extend(our_name(&value).map(|name| (name, value.value)));
        }
    }
    Ok(all)
}

/// The counters that both have, of what node_exporter answered.
pub(crate) fn theirs(values: &[Value]) -> Counters {
    values.iter().filter_map(|value| Some((their_name(value)?, value.value))).collect()
}

fn label<'a>(value: &'a Value, name: &str) -> &'a str {
    value.metric.labels.iter().find(|(label, _)| label == name).map_or("", |(_, text)| text.as_str())
}

fn our_name(value: &Value) -> Option<String> {
    let of = |name: &str| label(value, name).to_owned();
    let device = || format!("{} {}", of("disk.io.direction"), of("system.device"));
    let interface = || format!("{} {}", of("network.io.direction"), of("network.interface.name"));
    Some(match &*value.metric.name {
        "system.cpu.time" => format!("cpu {} {}", of("cpu.logical_number"), of("cpu.mode")),
        "system.linux.context_switches" => "context switches".into(),
        "system.process.created" => "forks".into(),
        "system.disk.io" => format!("disk bytes {}", device()),
        "system.disk.operations" => format!("disk operations {}", device()),
        "system.disk.operation_time" => format!("disk time {}", device()),
        "system.disk.io_time" => format!("disk busy {}", of("system.device")),
        "system.network.io" => format!("network bytes {}", interface()),
        "system.network.packet.count" => format!("network packets {}", interface()),
        "system.network.errors" => format!("network errors {}", interface()),
        "system.paging.faults" if of("system.paging.type") == "major" => "major faults".into(),
        "system.linux.pressure.time" => {
            format!("pressure {} {}", of("system.linux.pressure.resource"), of("system.linux.pressure.stalled"))
        }
        _ => return None,
    })
}

fn their_name(value: &Value) -> Option<String> {
    let device = label(value, "device");
    Some(match &*value.metric.name {
        "node_cpu_seconds_total" => {
            let mode = match label(value, "mode") {
                "irq" => "interrupt",
                mode => mode,
            };
            format!("cpu {} {mode}", label(value, "cpu"))
        }
        "node_context_switches_total" => "context switches".into(),
        "node_forks_total" => "forks".into(),
        "node_disk_read_bytes_total" => format!("disk bytes read {device}"),
        "node_disk_written_bytes_total" => format!("disk bytes write {device}"),
        "node_disk_reads_completed_total" => format!("disk operations read {device}"),
        "node_disk_writes_completed_total" => format!("disk operations write {device}"),
        "node_disk_read_time_seconds_total" => format!("disk time read {device}"),
        "node_disk_write_time_seconds_total" => format!("disk time write {device}"),
        "node_disk_io_time_seconds_total" => format!("disk busy {device}"),
        "node_network_receive_bytes_total" => format!("network bytes receive {device}"),
        "node_network_transmit_bytes_total" => format!("network bytes transmit {device}"),
        "node_network_receive_packets_total" => format!("network packets receive {device}"),
        "node_network_transmit_packets_total" => format!("network packets transmit {device}"),
        "node_network_receive_errs_total" => format!("network errors receive {device}"),
        "node_network_transmit_errs_total" => format!("network errors transmit {device}"),
        "node_vmstat_pgmajfault" => "major faults".into(),
        "node_pressure_cpu_waiting_seconds_total" => "pressure cpu some".into(),
        "node_pressure_io_waiting_seconds_total" => "pressure io some".into(),
        "node_pressure_io_stalled_seconds_total" => "pressure io full".into(),
        "node_pressure_memory_waiting_seconds_total" => "pressure memory some".into(),
        "node_pressure_memory_stalled_seconds_total" => "pressure memory full".into(),
        _ => return None,
    })
}
