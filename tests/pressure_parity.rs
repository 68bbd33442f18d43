//! One judge, compiled twice: what the kernel makes of a recorded reading, bit by bit.
//!
//! Needs root and the kernel half's object (`GOPHERSHIP_EBPF_OBJ`). Otherwise each test says why it
//! did nothing and passes, unless `GOPHERSHIP_REQUIRE_KERNEL=1`.

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData},
    programs::{RawTracePoint, RawTracePointRunOptions, TestRun as _},
};
use gophership_common::{
    Cause, DISKS_MAX, Levels, MAP_RECORDED, NEVER, OVERRIDE_FOREVER, OVERRIDE_NONE, PORTS_MAX,
    PROGRAM_JUDGE_RECORDED, Policy, RecordedPage, Rule, SIGNALS, Signal, Signals, State,
    Thresholds, Word, Zone, judge,
};

const MS: u64 = 1_000_000;
const NOW: u64 = 1 << 50;

/// The kernel's copy of the judge, fed by hand.
struct InKernel {
    page: Array<MapData, RecordedPage>,
    ebpf: Ebpf,
}

impl InKernel {
    /// `None` where it can't be loaded and needn't.
    fn load() -> Option<Self> {
        let required =
            std::env::var_os("GOPHERSHIP_REQUIRE_KERNEL").is_some_and(|value| value == "1");
        let loaded = std::env::var("GOPHERSHIP_EBPF_OBJ")
            .map_err(|error| format!("GOPHERSHIP_EBPF_OBJ: {error}"))
            .and_then(|path| Self::of(&path).map_err(|error| format!("{path}: {error:?}")));
        match loaded {
            Ok(loaded) => Some(loaded),
            Err(reason) => {
                assert!(!required, "GOPHERSHIP_REQUIRE_KERNEL=1, but: {reason}");
                eprintln!("nothing tested: {reason}");
                None
            }
        }
    }

    fn of(path: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let mut ebpf = EbpfLoader::new().load_file(path)?;
        let program: &mut RawTracePoint = ebpf
            .program_mut(PROGRAM_JUDGE_RECORDED)
            .ok_or("the program isn't in the object")?
            .try_into()?;
        program.load()?;
        let map = ebpf
            .take_map(MAP_RECORDED)
            .ok_or("the map isn't in the object")?;
        Ok(Self {
            page: Array::try_from(map)?,
            ebpf,
        })
    }

    /// Has the kernel judge: the word to publish, the state as a word, and the clocks.
    fn judge(&mut self, case: &Case) -> (Word, Word, [u64; 3]) {
        // What the program doesn't write shows.
        const UNWRITTEN: Word = Word(0xdead_beef_dead_beef);
        let page = RecordedPage {
            now_ns: case.now_ns,
            before: case.state.word(),
            clocks_before_ns: case.state.clocks_ns(),
            outcome: UNWRITTEN,
            after: UNWRITTEN,
            clocks_after_ns: [UNWRITTEN.0; 3],
            signals: case.signals,
            policy: case.policy,
        };
        self.page.set(0, page, 0).expect("the page can be written");
        let program: &RawTracePoint = self
            .ebpf
            .program(PROGRAM_JUDGE_RECORDED)
            .expect("the program is there")
            .try_into()
            .expect("a raw tracepoint");
        let ran = program
            .test_run(RawTracePointRunOptions::new())
            .expect("the program runs");
        assert_eq!(ran.return_value, 0);
        let page = self.page.get(&0, 0).expect("the page can be read");
        (page.outcome, page.after, page.clocks_after_ns)
    }
}

/// Everything that a judgement depends on.
#[derive(Debug, Clone, Copy)]
struct Case {
    policy: Policy,
    signals: Signals,
    state: State,
    now_ns: u64,
}

impl Case {
    /// What user space makes of it, in the same shape; and the state to go on from.
    fn judge(&self) -> ((Word, Word, [u64; 3]), State) {
        let judgement = judge(&self.policy, &self.signals, &self.state, self.now_ns);
        let word = judgement.word_after(Word::new(Zone::Green, Cause::None, 0, 0));
        let state = judgement.state;
        ((word, state.word(), state.clocks_ns()), state)
    }
}

