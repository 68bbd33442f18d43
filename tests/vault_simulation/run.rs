//! One seed's story.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use gophership::vault::{Background, Compression, Config, Lane, OnFull, Sync, Vault};
use tokio::{
    runtime,
    task::{JoinHandle, LocalSet, spawn_local, yield_now},
};

use super::{
    disk::{Disk, Faults, Undone},
    image::Image,
    machine::Machine,
    model::{Model, content},
};
use crate::vault_support::{Random, meta};

/// Rounds in which whatever was begun must come to its end once nothing fails any more.
const ROUNDS_MAX: usize = 20_000;

/// What kind of trouble there is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Profile {
    pub(crate) faults: Faults,
    pub(crate) undone: Undone,
    /// Whether acknowledgements wait for stable storage.
    pub(crate) sync: Sync,
    /// Starts of the machine before the last one, which only reads.
    pub(crate) lives: u64,
    /// The power fails in each of them.
    pub(crate) crashes: bool,
}

/// Goes through the story of `seed`, and panics where the vault breaks a promise. Gives how many appends
/// were acknowledged.
pub(crate) fn run(seed: u64, profile: Profile) -> usize {
    let mut story = Story {
        disk: Disk::new(seed),
        random: Random(seed.wrapping_mul(3)),
        model: Rc::default(),
        image: Arc::default(),
        started: Instant::now(),
        profile,
    };
    story.disk.leave_undone(profile.undone);
    for life in 0..profile.lives {
        story.live(life);
    }
    story.check()
}

struct Story {
    disk: Disk,
    random: Random,
    model: Rc<RefCell<Model>>,
    image: Arc<Mutex<Image>>,
    started: Instant,
    profile: Profile,
}

/// A vault that is running.
struct Running {
    vault: Vault,
    background: Background,
    lanes: Vec<Lane>,
    /// Appends under way.
    appends: Vec<(u64, JoinHandle<()>)>,
    life: u64,
}

impl Story {
    fn config(&mut self) -> Config {
        let lanes = 1 + self.random.below(3);
        let segment_bytes = (256 << 10) << self.random.below(2);
        let segments = lanes * (2 + self.random.below(6));
        Config {
            dir: "/vault".into(),
            max_bytes: segment_bytes * segments as u64,
            segment_bytes,
            linger: Duration::from_micros(500),
            compression: [Compression::None, Compression::Lz4, Compression::Auto]
                [self.random.below(3)],
            segment_max_age: Duration::from_millis(1 << self.random.below(14)),
            on_full: OnFull::Refuse,
            retain: Duration::from_millis(self.random.next() % 2 * 500),
            sync: self.profile.sync,
            cursor_interval: Duration::from_secs(1),
            lanes,
            budget_bytes: lanes * (256 << 10),
            max_entry_bytes: 100_000,
            rung: None,
        }
    }

    fn open(&self, config: &Config) -> Option<(Vault, Background)> {
        let machine = Machine::start(&self.disk, self.started, Arc::clone(&self.image));
        let opened = Vault::open_on(Arc::new(machine), config, &["main".to_owned()]);
        let (vault, background) = opened.ok()?;
        vault.set_background_weight(1000);
        Some((vault, background))
    }

    /// From one start to the next.
    fn live(&mut self, life: u64) {
        let config = self.config();
        let steps = 50 + self.random.below(400);
        let power = self.profile.crashes.then(|| self.random.next() % 1500);
        self.disk.cut_power_after(power);
        self.disk.set_faults(self.profile.faults);
        if let Some((vault, background)) = self.open(&config) {
            let runtime = runtime::Builder::new_current_thread().build().unwrap();
            let local = LocalSet::new();
            runtime.block_on(local.run_until(async {
                let lanes = (0..config.lanes)
                    .map(|lane| vault.lane(lane).unwrap())
                    .collect();
                let mut running = Running {
                    vault,
                    background,
                    lanes,
                    appends: Vec::new(),
                    life,
                };
                for _ in 0..steps {
                    self.step(&mut running).await;
                    if self.disk.is_dead() {
                        return;
                    }
                }
                if !self.profile.crashes {
                    self.end(running).await;
                }
            }));
        }
        self.disk.restart(self.profile.crashes);
    }

