//! A disk that does what disks do at their worst, from a seed.
//!
//! What is written but not synced may be lost in a crash, in any part: sectors of a write each by
//! themselves, names from some point on. Writes end in any order. By its [`Faults`] it fails, tears,
//! loses or misdirects writes, refuses to read, has no room, and forgets bits.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::Notify;

use crate::vault_support::Random;

const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// How often, of a thousand, each fault happens.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// A write fails; part of it may be on the disk.
    pub(crate) write_errors: u64,
    /// A sync fails, and what it was for may be lost.
    pub(crate) sync_errors: u64,
    /// There is no room for a new file.
    pub(crate) no_space: u64,
    /// A read fails, once.
    pub(crate) read_errors: u64,
    /// A write that is said to be durable never arrives.
    pub(crate) lost_writes: u64,
    /// A write that is said to be durable goes somewhere else in its file.
    pub(crate) misdirected_writes: u64,
    /// A bit of a file is another after the restart, for each file.
    pub(crate) flipped_bits: u64,
}

impl Faults {
    /// Whether what was acknowledged may be gone from the disk.
    pub(crate) fn of_the_medium(&self) -> bool {
        self.lost_writes + self.misdirected_writes + self.flipped_bits > 0
    }
}

/// What a vault leaves undone that has a mistake: the disk does as if it was never asked.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Undone {
    /// Blocks aren't made durable when they are written.
    pub(crate) durable_writes: bool,
    /// Files aren't synced.
    pub(crate) file_syncs: bool,
    /// Directories aren't synced, after a rename or ever.
    pub(crate) dir_syncs: bool,
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    /// As `Write`, but on stable storage.
    Durable(usize, Vec<u8>),
    Resize(usize),
}

#[derive(Debug, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// From `durable` to `now`.
    pending: Vec<Change>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    File(usize),
    Dir,
}

#[derive(Debug, Clone)]
enum NameChange {
    Link(OsString, Node),
    Unlink(OsString),
    Rename(OsString, OsString),
}

#[derive(Debug, Default)]
struct Dir {
    now: BTreeMap<OsString, Node>,
    durable: BTreeMap<OsString, Node>,
    pending: Vec<NameChange>,
}

/// A write the disk hasn't finished.
#[derive(Debug)]
struct Queued {
    writer: usize,
    slot: usize,
    inode: usize,
    offset: usize,
    bytes: Vec<u8>,
    durable: bool,
}

/// What a writer of this disk hears of.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) written: VecDeque<(usize, io::Result<()>)>,
    pub(super) elapsed: VecDeque<usize>,
    pub(super) due: [Option<u64>; 2],
    pub(super) notify: Arc<Notify>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) random: Random,
    inodes: Vec<Inode>,
    dirs: BTreeMap<PathBuf, Dir>,
    queue: Vec<Queued>,
    pub(super) inboxes: Vec<Inbox>,
    pub(super) faults: Faults,
    undone: Undone,
    /// Since the machine is on, in nanoseconds.
    pub(super) clock_ns: u64,
    /// Counts restarts; what was opened before one is of no use.
    pub(super) life: u64,
    /// Operations left until the power fails.
    pub(super) power: Option<u64>,
    pub(super) dead: bool,
}

/// The disk, shared by whatever uses it.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    state: Arc<Mutex<State>>,
}