/// xorshift64*: enough to walk the table, and the seed is in the failure message.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        let count = u64::try_from(choices.len()).expect("a few");
        choices[usize::try_from(self.below(count)).expect("an index")]
    }

    /// Any number of that many bits or fewer, small ones as often as large ones.
    fn number(&mut self, bits: u32) -> u64 {
        let shift = 64 - 1 - u32::try_from(self.below(u64::from(bits))).expect("below 64");
        self.next() >> shift
    }

    fn levels(&mut self) -> Levels {
        let mut level = || {
            let any = u32::try_from(self.number(31)).expect("31 bits");
            self.one_of(&[Levels::OFF, 1, 50, 500, 999, 1000, any])
        };
        Levels {
            yellow_permille: level(),
            red_permille: level(),
        }
    }

    fn thresholds(&mut self) -> Thresholds {
        let (disk, ingress) = (self.number(40), self.number(40));
        Thresholds {
            receive_queue: self.levels(),
            receive_queue_for_us: self.number(40),
            listen_backlog: self.levels(),
            memory_stall: self.levels(),
            memory_available: self.levels(),
            cpu_wait: self.levels(),
            disk_latency_us: self.one_of(&[None, Some(0), Some(disk)]),
            ingress_horizon_us: self.one_of(&[None, Some(0), Some(ingress)]),
            budget: self.levels(),
            heartbeat_us: self.number(40),
        }
    }

    /// A rule that no configuration makes: the judge must agree with itself all the same.
    fn rule(&mut self) -> Rule {
        let mut threshold = || {
            let any = self.number(62);
            self.one_of(&[NEVER, 0, 1, any])
        };
        Rule {
            yellow: threshold(),
            red: threshold(),
            yellow_exit: threshold(),
            red_exit: threshold(),
            flip: self.one_of(&[0, NEVER - 1]),
            says: self.below(12) | self.one_of(&[0, 2]) << 16,
        }
    }

    fn policy(&mut self, now_ns: u64) -> Policy {
        let mut rules = self.thresholds().rules();
        if self.below(4) == 0 {
            rules = [(); SIGNALS].map(|()| self.rule());
        }
        let hold_ns = self.number(40);
        let until_ns = self.number(62);
        Policy {
            tick_ns: 10 * MS,
            hold_ns: self.one_of(&[0, 1, hold_ns]),
            receive_queue_for_ns: 5 * MS,
            override_until_ns: self.one_of(&[
                0,
                now_ns - 1,
                now_ns,
                now_ns + 1,
                until_ns,
                OVERRIDE_FOREVER,
            ]),
            measured: u64::MAX,
            ingress_horizon_ns: self.number(40),
            rules,
            receive_queue: self.levels(),
            disks: [0; DISKS_MAX],
            override_zone: self.one_of(&[OVERRIDE_NONE, OVERRIDE_NONE, 0, 1, 2, 3]),
            h2_window_bytes: 0,
            netns_inum: 0,
            workers: 1,
            port_count: 0,
            disk_count: 0,
            ports: [0; PORTS_MAX],
        }
    }

    /// A reading of which some signals, or all, are around their rules' thresholds.
    fn signals(&mut self, rules: &[Rule; SIGNALS]) -> Signals {
        let mut signals = Signals::NONE;
        let count = u64::try_from(SIGNALS).expect("a few");
        let uneasy = self.one_of(&[0, 1, 2, count]);
        for (signal, rule) in Signal::ALL.into_iter().zip(rules) {
            let near = self.one_of(&[rule.yellow, rule.red, rule.yellow_exit, rule.red_exit]);
            let beside = self.one_of(&[near.wrapping_sub(1), near, near + 1]);
            let any = self.number(62);
            let value = if self.below(count) < uneasy {
                self.one_of(&[0, 1, NEVER - 1, any, beside, beside]) ^ rule.flip
            } else {
                rule.flip
            };
            if self.below(8) != 0 {
                signals.set(signal, value & (NEVER - 1));
            } else {
                // Not available, whatever is left there.
                signals.values[signal as usize] = value & (NEVER - 1);
            }
        }
        signals
    }

    fn state(&mut self, now_ns: u64, hold_ns: u64) -> State {
        let clocks = [(); 3].map(|()| {
            let any = self.number(62);
            let held = now_ns.saturating_sub(hold_ns);
            self.one_of(&[0, 1, now_ns, held, held + 1, held.saturating_sub(1), any])
        });
        let zone = self.one_of(&[Zone::Green, Zone::Yellow, Zone::Red]);
        let cause = self.one_of(&Cause::ALL);
        State::of(Word::new(zone, cause, self.one_of(&[0, 2]), 0), clocks)
    }

    fn case(&mut self) -> Case {
        let now_ns = self.one_of(&[1, NOW, NOW + 12_345]);
        let policy = self.policy(now_ns);
        Case {
            policy,
            signals: self.signals(&policy.rules),
            state: self.state(now_ns, policy.hold_ns),
            now_ns,
        }
    }
}

#[test]
fn random_readings_are_judged_alike_in_both_halves() {
    let Some(mut kernel) = InKernel::load() else {
        return;
    };
    let mut random = Random(0x6b65_726e_656c);
    let mut zones = [0; 3];
    for number in 0..20_000 {
        let case = random.case();
        let (here, _) = case.judge();
        assert_eq!(kernel.judge(&case), here, "case {number}: {case:#?}");
        zones[here.1.zone() as usize] += 1;
    }
    // Otherwise this proves little.
    assert!(zones.iter().all(|&zone| zone > 500), "{zones:?}");
}

#[test]
fn walks_are_judged_alike_in_both_halves() {
    const STEPS: u64 = 100;
    let Some(mut kernel) = InKernel::load() else {
        return;
    };
    for seed in 1..=100 {
        let mut random = Random(seed);
        let thresholds = random.thresholds();
        let mut case = Case {
            policy: Policy {
                rules: thresholds.rules(),
                hold_ns: 50 * MS,
                ..random.policy(NOW)
            },
            signals: Signals::NONE,
            state: State::START,
            now_ns: NOW,
        };
        for step in 0..STEPS {
            // Long stretches of calm, or no hold would ever be over.
            if random.below(10) == 0 {
                case.signals = random.signals(&case.policy.rules);
            } else if random.below(3) == 0 {
                case.signals = Signals::NONE;
            }
            case.now_ns += random.one_of(&[MS, 10 * MS, 49 * MS, 50 * MS]);
            let (here, next) = case.judge();
            assert_eq!(
                kernel.judge(&case),
                here,
                "seed {seed}, step {step}: {case:#?}"
            );
            case.state = next;
        }
    }
}
