//! The simulated disk as the vault's machine: files, a writer, a clock and chance.

use std::{
    io,
    os::fd::RawFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use gophership::{
    uring::{self, Buffer, BufferPool, Completion, Event, Notifier, Target, Timer, Write, Writer},
    vault::platform::{Access, DiskFile, Listed, Lock, LockError, Platform},
};

use super::{
    disk::{Disk, Inbox, Node, State, eio},
    image::Image,
};

/// The machine, from one start to the next.
#[derive(Debug)]
pub(crate) struct Machine {
    disk: Disk,
    life: u64,
    started: Instant,
    /// What the lanes have written.
    written: Arc<Mutex<Image>>,
}

impl Machine {
    pub(crate) fn start(disk: &Disk, started: Instant, written: Arc<Mutex<Image>>) -> Self {
        Self {
            disk: disk.clone(),
            life: disk.lock().life,
            started,
            written,
        }
    }

    fn operate<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        operate(&self.disk, self.life, work)
    }
}

fn operate<T>(
    disk: &Disk,
    life: u64,
    work: impl FnOnce(&mut State) -> io::Result<T>,
) -> io::Result<T> {
    let mut state = disk.lock();
    if state.life != life || !state.operate() {
        return Err(eio());
    }
    work(&mut state)
}

/// An open file; its descriptor is the inode's number.
#[derive(Debug)]
struct SimulatedFile {
    disk: Disk,
    life: u64,
    inode: usize,
}

impl SimulatedFile {
    fn operate<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        operate(&self.disk, self.life, work)
    }
}

impl Target for SimulatedFile {
    fn fd(&self) -> RawFd {
        RawFd::try_from(self.inode).unwrap()
    }
}

