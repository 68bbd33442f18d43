//! The maps, and typed access to their only elements.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, RingBuf},
};
use gophership_common::{
    EVENTS_BYTES, EnginePage, Offsets, PolicyPage, RecordedPage, SOCKETS_MAX, SignalsPage,
    VerdictPage, WORKERS_MAX,
    xdp::{Address, GuardPage, LocalsPage, PREFIXES_MAX, RxCpu, TrieKey},
};

use crate::{atomic, measures::Measures, socket::Followed};

#[map]
static VERDICT: Array<VerdictPage> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static SIGNALS: Array<SignalsPage> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static POLICY: Array<PolicyPage> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static ENGINE: Array<EnginePage> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Keyed by the socket's address: at `TCP_CLOSE` its port is already 0. Never LRU, which would
/// evict the stalled socket first.
#[map]
pub(crate) static SOCKETS: HashMap<u64, Followed> = HashMap::with_max_entries(SOCKETS_MAX, 0);
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);
/// One element here: the loader makes it as many as there are CPUs, if an interface is metered.
#[map]
pub(crate) static RX: Array<RxCpu> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static GUARD: Array<GuardPage> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static LOCALS: Array<LocalsPage> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub(crate) static PREFIXES: LpmTrie<TrieKey, u32> = LpmTrie::with_max_entries(PREFIXES_MAX, 0);
/// One element here, since all are allocated at once: the loader makes it the real number, if there
/// is a limit.
#[map]
pub(crate) static BUCKETS: LruHashMap<Address, u64> = LruHashMap::with_max_entries(1, 0);

/// What the probes count and the tick turns into signals.
#[map]
static MEASURES: Array<Measures> = Array::with_max_entries(1, 0);
/// Threads that are workers, by thread id: their numbers.
#[map]
pub(crate) static WORKERS: HashMap<u32, u32> = HashMap::with_max_entries(2 * WORKERS_MAX as u32, 0);
/// Threads that are reclaiming, by thread id: for whom, see [`crate::reclaim`].
#[map]
pub(crate) static RECLAIMING: HashMap<u32, u32> = HashMap::with_max_entries(4096, 0);
/// For whom threads last reclaimed.
#[map]
pub(crate) static RECLAIMED: LruHashMap<u32, u32> = LruHashMap::with_max_entries(4096, 0);
#[map]
static RECORDED: Array<RecordedPage> = Array::with_max_entries(1, 0);

/// Field offsets of the running kernel: the loader replaces what the compiler sees here.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Offsets = Offsets::UNKNOWN;

/// One field of `OFFSETS`, by one load: a copy of all would be twenty for each packet on the host.
macro_rules! offset_in_kernel {
    ($field:ident) => {
        crate::maps::read_offset(&raw const crate::maps::OFFSETS.$field)
    };
}
pub(crate) use offset_in_kernel;

#[inline(always)]
pub(crate) fn read_offset(field: *const u32) -> u32 {
    // SAFETY: a field of a static, says the macro; volatile, so that its initial value isn't taken
    // for granted.
    unsafe { field.read_volatile() }
}

/// The verdict's page.
#[inline(always)]
pub(crate) fn verdict() -> Option<*mut VerdictPage> {
    VERDICT.get_ptr_mut(0)
}

/// The signals' page.
#[inline(always)]
pub(crate) fn signals() -> Option<*mut SignalsPage> {
    SIGNALS.get_ptr_mut(0)
}

/// The probes' counts.
#[inline(always)]
pub(crate) fn measures() -> Option<*mut Measures> {
    MEASURES.get_ptr_mut(0)
}

/// What a test wants judged.
#[inline(always)]
pub(crate) fn recorded() -> Option<*mut RecordedPage> {
    RECORDED.get_ptr_mut(0)
}

/// The engine's page.
#[inline(always)]
pub(crate) fn engine() -> Option<*const EnginePage> {
    ENGINE.get_ptr(0)
}

/// The policy's page.
#[inline(always)]
pub(crate) fn policy() -> Option<*const PolicyPage> {
    POLICY.get_ptr(0)
}

/// The guard's page.
#[inline(always)]
pub(crate) fn guard() -> Option<*const GuardPage> {
    GUARD.get_ptr(0)
}

/// The local addresses' page.
#[inline(always)]
pub(crate) fn locals() -> Option<*const LocalsPage> {
    LOCALS.get_ptr(0)
}

/// The policy in force. Fields read through it belong to one generation each; the tick, which needs
/// them all of one, compares generations around its judgement.
#[inline(always)]
pub(crate) fn policy_in_force<'a>() -> Option<&'a gophership_common::Policy> {
    let page = policy()?;
    // SAFETY: the map's only element, alive as long as the program; the index is masked to 0 or 1.
    unsafe {
        let generation = atomic::load(&raw const (*page).generation);
        let slots = (&raw const (*page).slots).cast::<gophership_common::Policy>();
        Some(&*slots.add((generation & 1) as usize))
    }
}
