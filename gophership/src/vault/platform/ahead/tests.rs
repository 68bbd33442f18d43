//! Reading ahead, also of files that fail or give less than they are asked for.

use std::{collections::HashSet, fs::File, ops::Range, os::unix::fs::FileExt};

use super::*;

const PAGE: usize = 4096;

fn file_of(pages: usize) -> (Arc<File>, Vec<u8>) {
    let content: Vec<u8> = (0..pages * PAGE)
        .map(|at| (at / PAGE * 31 + at % 251).to_le_bytes()[0])
        .collect();
    let file = tempfile::tempfile().unwrap();
    FileExt::write_all_at(&file, &content, 0).unwrap();
    (Arc::new(file), content)
}

/// A generator of numbers below a limit, the same ones each time.
fn numbers() -> impl FnMut(usize) -> usize {
    let mut seed = 7_usize;
    move |limit| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % limit
    }
}

/// Reads `len` bytes as any file would give them.
fn check(ahead: &ReadAhead, content: &[u8], offset: usize, len: usize) {
    let mut bytes = vec![0; len];
    let read = ahead.read_at(&mut bytes, offset as u64).unwrap();
    let expected = content.get(offset..).unwrap_or_default();
    let expected = &expected[..expected.len().min(len)];
    assert_eq!(read, expected.len(), "{len} bytes at {offset}");
    assert!(bytes[..read] == *expected, "{len} bytes at {offset}");
}

/// Whether the byte at `offset` was read ahead.
fn was_ahead(ahead: &ReadAhead, offset: usize) -> bool {
    let state = ahead.state.lock().unwrap();
    let has = |stream: &Stream| !stream.current.from(offset as u64).is_empty();
    state.stream.as_ref().is_some_and(has)
}

/// A file with pages that can't be read, and that may give less than it is asked for.
#[derive(Debug)]
struct Faulty {
    file: Arc<File>,
    bad: HashSet<usize>,
    /// A read ends before a bad page, as through a page cache; else it fails as a whole.
    ends_before: bool,
    most: usize,
}

impl Faulty {
    fn first_bad(&self, pages: Range<usize>) -> Option<usize> {
        pages.into_iter().find(|page| self.bad.contains(page))
    }
}

impl Target for Faulty {
    fn fd(&self) -> RawFd {
        self.file.fd()
    }
}

impl DiskFile for Faulty {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap();
        let mut len = bytes.len().min(self.most);
        if let Some(bad) = self.first_bad(start / PAGE..(start + len).div_ceil(PAGE)) {
            len = (bad * PAGE).saturating_sub(start);
            if len == 0 || !self.ends_before {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
        }
        FileExt::read_at(&*self.file, &mut bytes[..len], offset)
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        unreachable!("it is only read")
    }

    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }

    fn set_bytes(&self, _: u64) -> io::Result<()> {
        unreachable!("it is only read")
    }

    fn reserve(&self, _: u64) -> io::Result<()> {
        unreachable!("it is only read")
    }

    fn sync_data(&self) -> io::Result<()> {
        unreachable!("it is only read")
    }

    fn sync_all(&self) -> io::Result<()> {
        unreachable!("it is only read")
    }
}

#[test]
fn what_is_read_ahead_is_what_the_file_has_wherever_it_is_read() {
    let (file, content) = file_of(1500);
    let ahead = ReadAhead::new(file);
    let mut next = numbers();
    let mut offset = 0;
    for _ in 0..600 {
        let len = (1 + next(300)) * PAGE;
        check(&ahead, &content, offset, len);
        offset += len;
        // Mostly on, now and then elsewhere, and from the start again.
        if next(8) == 0 || offset >= content.len() {
            offset = next(1500) * PAGE;
        }
    }
}

#[test]
fn a_file_that_is_read_through_is_read_ahead_from_the_second_read_on() {
    let (file, content) = file_of(2500);
    let ahead = ReadAhead::new(file);
    check(&ahead, &content, 0, PAGE);
    for offset in (PAGE..content.len()).step_by(70 * PAGE) {
        let len = (70 * PAGE).min(content.len() - offset);
        check(&ahead, &content, offset, len);
        assert!(was_ahead(&ahead, offset + len - 1), "{offset}");
    }
}

#[test]
fn a_page_that_cannot_be_read_fails_in_its_place_and_hides_no_other() {
    for ends_before in [false, true] {
        let (file, content) = file_of(1500);
        let mut next = numbers();
        let bad: HashSet<_> = (0..12).map(|_| next(1500)).collect();
        let ahead = ReadAhead::new(Arc::new(Faulty {
            file,
            bad: bad.clone(),
            ends_before,
            most: usize::MAX,
        }));
        let (mut page, mut failed, mut aheads) = (0, 0, 0);
        for _ in 0..3000 {
            let pages = (1 + next(60)).min(1500 - page);
            let first_bad = (page..page + pages).find(|page| bad.contains(page));
            let mut bytes = vec![0; pages * PAGE];
            let read = ahead.read_at(&mut bytes, (page * PAGE) as u64);
            let good = match (first_bad, read) {
                (None, read) => {
                    assert_eq!(read.unwrap(), pages * PAGE, "{pages} pages at {page}");
                    pages
                }
                (Some(bad), Ok(read)) => {
                    assert!(read > 0 && read <= (bad - page) * PAGE, "{read} at {page}");
                    read / PAGE
                }
                (Some(bad), Err(error)) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EIO));
                    failed += 1;
                    // As a reader does: what is asked for next is before the fault, or behind it.
                    if bad == page {
                        page += 1;
                    } else {
                        check(&ahead, &content, page * PAGE, (bad - page) * PAGE);
                        page = bad;
                    }
                    0
                }
            };
            let bytes = &bytes[..good * PAGE];
            assert!(*bytes == content[page * PAGE..][..bytes.len()], "at {page}");
            let last = ((page + good) * PAGE).saturating_sub(1);
            aheads += usize::from(was_ahead(&ahead, last));
            page = (page + good) % 1500;
        }
        assert!(failed > 12, "{failed} reads failed");
        assert!(aheads > 100, "{aheads} reads were ahead");
    }
}

#[test]
fn where_reads_are_short_what_follows_is_not_left_out() {
    let (file, content) = file_of(1500);
    let ahead = ReadAhead::new(Arc::new(Faulty {
        file,
        bad: HashSet::new(),
        ends_before: false,
        most: 100 * PAGE,
    }));
    let mut next = numbers();
    let (mut read, mut aheads) = (Vec::new(), 0);
    while read.len() < content.len() {
        let mut bytes = vec![0; (1 + next(150)) * PAGE];
        let len = ahead.read_at(&mut bytes, read.len() as u64).unwrap();
        assert!(len > 0, "at {}", read.len());
        read.extend_from_slice(&bytes[..len]);
        aheads += usize::from(was_ahead(&ahead, read.len() - 1));
    }
    assert!(read == content);
    assert!(aheads > 3, "{aheads} reads were ahead");
}

#[test]
fn what_comes_to_the_file_behind_its_old_end_is_read() {
    let (file, content) = file_of(900);
    let end = 600 * PAGE;
    file.set_len(end as u64).unwrap();
    let ahead = ReadAhead::new(file);
    for offset in (0..end).step_by(100 * PAGE) {
        check(&ahead, &content[..end], offset, 100 * PAGE);
    }
    check(&ahead, &content[..end], end, PAGE);
    ahead.write_all_at(&content[end..], end as u64).unwrap();
    for offset in (end..content.len()).step_by(100 * PAGE) {
        check(&ahead, &content, offset, 100 * PAGE);
    }
}
