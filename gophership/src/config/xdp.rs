//! `xdp`: which interfaces are metered, and what is kept out.

use std::collections::BTreeSet;

use super::{
    formats::Texts,
    schema::{self, Key},
    settings::Settings,
};
use crate::pressure::{GuardConfig, INTERFACES_MAX, PREFIXES_MAX, Prefix, XdpConfig};

/// The interfaces and their guard; None if a problem is noted.
pub(super) fn config(s: &mut Settings) -> Option<XdpConfig> {
    let path = schema::XDP_INTERFACE.entry.path;
    // Unset is off; if it is wrong, that is noted already.
    let interfaces = s.get(&schema::XDP_INTERFACE).unwrap_or_default();
    let mode = s.get(&schema::XDP_MODE);
    let allow = prefixes(s, &schema::XDP_GUARD_ALLOW);
    let deny = prefixes(s, &schema::XDP_GUARD_DENY);
    let syn_per_second = s.get(&schema::XDP_GUARD_SYN_PER_SECOND);
    if interfaces.is_empty() && !s.is_broken(path) {
        check_unguarded(
            s,
            allow.as_deref(),
            deny.as_deref(),
            syn_per_second.is_some(),
        );
    }
    if interfaces.len() > INTERFACES_MAX {
        let message = format!("{path} has more than {INTERFACES_MAX} interfaces");
        s.conflict(&[path], message);
    }
    let distinct: BTreeSet<_> = interfaces.iter().collect();
    if distinct.len() < interfaces.len() {
        s.conflict(&[path], format!("{path} names an interface twice"));
    }
    let (allow, deny) = (allow?, deny?);
    check(s, &allow, &deny);
    Some(XdpConfig {
        interfaces,
        mode: mode?,
        guard: GuardConfig {
            allow,
            deny,
            syn_per_second,
        },
    })
}

/// A list of prefixes; every one that isn't is noted.
fn prefixes(s: &mut Settings, key: &Key<Texts>) -> Option<Vec<Prefix>> {
    let path = key.entry.path;
    let mut prefixes = Vec::new();
    for text in s.get(key)? {
        match text.parse() {
            Ok(prefix) => prefixes.push(prefix),
            Err(error) => s.conflict(&[path], format!("{path}: {text:?}: {error}")),
        }
    }
    Some(prefixes)
}

/// A guard without an interface keeps nothing out, which somebody who has written one must not learn
/// from the traffic.
fn check_unguarded(
    s: &mut Settings,
    allow: Option<&[Prefix]>,
    deny: Option<&[Prefix]>,
    limits: bool,
) {
    let lists = |list: Option<&[Prefix]>| list.is_some_and(|list| !list.is_empty());
    let written = [
        (schema::XDP_GUARD_ALLOW.entry.path, lists(allow)),
        (schema::XDP_GUARD_DENY.entry.path, lists(deny)),
        (schema::XDP_GUARD_SYN_PER_SECOND.entry.path, limits),
    ];
    let paths: Vec<&str> = written
        .into_iter()
        .filter_map(|(path, written)| written.then_some(path))
        .collect();
    if !paths.is_empty() {
        let message = format!(
            "{} without {}: no interface is named for it to guard",
            paths.join(", "),
            schema::XDP_INTERFACE.entry.path
        );
        s.conflict(&paths, message);
    }
}

fn check(s: &mut Settings, allow: &[Prefix], deny: &[Prefix]) {
    let paths = [
        schema::XDP_GUARD_DENY.entry.path,
        schema::XDP_GUARD_ALLOW.entry.path,
    ];
    for prefix in deny.iter().filter(|prefix| allow.contains(prefix)) {
        let message = format!("{prefix} is both in {} and in {}", paths[1], paths[0]);
        s.conflict(&paths, message);
    }
    if allow.len() + deny.len() > PREFIXES_MAX as usize {
        let message = format!(
            "{} and {} have {} prefixes, more than {PREFIXES_MAX}",
            paths[1],
            paths[0],
            allow.len() + deny.len()
        );
        s.conflict(&paths, message);
    }
}
