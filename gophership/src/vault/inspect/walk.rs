//! One segment from its start to its end, block by block and entry by entry, through damage.
//!
//! The rules are those of recovery, which the verdict's table is shared with; but nothing is changed.

use std::{io, ops::ControlFlow, path::Path};

use super::{
    Directory, Header, Owner, SegmentFile,
    account::Account,
    read_header,
    seen::{Damage, Depth, Ending, Visitor, Walked},
};
use crate::vault::{
    error::{Error, io_error},
    format::{BlockHeader, BlockKind, FormatError, PAGE},
    outlook::Outlook,
    platform::Platform,
    recovery::{self, Verdict, judge, reason},
    walk::{BlockSource, Identity, Look, Position, is_consistent},
};

/// How far a quick walk looks for blocks behind a blank page: more than what a lane has in flight.
const QUICK_AHEAD: u64 = 8 << 20;

/// Walks `segment` of `directory`.
///
/// # Errors
/// The file can't be opened, other than because it is gone.
pub fn walk(
    directory: &Directory,
    segment: &SegmentFile,
    depth: Depth,
    visitor: &mut dyn Visitor,
) -> Result<Walked, Error> {
    let (blocks, headers) = match open(directory.files(), &segment.path, depth) {
        Ok(sources) => sources,
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => {
            return Ok(walked(Ending::Gone, Position::START));
        }
        Err(error) => return Err(io_error("opening", &segment.path)(error)),
    };
    let account = Account::new(directory, segment, visitor);
    let mut walk = Walk {
        depth,
        outlook: outlook(&account, &blocks),
        blocks,
        headers,
        decoded: Vec::new(),
        looked_again: None,
        account,
    };
    let ending = match walk.begin() {
        ControlFlow::Continue(()) => walk.run(),
        ControlFlow::Break(ending) => ending,
    };
    Ok(walked(ending, walk.account.position))
}

fn walked(ending: Ending, position: Position) -> Walked {
    Walked {
        ending,
        blocks: position.index,
        entries: position.entry,
        records: position.record,
        end: position.offset,
    }
}

/// One source for payloads, and one for headers alone.
fn open(files: &dyn Platform, path: &Path, depth: Depth) -> io::Result<(BlockSource, BlockSource)> {
    let blocks = match depth {
        Depth::Headers | Depth::Needed => BlockSource::open(files, path)?,
        Depth::Everything => BlockSource::open_through(files, path)?,
    };
    Ok((blocks, BlockSource::open_for_headers(files, path)?))
}

fn outlook<'a>(account: &Account<'a>, source: &BlockSource) -> Outlook<'a> {
    let directory = account.directory;
    let next = directory.next(account.segment);
    Outlook::new(directory.files(), source, account.identity, next)
}

/// Whether a segment without a header of its own was never used, as far as the first pages tell; `first`
/// says whose the first block is.
fn is_unused(segment: &SegmentFile, first: Option<&Result<(u64, u64), FormatError>>) -> bool {
    match &segment.header {
        Header::Whole(header) if header.is_ready => {
            !matches!(first, Some(Ok(first)) if *first == (segment.number, header.tag))
        }
        // A recycled file has the header of the segment it was, until it is used again.
        Header::Foreign(other) if other.segment != segment.number => {
            !matches!(first, Some(Ok((number, _))) if *number == segment.number)
        }
        Header::Damaged(FormatError::Blank) => {
            matches!(first, Some(Err(FormatError::Blank | FormatError::Short)))
        }
        Header::Foreign(_) | Header::Damaged(_) | Header::Unreadable(_) | Header::Whole(_) => false,
    }
}

/// Whether a crash may have left what is in place of the header, as recovery sees it.
fn is_tearable(segment: &SegmentFile) -> bool {
    match &segment.header {
        Header::Foreign(other) => other.segment != segment.number,
        Header::Damaged(error) => recovery::is_tearable(*error),
        Header::Unreadable(_) | Header::Whole(_) => false,
    }
}

struct Walk<'a> {
    depth: Depth,
    /// For payloads and for what follows damage: one large window.
    blocks: BlockSource,
    /// For headers alone: a page.
    headers: BlockSource,
    decoded: Vec<u8>,
    outlook: Outlook<'a>,
    looked_again: Option<u64>,
    account: Account<'a>,
}

