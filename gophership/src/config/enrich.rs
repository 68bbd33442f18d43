//! `enrich`: what is added to requests.

use super::{schema, settings::Settings};
use crate::pipeline::enrich::{Config, KEY_BYTES_MAX, RESOURCE_MAX, VALUE_BYTES_MAX};

const RESOURCE: &str = "enrich.resource";

/// The section; None if a problem is noted.
pub(super) fn config(s: &mut Settings) -> Option<Config> {
    let resource = s.get(&schema::ENRICH_RESOURCE);
    let detect = s.get(&schema::ENRICH_DETECT);
    let mark_replayed = s.get(&schema::ENRICH_MARK_REPLAYED);
    if let Some(resource) = &resource {
        check(s, resource);
    }
    Some(Config {
        resource: resource?,
        detect: detect?,
        mark_replayed: mark_replayed?,
    })
}

fn check(s: &mut Settings, resource: &[(String, String)]) {
    if resource.len() > RESOURCE_MAX {
        let message = format!(
            "{RESOURCE} has {} attributes, but at most {RESOURCE_MAX} are possible",
            resource.len()
        );
        s.conflict(&[RESOURCE], message);
    }
    for (index, (key, value)) in resource.iter().enumerate() {
        let fault = if key.is_empty() {
            "an empty key".to_owned()
        } else if key.len() > KEY_BYTES_MAX {
            format!("a key of more than {KEY_BYTES_MAX} bytes")
        } else if key.chars().any(|c| c.is_control() || c.is_whitespace()) {
            "white space in the key".to_owned()
        } else if value.len() > VALUE_BYTES_MAX {
            format!("a value of more than {VALUE_BYTES_MAX} bytes")
        } else if resource[..index].iter().any(|(other, _)| other == key) {
            "a key that is there twice".to_owned()
        } else {
            continue;
        };
        let message = format!("{RESOURCE} has {fault}: {key:?} = {value:?}");
        s.conflict(&[RESOURCE], message);
    }
}
