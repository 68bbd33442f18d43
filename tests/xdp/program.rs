//! The program alone, in the running kernel, on frames by hand (`BPF_PROG_TEST_RUN`).

use std::{net::IpAddr, thread};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, LpmTrie, lpm_trie::Key},
    programs::{TestRun, TestRunOptions, Xdp},
};
use gophership::pressure::monotonic_ns;
use gophership_common::{
    Cause, MAP_BUCKETS, MAP_GUARD, MAP_LOCALS, MAP_PREFIXES, MAP_RX, MAP_VERDICT, PROGRAM_XDP,
    PROGRAM_XDP_FRAGS, VerdictPage, Word, Zone,
    xdp::{
        Address, FAMILY_BITS, GuardPage, INTERFACES_MAX, LIST_ALLOW, LIST_DENY, LOCAL_ROWS,
        LOCAL_WAYS, LocalsPage, RxCpu, RxLine, TrieKey, fill,
    },
};

use super::{
    frames::ACK,
    kernel_tests_run,
    shapes::{self, Fate, HERE_V4, HERE_V6, PORT, THERE_V4, THERE_V6, from, v4, v6},
};

/// The test run's frames come in on the loopback interface.
const LOOPBACK_INDEX: u32 = 1;
/// More than any machine of a test has.
const CPUS: u32 = 256;

struct Program {
    ebpf: Ebpf,
    name: &'static str,
}

impl Program {
    /// `None` where the tests of the kernel half needn't run.
    fn load(name: &'static str, guard: GuardPage) -> Option<Self> {
        if !kernel_tests_run() {
            return None;
        }
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(MAP_RX, CPUS)
            .map_max_entries(MAP_BUCKETS, 1024)
            .load(super::object())
            .unwrap();
        let program: &mut Xdp = ebpf.program_mut(name).unwrap().try_into().unwrap();
        program.load().unwrap();
        let mut program = Self { ebpf, name };
        program.set_guard(guard);
        program.set_locals(1, &[HERE_V4, HERE_V6], 0);
        Some(program)
    }

    /// With the prefixes of both lists.
    fn guarding(guard: GuardPage, allow: &[&str], deny: &[&str]) -> Option<Self> {
        let mut program = Self::load(PROGRAM_XDP, guard)?;
        program.list(allow, LIST_ALLOW);
        program.list(deny, LIST_DENY);
        Some(program)
    }

    fn denying_all(name: &'static str) -> Option<Self> {
        let mut program = Self::load(name, settings(0))?;
        program.list(&["0.0.0.0/0", "::/0"], LIST_DENY);
        Some(program)
    }

    fn set_guard(&mut self, guard: GuardPage) {
        let map = self.ebpf.map_mut(MAP_GUARD).unwrap();
        Array::try_from(map).unwrap().set(0, guard, 0).unwrap();
    }

    fn set_locals(&mut self, generation: u64, addresses: &[&str], overflown: u64) {
        let addresses: Vec<Address> = addresses.iter().map(|text| address(text)).collect();
        let mut tables = [[[Address::default(); LOCAL_WAYS]; LOCAL_ROWS]; 2];
        let seed = 99;
        assert!(fill(
            &mut tables[(generation & 1) as usize],
            seed,
            &addresses
        ));
        let page = Box::new(LocalsPage {
            generation,
            seeds: [seed; 2],
            overflown,
            tables,
        });
        let map = self.ebpf.map_mut(MAP_LOCALS).unwrap();
        Array::try_from(map).unwrap().set(0, *page, 0).unwrap();
    }

    fn set_zone(&mut self, zone: Zone) {
        let map = self.ebpf.map_mut(MAP_VERDICT).unwrap();
        let mut verdict: Array<_, VerdictPage> = Array::try_from(map).unwrap();
        let mut page = verdict.get(&0, 0).unwrap();
        page.word = Word::new(zone, Cause::Override, 0, 1);
        verdict.set(0, page, 0).unwrap();
    }

    fn list(&mut self, prefixes: &[&str], list: u32) {
        let map = self.ebpf.map_mut(MAP_PREFIXES).unwrap();
        let mut trie: LpmTrie<_, TrieKey, u32> = LpmTrie::try_from(map).unwrap();
        for prefix in prefixes {
            let (base, bits) = prefix.split_once('/').unwrap();
            let (key, _) = TrieKey::of(address(base));
            let bits = FAMILY_BITS + bits.parse::<u32>().unwrap();
            trie.insert(&Key::new(bits, key), list, 0).unwrap();
        }
    }

