//! The OpenTelemetry SDK for Node.js sends JSON over mTLS; the file destination holds what it sent.

mod common;

use std::process::Command;

use common::{
    PATIENCE,
    daemon::{Daemon, Home},
    eventually, jsonl, node, sdk,
};

const RECORDS: usize = 2_000;

#[test]
fn everything_the_node_sdk_sends_is_in_the_file_by_way_of_the_vault_and_straight_through() {
    let script = node::script("send_logs.js");
    for (zone, compression) in [("green", "none"), ("red", "gzip")] {
        let home = Home::new();
        let logs = home.path("logs.jsonl");
        let daemon = Daemon::start(&home, &sdk::to_file(&logs));
        daemon.ctl(&["override", "--zone", zone]);
        daemon.await_zone(zone);

        let mut command = Command::new("node");
        command
            .arg(&script)
            .args(["--count", &RECORDS.to_string()])
            .env("OTEL_EXPORTER_OTLP_COMPRESSION", compression);
        let endpoint = format!("https://localhost:{}", daemon.http().port());
        let sent = sdk::send(&mut command, &home, &endpoint);
        assert_eq!(sdk::count(&sent), RECORDS, "the script sent another number");
        if zone == "red" {
            assert_eq!(daemon.figure("/vault/records_pending"), RECORDS as u64);
            assert!(jsonl::records(&logs).is_empty());
        }
        daemon.ctl(&["override", "--clear"]);
        eventually("all records in the file", PATIENCE, || {
            jsonl::records(&logs).len() >= RECORDS
        });
        daemon.await_empty_vault();
        sdk::compare(&sent, &logs);
        assert_eq!(daemon.figure("/ingest/records"), RECORDS as u64);
    }
}