    async fn step(&mut self, running: &mut Running) {
        match self.random.below(100) {
            0..40 => self.append(running),
            40..43 => self.cancel(running),
            43..70 => {
                for _ in 0..=self.random.below(4) {
                    self.disk.finish_one();
                }
            }
            70..80 => self.disk.advance(self.random.next() % 1_000_000),
            80..83 => self.disk.advance(self.random.next() % 1_500_000_000),
            83..88 => running.background.make_segments(),
            // Its failure shows in what is delivered twice.
            88..89 => drop(running.background.scrub()),
            89..92 => drop(running.background.keep_up()),
            92..93 => running.background.recover(),
            // Now and then all there is, so that segments are spent and their files used again.
            93..97 => self.settle(running),
            97..98 => {
                let lane = running.lanes[self.random.below(running.lanes.len())].clone();
                let seal = spawn_local(async move { lane.seal().await });
                running.appends.push((u64::MAX, seal));
            }
            _ => self.read_some(running),
        }
        settle_tasks().await;
        running.appends.retain(|(_, task)| !task.is_finished());
    }

    fn append(&mut self, running: &mut Running) {
        let lane_number = self.random.below(running.lanes.len());
        let number = self.model.borrow_mut().send(running.life, lane_number);
        let lane = running.lanes[lane_number].clone();
        let model = Rc::clone(&self.model);
        let task = spawn_local(async move {
            let bytes = content(number);
            let (front, back) = bytes.split_at(bytes.len() / 3);
            if let Ok(id) = lane.append(meta(1, number), &[front, back]).await {
                model.borrow_mut().acknowledge(number, id);
            }
        });
        running.appends.push((number, task));
    }

    fn settle(&mut self, running: &Running) {
        let mut left = if self.random.below(4) == 0 {
            usize::MAX
        } else {
            1
        };
        while left > 0 {
            let mut model = self.model.borrow_mut();
            let Some(id) = model.settle_one(running.life, &mut self.random) else {
                return;
            };
            running.vault.settle(id, 1);
            left -= 1;
        }
    }

    /// The producer of one append goes away.
    fn cancel(&mut self, running: &mut Running) {
        if running.appends.is_empty() {
            return;
        }
        let at = self.random.below(running.appends.len());
        let (number, task) = &running.appends[at];
        if *number != u64::MAX {
            self.model.borrow_mut().cancel(*number);
            task.abort();
        }
    }

    fn read_some(&mut self, running: &Running) {
        let max_bytes = 1 + self.random.below(50_000);
        // What fails here is tried again by the next reader.
        let entries = running.vault.reader().next(max_bytes, u32::MAX);
        for entry in entries.unwrap_or_default() {
            self.model.borrow().check_content(&entry);
        }
    }

    /// Nothing fails any more: everything comes to its end, and the vault is closed.
    async fn end(&mut self, mut running: Running) {
        self.disk.set_faults(Faults::default());
        let lanes = running.lanes.clone();
        running.appends.push((
            u64::MAX,
            spawn_local(async move {
                for lane in lanes {
                    // A lane that the disk has refused says so; its appends were told.
                    drop(lane.shutdown().await);
                }
            }),
        ));
        for _ in 0..ROUNDS_MAX {
            running.appends.retain(|(_, task)| !task.is_finished());
            if running.appends.is_empty() {
                break;
            }
            self.disk.finish_one();
            self.disk.advance(50_000);
            running.background.make_segments();
            settle_tasks().await;
        }
        assert!(
            running.appends.is_empty(),
            "{} appends never end",
            running.appends.len()
        );
        running.background.recover();
        running.background.keep_up().unwrap();
        running.vault.close().unwrap();
    }

    /// After the last start nothing fails, and everything must be there.
    fn check(&mut self) -> usize {
        let config = self.config();
        self.disk.set_faults(Faults::default());
        self.image.lock().unwrap().read(&self.disk.image(".gsv"));
        let (vault, mut background) = self.open(&config).expect("nothing fails any more");
        background.recover();
        let mut reader = vault.reader();
        let mut read = Vec::new();
        loop {
            let batch = reader.next(1 << 20, u32::MAX).unwrap();
            if batch.is_empty() {
                break;
            }
            read.extend(batch);
        }
        let model = self.model.borrow();
        model.check_all(
            &read,
            &vault.stats(),
            self.profile.faults,
            &self.image.lock().unwrap(),
        );
        model.acknowledged()
    }
}

/// Lets every task come as far as it can.
async fn settle_tasks() {
    for _ in 0..6 {
        yield_now().await;
    }
}