    /// Runs the program `times` on the frame; whether it passed the last time.
    fn passes(&self, frame: &[u8], times: u32) -> bool {
        const DROP: u32 = 1;
        const PASS: u32 = 2;
        let program: &Xdp = self.ebpf.program(self.name).unwrap().try_into().unwrap();
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.repeat = times;
        match program.test_run(options).unwrap().return_value {
            PASS => true,
            DROP => false,
            other => panic!("action {other}"),
        }
    }

    /// The first interface's counts, of all CPUs.
    fn counts(&self) -> RxLine {
        let rx: Array<_, RxCpu> = Array::try_from(self.ebpf.map(MAP_RX).unwrap()).unwrap();
        let lines = (0..rx.len()).map(|cpu| rx.get(&cpu, 0).unwrap().lines[0]);
        lines.fold(RxLine::default(), |sum, line| RxLine {
            packets: sum.packets + line.packets,
            bytes: sum.bytes + line.bytes,
            opens: sum.opens + line.opens,
            denied: sum.denied + line.denied,
            limited: sum.limited + line.limited,
            padding: [0; 3],
        })
    }

    fn fate(&self, frame: &[u8]) -> Fate {
        let before = self.counts();
        let passed = self.passes(frame, 1);
        let after = self.counts();
        let new = |of: fn(&RxLine) -> u64| of(&after) - of(&before);
        match (passed, new(|l| l.packets), new(|l| l.denied)) {
            (true, 0, 0) => Fate::Passed,
            (true, 1, 0) => Fate::Counted,
            (false, 1, 1) => Fate::Dropped,
            other => panic!("{other:?}"),
        }
    }
}

fn settings(syn_per_second: u64) -> GuardPage {
    let mut guard = GuardPage {
        port_count: 2,
        has_lists: 1,
        ..GuardPage::default()
    };
    guard.ports[..2].copy_from_slice(&[PORT, PORT + 1]);
    guard.interfaces = [0; INTERFACES_MAX];
    guard.interfaces[0] = LOOPBACK_INDEX;
    if let Some(interval_ns) = 1_000_000_000_u64.checked_div(syn_per_second) {
        guard.syn_interval_ns = interval_ns;
        guard.syn_tolerance_ns = guard.syn_interval_ns * (syn_per_second - 1);
    }
    guard
}

fn address(text: &str) -> Address {
    match text.parse().unwrap() {
        IpAddr::V4(v4) => Address::v4(v4.into()),
        IpAddr::V6(v6) => {
            let number = u128::from(v6);
            Address {
                high: u64::try_from(number >> 64).unwrap(),
                low: u64::try_from(number & u128::from(u64::MAX)).unwrap(),
            }
        }
    }
}

#[test]
fn every_shape_of_a_frame_is_understood_or_passed() {
    let table = shapes::all();
    for name in [PROGRAM_XDP, PROGRAM_XDP_FRAGS] {
        let Some(program) = Program::denying_all(name) else {
            return;
        };
        for (what, frame, expected) in &table {
            assert_eq!(
                program.fate(frame),
                *expected,
                "{name}: {what}: {frame:02x?}"
            );
        }
    }
}

#[test]
fn bytes_are_those_of_the_packet_without_padding() {
    let Some(program) = Program::load(PROGRAM_XDP, settings(0)) else {
        return;
    };
    let mut frame = v4();
    (frame.flags, frame.payload, frame.padding) = (ACK, 1, 5);
    frame.tags = vec![0x8100];
    assert!(program.passes(&frame.bytes(), 10));
    let expected = RxLine {
        packets: 10,
        bytes: 10 * (14 + 4 + 20 + 20 + 1),
        ..RxLine::default()
    };
    assert_eq!(program.counts(), expected);
}

#[test]
fn the_most_specific_prefix_decides_in_every_zone() {
    let allow = ["192.0.2.0/28", "2001:db8:2::/64", "0.0.0.0/0"];
    let deny = ["192.0.2.0/24", "192.0.2.9/32", "2001:db8::/32"];
    let Some(mut program) = Program::guarding(settings(1), &allow, &deny) else {
        return;
    };
    for zone in [Zone::Green, Zone::Yellow, Zone::Red] {
        program.set_zone(zone);
        for (source, passes) in [
            ("192.0.2.7", true),
            ("192.0.2.9", false),
            ("192.0.2.16", false),
            ("203.0.113.1", true),
            ("2001:db8:2::7", true),
            ("2001:db8:3::7", false),
        ] {
            // Often, so that what is allowed would have met the limit.
            assert_eq!(
                program.passes(&from(source), 50),
                passes,
                "{source} {zone:?}"
            );
        }
    }
    assert_eq!(program.counts().limited, 0);
}