impl Walk<'_> {
    /// Finds out which blocks are the segment's if its own header doesn't say.
    fn begin(&mut self) -> ControlFlow<Ending> {
        let segment = self.account.segment;
        if segment.header.begun().is_some() {
            return ControlFlow::Continue(());
        }
        let limit = segment.bytes;
        let first = self.headers.bytes(PAGE as u64, PAGE, limit);
        let first = first.map(BlockHeader::decode);
        let first = first.map(|first| first.map(|header| (header.segment, header.tag)));
        if self.is_quick() && is_unused(segment, first.as_ref().ok()) {
            return ControlFlow::Break(Ending::Unused);
        }
        let identity = self.account.identity;
        if identity.tag.is_some() {
            return self.begin_ready(identity);
        }
        let is_damage = !is_tearable(segment) || self.is_vouched_for();
        self.account.identity.tag = match first {
            Ok(Ok((number, tag))) if number == segment.number => Some(tag),
            Ok(_) | Err(_) => self
                .blocks
                .next_block(identity, Position::BEFORE_FIRST, limit)
                .map(|(_, header)| header.tag),
        };
        match self.account.identity.tag {
            _ if is_damage => self.lose_header()?,
            Some(_) => {}
            None => return ControlFlow::Break(Ending::Unused),
        }
        self.outlook = outlook(&self.account, &self.blocks);
        if is_damage {
            // What is in the header's place may be a block of this segment, and vouch for the others.
            let from = Position::BEFORE_FIRST;
            self.outlook.vouched_from(from, limit);
        }
        ControlFlow::Continue(())
    }

    /// Finds out whether a segment that was made ahead has blocks all the same, since the write of its own
    /// header was lost.
    fn begin_ready(&mut self, identity: Identity) -> ControlFlow<Ending> {
        let limit = self.account.segment.bytes;
        let first = self
            .blocks
            .next_block(identity, Position::BEFORE_FIRST, limit);
        if first.is_some() {
            return ControlFlow::Continue(());
        }
        match self.is_vouched_for() {
            true => self.lose_header(),
            false => ControlFlow::Break(Ending::Unused),
        }
    }

    /// Whether something says that a block was durable, or may say so where the disk can't be read.
    fn is_vouched_for(&mut self) -> bool {
        let (outlook, limit) = (&mut self.outlook, self.account.segment.bytes);
        outlook.vouched_from(Position::BEFORE_FIRST, limit);
        let is_seal_acknowledged = outlook.is_seal_acknowledged();
        let vouched = outlook.vouched_from(Position::BEFORE_FIRST, limit);
        is_seal_acknowledged || vouched.durable > 0 || vouched.unsure
    }

    /// Tells of a damaged header, unless a daemon has written it since.
    fn lose_header(&mut self) -> ControlFlow<Ending> {
        let Account {
            directory, segment, ..
        } = self.account;
        if directory.owner != Owner::Nobody {
            let files = directory.files();
            let header = read_header(files, &segment.path, segment.lane, segment.number);
            if let Some(header) = header.begun() {
                self.account.identity.tag = Some(header.tag);
                return ControlFlow::Continue(());
            }
            if !files.exists(&segment.path) {
                return ControlFlow::Break(Ending::Gone);
            }
        }
        let is_lost = self.account.identity.tag.is_none();
        let end = if is_lost { segment.bytes } else { PAGE as u64 };
        let reason = match segment.header {
            Header::Foreign(_) => "the header is of another segment",
            Header::Unreadable(_) => "the disk can't read the segment's header",
            Header::Damaged(_) | Header::Whole(_) => "segment header damaged",
        };
        self.account.report(&Damage {
            open_ended: is_lost,
            ..self.account.damage(0, end, reason)
        });
        match is_lost {
            true => ControlFlow::Break(Ending::Lost),
            false => ControlFlow::Continue(()),
        }
    }

    fn run(&mut self) -> Ending {
        loop {
            let header = match self.look() {
                Look::Block(header) => header,
                bad => match self.skip(bad) {
                    ControlFlow::Continue(()) => continue,
                    ControlFlow::Break(ending) => return ending,
                },
            };
            let offset = self.account.position.offset;
            if self.account.meet(&header).is_break() {
                return Ending::Stopped;
            }
            if header.kind == BlockKind::Seal {
                self.account.check_seal(&header);
                self.account.position.offset += header.padded_len() as u64;
                return Ending::Sealed;
            }
            if self.take(&header).is_break() {
                return Ending::Stopped;
            }
            self.account.position = Position::after(offset, &header);
        }
    }

    fn look(&mut self) -> Look {
        let Account {
            identity,
            position,
            segment,
            ..
        } = self.account;
        if !self.is_quick() {
            return self.blocks.look(identity, position, segment.bytes);
        }
        match self
            .headers
            .look_at_header(identity, position, segment.bytes)
        {
            Look::Block(header) if self.wants_payload(&header) => {
                self.blocks.look(identity, position, segment.bytes)
            }
            look => look,
        }
    }

    fn is_quick(&self) -> bool {
        match self.depth {
            Depth::Headers | Depth::Needed => true,
            Depth::Everything => false,
        }
    }

    fn wants_payload(&mut self, header: &BlockHeader) -> bool {
        match self.depth {
            Depth::Headers => false,
            Depth::Needed => self.account.wants_payload(header),
            Depth::Everything => true,
        }
    }

    /// Tells what is in a block.
    fn take(&mut self, header: &BlockHeader) -> ControlFlow<()> {
        if header.kind != BlockKind::Data {
            return ControlFlow::Continue(());
        }
        if !self.wants_payload(header) {
            self.account.pass_over(header);
            return ControlFlow::Continue(());
        }
        let offset = self.account.position.offset;
        let payload = self
            .blocks
            .payload(offset, header, &mut self.decoded)
            .filter(|payload| is_consistent(header, payload));
        if let Some(payload) = payload {
            return self.account.take_pieces(header, payload);
        }
        self.account
            .lose_block(header, "payload is not a run of entries");
        ControlFlow::Continue(())
    }

    /// Deals with a place that has no block.
    fn skip(&mut self, look: Look) -> ControlFlow<Ending> {
        let Account {
            identity,
            position: from,
            segment,
            ..
        } = self.account;
        let is_blank = matches!(look, Look::NoBlock(FormatError::Blank) | Look::End);
        let limit = match self.is_quick() && is_blank {
            true => segment.bytes.min(from.offset.saturating_add(QUICK_AHEAD)),
            false => segment.bytes,
        };
        let vouched = self.outlook.vouched_from(from, limit);
        if judge(look, from.index, vouched) != Some(Verdict::Damaged) {
            let is_clean = is_blank && self.blocks.next_block(identity, from, limit).is_none();
            return ControlFlow::Break(if is_clean { Ending::Open } else { Ending::Torn });
        }
        if self.look_again(look)? {
            return ControlFlow::Continue(());
        }
        if let Look::BadPayload(header) = look {
            if self.account.meet(&header).is_break() {
                return ControlFlow::Break(Ending::Stopped);
            }
            self.account
                .lose_block(&header, "checksum of the payload doesn't match");
            self.account.position = Position::after(from.offset, &header);
            return ControlFlow::Continue(());
        }
        let next = self.blocks.next_block(identity, from, limit);
        match self.account.lose_gap(next, reason(look)) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(Ending::Lost),
        }
    }

    /// Looks at this place once more, afresh, because a daemon may have written it since, or have put
    /// another segment into the file: whether something else is there now.
    fn look_again(&mut self, look: Look) -> ControlFlow<Ending, bool> {
        let Account {
            directory,
            segment,
            identity,
            position,
            ..
        } = self.account;
        let is_again = self.looked_again == Some(position.offset);
        if is_again || directory.owner == Owner::Nobody {
            return ControlFlow::Continue(false);
        }
        self.looked_again = Some(position.offset);
        let files = directory.files();
        let again = BlockSource::open_for_headers(files, &segment.path)
            .map(|mut source| source.look(identity, position, segment.bytes));
        // It loses its name before anything is written over it.
        if !files.exists(&segment.path) {
            return ControlFlow::Break(Ending::Gone);
        }
        let is_other = again.is_ok_and(|again| again != look);
        if is_other && let Ok(sources) = open(files, &segment.path, self.depth) {
            (self.blocks, self.headers) = sources;
        }
        ControlFlow::Continue(is_other)
    }
}