pub(super) fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl Disk {
    pub(crate) fn new(seed: u64) -> Self {
        let state = State {
            random: Random(seed),
            inodes: Vec::new(),
            dirs: BTreeMap::from([(PathBuf::from("/"), Dir::default())]),
            queue: Vec::new(),
            inboxes: Vec::new(),
            faults: Faults::default(),
            undone: Undone::default(),
            clock_ns: 0,
            life: 0,
            power: None,
            dead: false,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn leave_undone(&self, undone: Undone) {
        self.lock().undone = undone;
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// The power fails after so many more operations.
    pub(crate) fn cut_power_after(&self, operations: Option<u64>) {
        self.lock().power = operations;
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Ends one write, any of them.
    pub(crate) fn finish_one(&self) {
        let mut state = self.lock();
        if state.queue.is_empty() || !state.operate() {
            return;
        }
        let count = state.queue.len();
        let at = state.random.below(count);
        let write = state.queue.swap_remove(at);
        let result = state.finish(&write);
        let inbox = &mut state.inboxes[write.writer];
        inbox.written.push_back((write.slot, result));
        inbox.notify.notify_one();
    }

    /// Lets time pass.
    pub(crate) fn advance(&self, nanos: u64) {
        let mut state = self.lock();
        state.clock_ns += nanos;
        let now = state.clock_ns;
        for inbox in &mut state.inboxes {
            for timer in 0..inbox.due.len() {
                if inbox.due[timer].is_some_and(|due| due <= now) {
                    inbox.due[timer] = None;
                    inbox.elapsed.push_back(timer);
                    inbox.notify.notify_one();
                }
            }
        }
    }

    /// The machine starts again; with `crash`, what wasn't durable is there in part or not at all.
    pub(crate) fn restart(&self, crash: bool) {
        let mut state = self.lock();
        if crash {
            state.crash();
        }
        state.queue.clear();
        state.inboxes.clear();
        state.flip_bits();
        state.life += 1;
        state.dead = false;
        state.power = None;
    }

    /// What lies on the disk in files whose names end like this.
    pub(crate) fn image(&self, suffix: &str) -> Vec<Vec<u8>> {
        let state = self.lock();
        let mut files = Vec::new();
        for dir in state.dirs.values() {
            for (name, node) in &dir.now {
                if let Node::File(inode) = *node
                    && name.to_string_lossy().ends_with(suffix)
                {
                    files.push(state.inodes[inode].now.clone());
                }
            }
        }
        files
    }
}

impl State {
    /// One step of the machine; false if it is off.
    pub(super) fn operate(&mut self) -> bool {
        if let Some(left) = &mut self.power {
            if *left == 0 {
                self.dead = true;
            }
            *left = left.saturating_sub(1);
        }
        !self.dead
    }

    pub(super) fn happens(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.random.next() % 1000 < per_mille
    }

    pub(super) fn enqueue(
        &mut self,
        (writer, slot): (usize, usize),
        inode: usize,
        offset: u64,
        bytes: Vec<u8>,
        durable: bool,
    ) {
        self.queue.push(Queued {
            writer,
            slot,
            inode,
            offset: usize::try_from(offset).unwrap(),
            bytes,
            durable: durable && !self.undone.durable_writes,
        });
    }

    fn finish(&mut self, write: &Queued) -> io::Result<()> {
        if self.happens(self.faults.write_errors) {
            let torn = self.torn(write.inode, write.offset, &write.bytes);
            self.change(write.inode, Change::Durable(write.offset, torn));
            return Err(eio());
        }
        if self.happens(self.faults.lost_writes) {
            return Ok(());
        }
        let mut offset = write.offset;
        if self.happens(self.faults.misdirected_writes) {
            let pages = self.inodes[write.inode].now.len() / PAGE;
            let room = (pages * PAGE).saturating_sub(write.bytes.len()) / PAGE;
            offset = self.random.below(room + 1) * PAGE;
        }
        let bytes = write.bytes.clone();
        let change = if write.durable {
            Change::Durable(offset, bytes)
        } else {
            Change::Write(offset, bytes)
        };
        self.change(write.inode, change);
        Ok(())
    }

    /// `bytes` with some sectors as they are on the disk.
    fn torn(&mut self, inode: usize, offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut torn = bytes.to_vec();
        for (number, sector) in torn.chunks_mut(SECTOR).enumerate() {
            if self.random.next().is_multiple_of(2) {
                let start = offset + number * SECTOR;
                let old = &self.inodes[inode].durable;
                for (at, byte) in sector.iter_mut().enumerate() {
                    *byte = old.get(start + at).copied().unwrap_or(0);
                }
            }
        }
        torn
    }

    fn change(&mut self, inode: usize, change: Change) {
        let inode = &mut self.inodes[inode];
        apply(&mut inode.now, &change);
        match change {
            Change::Durable(..) if inode.pending.is_empty() => apply(&mut inode.durable, &change),
            change => inode.pending.push(change),
        }
    }

    pub(super) fn write(&mut self, inode: usize, offset: u64, bytes: &[u8]) {
        let offset = usize::try_from(offset).unwrap();
        self.change(inode, Change::Write(offset, bytes.to_vec()));
    }

    pub(super) fn resize(&mut self, inode: usize, bytes: u64) {
        self.change(inode, Change::Resize(usize::try_from(bytes).unwrap()));
    }

    pub(super) fn sync(&mut self, inode: usize) -> io::Result<()> {
        if self.undone.file_syncs {
            return Ok(());
        }
        if self.happens(self.faults.sync_errors) {
            self.lose_pending(inode);
            return Err(eio());
        }
        let inode = &mut self.inodes[inode];
        if !inode.pending.is_empty() {
            inode.durable.clone_from(&inode.now);
            inode.pending.clear();
        }
        Ok(())
    }

    /// What isn't durable becomes so in any part.
    fn lose_pending(&mut self, number: usize) {
        for change in std::mem::take(&mut self.inodes[number].pending) {
            match change {
                Change::Write(offset, bytes) => {
                    let torn = self.torn(number, offset, &bytes);
                    apply(
                        &mut self.inodes[number].durable,
                        &Change::Write(offset, torn),
                    );
                }
                Change::Durable(..) => apply(&mut self.inodes[number].durable, &change),
                Change::Resize(_) => {
                    if self.random.next().is_multiple_of(2) {
                        apply(&mut self.inodes[number].durable, &change);
                    }
                }
            }
        }
        let inode = &mut self.inodes[number];
        inode.now.clone_from(&inode.durable);
    }

    fn crash(&mut self) {
        for write in std::mem::take(&mut self.queue) {
            let torn = self.torn(write.inode, write.offset, &write.bytes);
            self.change(write.inode, Change::Durable(write.offset, torn));
        }
        for inode in 0..self.inodes.len() {
            self.lose_pending(inode);
        }
        let paths: Vec<_> = self.dirs.keys().cloned().collect();
        for path in &paths {
            let pending = std::mem::take(&mut self.dirs.get_mut(path).unwrap().pending);
            // Journals keep the order of changes to a directory.
            let kept = self.random.below(pending.len() + 1);
            let dir = self.dirs.get_mut(path).unwrap();
            for change in pending.into_iter().take(kept) {
                rename(&mut dir.durable, change);
            }
            dir.now.clone_from(&dir.durable);
        }
        for path in paths {
            let parent = path.parent().map(Path::to_path_buf);
            let is_linked = parent.is_none_or(|parent| {
                let name = path.file_name().unwrap_or_default();
                self.dirs
                    .get(&parent)
                    .is_some_and(|dir| dir.now.contains_key(name))
            });
            if !is_linked {
                self.dirs.remove(&path);
            }
        }
    }

    /// Not in the table of destinations: without it the vault rightly doesn't open.
    fn flip_bits(&mut self) {
        let named = self.dirs.values().flat_map(|dir| &dir.now);
        let inodes: Vec<_> = named
            .filter_map(|(name, node)| match *node {
                Node::File(inode) if name != "destinations" => Some(inode),
                Node::File(_) | Node::Dir => None,
            })
            .collect();
        for number in inodes {
            if self.happens(self.faults.flipped_bits) && !self.inodes[number].now.is_empty() {
                let bytes = self.inodes[number].now.len();
                let (at, bit) = (self.random.below(bytes), self.random.below(8));
                let inode = &mut self.inodes[number];
                inode.now[at] ^= 1 << bit;
                inode.durable.clone_from(&inode.now);
            }
        }
    }

    pub(super) fn find(&self, path: &Path) -> Option<Node> {
        if path == Path::new("/") {
            return Some(Node::Dir);
        }
        let dir = self.dirs.get(path.parent()?)?;
        dir.now.get(path.file_name()?).copied()
    }

    /// Makes an empty file, or empties one.
    pub(super) fn create(&mut self, path: &Path) -> io::Result<usize> {
        if let Some(Node::File(inode)) = self.find(path) {
            self.resize(inode, 0);
            return Ok(inode);
        }
        self.inodes.push(Inode::default());
        let inode = self.inodes.len() - 1;
        self.name(path, |name| NameChange::Link(name, Node::File(inode)))?;
        Ok(inode)
    }

    pub(super) fn make_dir(&mut self, path: &Path) -> io::Result<()> {
        if self.find(path).is_none() {
            self.name(path, |name| NameChange::Link(name, Node::Dir))?;
            self.dirs.insert(path.to_path_buf(), Dir::default());
        }
        Ok(())
    }

    pub(super) fn unlink(&mut self, path: &Path) -> io::Result<()> {
        if self.find(path).is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.name(path, NameChange::Unlink)
    }

    /// Into another directory it takes two changes, of which a crash may leave any.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let Some(node) = self.find(from) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if from.parent() == to.parent() {
            let to = to.file_name().unwrap().to_owned();
            return self.name(from, |from| NameChange::Rename(from, to));
        }
        self.name(to, |name| NameChange::Link(name, node))?;
        self.name(from, NameChange::Unlink)
    }

    fn name(&mut self, path: &Path, change: impl FnOnce(OsString) -> NameChange) -> io::Result<()> {
        let name = path.file_name().unwrap().to_owned();
        let dir = self
            .dirs
            .get_mut(path.parent().unwrap())
            .ok_or(io::ErrorKind::NotFound)?;
        let change = change(name);
        rename(&mut dir.now, change.clone());
        dir.pending.push(change);
        Ok(())
    }

    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        if self.undone.dir_syncs {
            return Ok(());
        }
        if self.happens(self.faults.sync_errors) {
            return Err(eio());
        }
        let dir = self.dirs.get_mut(path).ok_or(io::ErrorKind::NotFound)?;
        dir.durable.clone_from(&dir.now);
        dir.pending.clear();
        Ok(())
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<(PathBuf, Node)>> {
        let dir = self.dirs.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(dir
            .now
            .iter()
            .map(|(name, &node)| (path.join(name), node))
            .collect())
    }

    pub(super) fn bytes(&self, inode: usize) -> &[u8] {
        &self.inodes[inode].now
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, new) | Change::Durable(offset, new) => {
            let end = offset + new.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset..end].copy_from_slice(new);
        }
        Change::Resize(len) => bytes.resize(*len, 0),
    }
}

fn rename(names: &mut BTreeMap<OsString, Node>, change: NameChange) {
    match change {
        NameChange::Link(name, node) => {
            names.insert(name, node);
        }
        NameChange::Unlink(name) => {
            names.remove(&name);
        }
        NameChange::Rename(from, to) => {
            if let Some(node) = names.remove(&from) {
                names.insert(to, node);
            }
        }
    }
}
