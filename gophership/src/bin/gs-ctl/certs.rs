//! `certs`: needs no daemon.

use std::path::Path;

use gophership::control::certs;
use serde_json::json;

use crate::{failure::Failure, output::Sink, view};

/// `certs init`.
pub(crate) fn init(sink: &mut Sink, dir: &Path, hosts: &[String]) -> Result<(), Failure> {
    let written = certs::init(dir, hosts).map_err(|error| match error {
        certs::Error::Host { .. } | certs::Error::NoHost => Failure::Usage(error.to_string()),
        _ => Failure::Failed(error.to_string()),
    })?;
    let names: Vec<_> = written
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    sink.result(&json!({ "written": names }), || {
        let mut text = String::from("Written:\n");
        for name in &names {
            text.push_str(&format!("  {name}\n"));
        }
        text
    })
}

/// `certs show`.
pub(crate) fn show(sink: &mut Sink, file: &Path) -> Result<(), Failure> {
    let failed = |error: String| Failure::Failed(error);
    let shown = certs::show(file).map_err(|error| failed(error.to_string()))?;
    let value = serde_json::to_value(&shown).map_err(|error| failed(error.to_string()))?;
    sink.result(&value, || view::certificates(&shown))
}
