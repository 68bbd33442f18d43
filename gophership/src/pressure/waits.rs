//! How long the workers wait for a CPU, as the kernel tells without the kernel half:
//! `/proc/thread-self/schedstat` (Documentation/scheduler/sched-stats.rst), whose second number is
//! the time spent runnable but not running, nanoseconds. A wait counts when it has ended.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Mutex};

use super::lock;

/// The workers' files; each worker adds its own.
#[derive(Default)]
pub(super) struct Waits(Mutex<Vec<Worker>>);

struct Worker {
    number: usize,
    file: File,
}

impl Waits {
    /// Makes the calling thread known as this worker.
    ///
    /// # Errors
    /// If the kernel doesn't tell.
    pub(super) fn enlist(&self, number: usize) -> io::Result<()> {
        const PATH: &str = "/proc/thread-self/schedstat";
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{PATH}: {error}"));
        let file = File::open(PATH).map_err(named)?;
        let mut workers = lock(&self.0);
        // A thread that has been this worker before is it no more.
        workers.retain(|worker| worker.number != number);
        workers.push(Worker { number, file });
        Ok(())
    }

    /// Hands each living worker's number and total to `each`.
    pub(super) fn read(&self, mut each: impl FnMut(usize, u64)) {
        // The file of a thread that has ended can't be read.
        lock(&self.0).retain(|worker| {
            let total_ns = total_ns(&worker.file);
            if let Some(total_ns) = total_ns {
                each(worker.number, total_ns);
            }
            total_ns.is_some()
        });
    }
}

fn total_ns(file: &File) -> Option<u64> {
    let mut bytes = [0; 128];
    let length = file.read_at(&mut bytes, 0).ok()?;
    waited_ns(std::str::from_utf8(&bytes[..length]).ok()?)
}

/// `None` too if nothing is counted: a thread that reads this has run.
fn waited_ns(text: &str) -> Option<u64> {
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    let ran_ns = numbers.next()?.ok()?;
    let waited_ns = numbers.next()?.ok()?;
    (ran_ns > 0).then_some(waited_ns)
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn the_second_number_is_the_wait() {
        assert_eq!(waited_ns("254314 7590302 2\n"), Some(7_590_302));
        assert_eq!(waited_ns("0 0 0\n"), None);
        assert_eq!(waited_ns("254314\n"), None);
    }

    #[test]
    fn a_thread_that_has_ended_is_forgotten() {
        let waits = Waits::default();
        let known = || {
            let mut known = Vec::new();
            waits.read(|number, _| known.push(number));
            known
        };
        waits.enlist(7).unwrap();
        thread::scope(|scope| {
            let (enlisted, seen) = mpsc::channel();
            let (leave, left) = mpsc::channel::<()>();
            let waits = &waits;
            let worker = scope.spawn(move || {
                waits.enlist(8).unwrap();
                enlisted.send(()).unwrap();
                let _ = left.recv();
            });
            seen.recv().unwrap();
            assert_eq!(known(), [7, 8]);
            drop(leave);
            worker.join().unwrap();
        });
        assert_eq!(known(), [7]);
        waits.enlist(7).unwrap();
        assert_eq!(known(), [7], "once");
    }
}