#[test]
fn a_prefix_of_all_ipv6_holds_no_ipv4() {
    let Some(program) = Program::guarding(settings(0), &[], &["::/0"]) else {
        return;
    };
    assert!(program.passes(&from(THERE_V4), 1));
    assert!(!program.passes(&from(THERE_V6), 1));
}

#[test]
fn only_red_limits_and_each_prefix_for_itself() {
    let Some(mut program) = Program::guarding(settings(1), &[], &[]) else {
        return;
    };
    for zone in [Zone::Green, Zone::Yellow] {
        program.set_zone(zone);
        assert!(program.passes(&from(THERE_V4), 1000), "{zone:?}");
    }
    program.set_zone(Zone::Red);
    // A thousand at once are far beyond one a second; the next prefix has its own bucket.
    for (source, first_of_its_prefix) in [
        ("192.0.2.7", true),
        ("192.0.2.8", false),
        ("192.0.3.7", true),
        ("2001:db8:2::7", true),
        ("2001:db8:2::8", false),
        ("2001:db8:2:1::7", true),
    ] {
        let before = program.counts().limited;
        assert!(!program.passes(&from(source), 1000), "{source}");
        let limited = program.counts().limited - before;
        if first_of_its_prefix {
            assert!(limited < 1000, "{source}: nobody had used its bucket");
        }
    }
    let mut established = v4();
    established.flags = ACK;
    assert!(program.passes(&established.bytes(), 1000), "established");
    program.set_zone(Zone::Yellow);
    assert!(program.passes(&from(THERE_V4), 1000), "no longer Red");
}

#[test]
fn all_cpus_together_take_no_token_twice() {
    const RUNS: u32 = 1_000_000;
    /// Longer than the test takes, so that the bucket tells how many were taken of it.
    const INTERVAL_NS: u64 = 1_000_000_000_000;
    let guard = GuardPage {
        syn_interval_ns: INTERVAL_NS,
        syn_tolerance_ns: u64::MAX / 2,
        ..settings(0)
    };
    let Some(mut program) = Program::guarding(guard, &[], &[]) else {
        return;
    };
    program.set_zone(Zone::Red);
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let began_ns = monotonic_ns();
    thread::scope(|scope| {
        for _ in 0..threads.clamp(2, 4) {
            scope.spawn(|| program.passes(&from(THERE_V4), RUNS));
        }
    });
    let counts = program.counts();
    let asked = threads.clamp(2, 4) as u64 * u64::from(RUNS);
    assert_eq!(counts.opens, asked, "none is missed");
    let buckets = program.ebpf.map(MAP_BUCKETS).unwrap();
    let buckets: HashMap<_, Address, u64> = HashMap::try_from(buckets).unwrap();
    let bucket_ns = buckets.get(&address(THERE_V4).bucket(), 0).unwrap();
    let taken = (bucket_ns - began_ns) / INTERVAL_NS;
    assert_eq!(counts.opens - counts.limited, taken);
}

#[test]
fn without_knowing_the_local_addresses_all_is_counted_and_nothing_dropped() {
    let Some(mut program) = Program::denying_all(PROGRAM_XDP) else {
        return;
    };
    for (generation, overflown) in [(0, 0), (4, 1)] {
        program.set_locals(generation, &[], overflown);
        assert_eq!(program.fate(&v4().bytes()), Fate::Counted);
        assert_eq!(program.fate(&v6().bytes()), Fate::Counted);
    }
    program.set_locals(4, &[HERE_V4], 0);
    assert_eq!(program.fate(&v4().bytes()), Fate::Dropped);
    assert_eq!(
        program.fate(&v6().bytes()),
        Fate::Passed,
        "not an address of ours"
    );
}

#[test]
fn an_interface_that_isnt_configured_is_left_alone() {
    let mut guard = settings(0);
    guard.interfaces = [0, 7, 8, 9, 10, 11, 12, 13];
    let Some(program) = Program::guarding(guard, &[], &["0.0.0.0/0"]) else {
        return;
    };
    assert_eq!(program.fate(&v4().bytes()), Fate::Passed);
    assert_eq!(program.counts(), RxLine::default());
}