impl DiskFile for SimulatedFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.operate(|state| {
            if state.happens(state.faults.read_errors) {
                return Err(eio());
            }
            let content = state.bytes(self.inode);
            let start = usize::try_from(offset).unwrap().min(content.len());
            let len = bytes.len().min(content.len() - start);
            bytes[..len].copy_from_slice(&content[start..start + len]);
            Ok(len)
        })
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.operate(|state| {
            state.write(self.inode, offset, bytes);
            Ok(())
        })
    }

    fn bytes(&self) -> io::Result<u64> {
        self.operate(|state| Ok(state.bytes(self.inode).len() as u64))
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.operate(|state| {
            state.resize(self.inode, bytes);
            Ok(())
        })
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        self.operate(|state| {
            if state.happens(state.faults.no_space) {
                return Err(io::Error::from_raw_os_error(28));
            }
            if (state.bytes(self.inode).len() as u64) < bytes {
                state.resize(self.inode, bytes);
            }
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.operate(|state| state.sync(self.inode))
    }

    fn sync_all(&self) -> io::Result<()> {
        self.operate(|state| state.sync(self.inode))
    }
}

#[derive(Debug)]
struct NoLock;

impl Lock for NoLock {}

impl Platform for Machine {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.operate(|state| match (access, state.find(path)) {
            (Access::Create, _) => state.create(path),
            (_, Some(Node::File(inode))) => Ok(inode),
            (_, _) => Err(io::ErrorKind::NotFound.into()),
        })?;
        Ok(Arc::new(SimulatedFile {
            disk: self.disk.clone(),
            life: self.life,
            inode,
        }))
    }

    fn read(&self, path: &Path, at_most: u64) -> io::Result<Vec<u8>> {
        let at_most = usize::try_from(at_most).unwrap_or(usize::MAX);
        self.operate(|state| match state.find(path) {
            Some(Node::File(inode)) => {
                let bytes = state.bytes(inode);
                Ok(bytes[..bytes.len().min(at_most)].to_vec())
            }
            Some(Node::Dir) | None => Err(io::ErrorKind::NotFound.into()),
        })
    }

    fn append(&self, path: &Path, end: u64, content: &[u8]) -> io::Result<()> {
        let inode = self.operate(|state| match state.find(path) {
            Some(Node::File(inode)) => {
                state.resize(inode, end);
                Ok(inode)
            }
            Some(Node::Dir) | None => Err(io::ErrorKind::NotFound.into()),
        })?;
        self.operate(|state| {
            state.write(inode, end, content);
            Ok(())
        })?;
        self.operate(|state| state.sync(inode))
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let inode = self.operate(|state| state.create(path))?;
        self.operate(|state| {
            state.write(inode, 0, content);
            Ok(())
        })?;
        self.operate(|state| state.sync(inode))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operate(|state| state.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.operate(|state| state.unlink(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>> {
        self.operate(|state| {
            let listed = state.list(dir)?.into_iter();
            Ok(listed
                .map(|(path, node): (PathBuf, Node)| Listed {
                    path,
                    is_dir: node == Node::Dir,
                    bytes: match node {
                        Node::File(inode) => state.bytes(inode).len() as u64,
                        Node::Dir => 0,
                    },
                })
                .collect())
        })
    }

    fn exists(&self, path: &Path) -> bool {
        self.disk.lock().find(path).is_some()
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.operate(|state| state.make_dir(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.operate(|state| state.sync_dir(dir))
    }

    fn lock(&self, _: &Path) -> Result<Box<dyn Lock>, LockError> {
        Ok(Box::new(NoLock))
    }

    fn writer(&self, pools: Vec<BufferPool>) -> Result<Box<dyn Writer>, uring::Error> {
        let mut state = self.disk.lock();
        state.inboxes.push(Inbox::default());
        Ok(Box::new(SimulatedWriter {
            disk: self.disk.clone(),
            written: Arc::clone(&self.written),
            life: self.life,
            number: state.inboxes.len() - 1,
            in_flight: Vec::new(),
            _pools: pools,
        }))
    }

    fn rung(&self) -> &'static str {
        "simulated"
    }

    fn now(&self) -> Instant {
        self.started + Duration::from_nanos(self.disk.lock().clock_ns)
    }

    fn unix_nanos(&self) -> u64 {
        1_700_000_000_000_000_000 + self.disk.lock().clock_ns
    }

    fn random(&self) -> io::Result<u64> {
        Ok(self.disk.lock().random.next())
    }

    fn host_id(&self) -> [u8; 16] {
        [7; 16]
    }
}

/// Hands writes to the disk, which ends them when the simulation says so.
struct SimulatedWriter {
    disk: Disk,
    written: Arc<Mutex<Image>>,
    life: u64,
    number: usize,
    in_flight: Vec<Option<(Buffer, u64)>>,
    _pools: Vec<BufferPool>,
}

impl SimulatedWriter {
    fn inbox<T>(&self, read: impl FnOnce(&mut Inbox) -> T) -> Option<T> {
        let mut state = self.disk.lock();
        let is_alive = state.life == self.life;
        is_alive.then(|| read(&mut state.inboxes[self.number]))
    }
}

impl Writer for SimulatedWriter {
    fn notifier(&self) -> Result<Notifier, uring::Error> {
        let notify = self.inbox(|inbox| Arc::clone(&inbox.notify));
        Ok(Notifier::flag(notify.unwrap_or_default()))
    }

    fn writes(&self) -> usize {
        self.in_flight.iter().flatten().count()
    }

    fn write(&mut self, write: Write) -> Result<(), uring::Error> {
        let slot = self
            .in_flight
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.in_flight.len());
        if slot == self.in_flight.len() {
            self.in_flight.push(None);
        }
        self.written.lock().unwrap().note_written(&write.buffer);
        let mut state = self.disk.lock();
        if state.life == self.life {
            state.enqueue(
                (self.number, slot),
                usize::try_from(write.file.fd()).unwrap(),
                write.offset,
                write.buffer[..write.len].to_vec(),
                write.durable,
            );
        }
        self.in_flight[slot] = Some((write.buffer, write.token));
        Ok(())
    }

    fn arm(&mut self, timer: Timer, after: Duration) -> Result<(), uring::Error> {
        let now = self.disk.lock().clock_ns;
        let due = now + u64::try_from(after.as_nanos()).unwrap_or(u64::MAX - now);
        self.inbox(|inbox| inbox.due[timer as usize] = Some(due));
        Ok(())
    }

    fn next_event(&mut self) -> Option<Event> {
        if let Some((slot, result)) = self.inbox(|inbox| inbox.written.pop_front()).flatten() {
            let (buffer, token) = self.in_flight[slot].take().unwrap();
            return Some(Event::Written(Completion {
                token,
                buffer,
                result,
            }));
        }
        let elapsed = self.inbox(|inbox| inbox.elapsed.pop_front()).flatten()?;
        Some(Event::Elapsed(if elapsed == 0 {
            Timer::A
        } else {
            Timer::B
        }))
    }
}
