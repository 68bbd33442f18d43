//! Whether a new connection may come in.
//!
//! | source is | zone | decision |
//! |---|---|---|
//! | loopback, local, or can't be told | any | pass |
//! | most specifically on `deny` | any | drop: denied |
//! | most specifically on `allow` | any | pass |
//! | anything else | Green, Yellow | pass |
//! | anything else | Red | pass while its prefix's bucket holds tokens, else drop: limited |

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_ns, maps::lpm_trie::Key};
use gophership_common::{
    Zone,
    xdp::{Address, GuardPage, LIST_ALLOW, LIST_DENY, TrieKey, take_token},
};

use super::locals::{Locality, locality};
use crate::{atomic, event, maps};

/// Attempts at a token that other CPUs keep taking.
const ATTEMPTS: u32 = 4;

/// What becomes of a new connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// To the stack.
    Pass,
    /// Dropped: its source is on the list `deny`.
    Denied,
    /// Dropped: too many from its source in Red.
    Limited,
}

/// Decides about a segment that asks for a connection.
#[inline(always)]
pub(super) fn decide(source: Address, settings: &GuardPage) -> Decision {
    if locality(source) != Locality::Remote {
        return Decision::Pass;
    }
    if settings.has_lists != 0 {
        let (key, bits) = TrieKey::of(source);
        match maps::PREFIXES.get(Key::new(bits, key)).copied() {
            Some(LIST_DENY) => return Decision::Denied,
            Some(LIST_ALLOW) => return Decision::Pass,
            _ => {}
        }
    }
    let is_red = maps::verdict().is_some_and(|page| event::word(page).zone() == Zone::Red);
    if settings.syn_interval_ns == 0 || !is_red || admit(source.bucket(), settings) {
        return Decision::Pass;
    }
    Decision::Limited
}

/// Takes a token for the prefix. Each is given once, whatever CPUs ask at the same time; where it
/// can't be told in a few attempts, the bucket is as good as empty.
#[inline(always)]
fn admit(prefix: Address, settings: &GuardPage) -> bool {
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let Some(bucket) = maps::BUCKETS.get_ptr_mut(prefix) else {
            // A bucket nobody has used is full.
            let first_ns = now_ns + settings.syn_interval_ns;
            if maps::BUCKETS
                .insert(prefix, first_ns, u64::from(BPF_NOEXIST))
                .is_ok()
            {
                return true;
            }
            // Another CPU was faster.
            attempt += 1;
            continue;
        };
        // SAFETY: the value of a map's element, an aligned u64. If the element is given to another
        // prefix meanwhile, the exchange takes one token of that one's.
        unsafe {
            let seen_ns = atomic::load(bucket);
            let Some(next_ns) = take_token(seen_ns, now_ns, settings) else {
                return false;
            };
            if atomic::compare_exchange(bucket, seen_ns, next_ns) == seen_ns {
                return true;
            }
        }
        attempt += 1;
    }
    false
}
