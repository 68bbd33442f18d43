//! Reads what a `file` destination writes: one `ExportLogsServiceRequest` in OTLP JSON a line.

use std::{fs, path::Path};

use serde_json::Value;

/// Every log record of the file, in order. A last line without its newline is still being written.
#[track_caller]
pub(crate) fn records(path: &Path) -> Vec<Value> {
    let mut found = Vec::new();
    for request in requests(path) {
        for resource in list(&request, "resourceLogs") {
            for scope in list(resource, "scopeLogs") {
                found.extend(list(scope, "logRecords").iter().cloned());
            }
        }
    }
    found
}

/// Every request of the file, in order.
#[track_caller]
pub(crate) fn requests(path: &Path) -> Vec<Value> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(e) => panic!("{} can't be read: {e}", path.display()),
    };
    let mut found = Vec::new();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if !line.ends_with('\n') {
            break;
        }
        let request = serde_json::from_str(line)
            .unwrap_or_else(|e| panic!("{} line {}: {e}", path.display(), number + 1));
        found.push(request);
    }
    found
}

/// The string value of a record's attribute.
pub(crate) fn attribute<'r>(record: &'r Value, key: &str) -> Option<&'r str> {
    list(record, "attributes")
        .iter()
        .find(|attribute| attribute["key"] == key)?
        .pointer("/value/stringValue")?
        .as_str()
}

pub(crate) fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value
        .get(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}
