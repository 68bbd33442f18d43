//! The skim while the request still comes in: each part is walked as it arrives, when it is in the processor's cache.
//!
//! Only what common requests are made of is followed. Whatever is unusual or wrong ends the attempt, and [`skim`], which
//! is the judge, walks the whole later. What is followed to the end is well-framed: the tests hold the two against each
//! other.
//!
//! [`skim`]: super::skim

use super::{LOG_RECORD, REQUEST, RESOURCE_LOGS, SCOPE_LOGS, Shape, Skim, Wire, plain_fields};

static SHAPES: [&Shape; 4] = [&REQUEST, &RESOURCE_LOGS, &SCOPE_LOGS, &LOG_RECORD];

/// A key of one byte, and a varint.
const HEAD_BYTES_MAX: usize = 11;

/// How far the walk has come.
#[derive(Debug)]
pub struct Ahead {
    /// Where the messages around this place end, in bytes from the start of the request; the request's own end shows
    /// when it is there.
    ends: [u64; SHAPES.len()],
    level: usize,
    /// Bytes walked.
    at: u64,
    /// Bytes from there on that are stepped over.
    skip: u64,
    /// A field's first bytes that came with an earlier part.
    head: [u8; HEAD_BYTES_MAX],
    head_len: usize,
    records: u32,
    is_given_up: bool,
}

impl Default for Ahead {
    fn default() -> Self {
        Self {
            ends: [u64::MAX; SHAPES.len()],
            level: 0,
            at: 0,
            skip: 0,
            head: [0; HEAD_BYTES_MAX],
            head_len: 0,
            records: 0,
            is_given_up: false,
        }
    }
}

/// What a field's first bytes tell.
enum Head {
    /// They have this length, and so many bytes follow; a message that is walked in turn, or not.
    Whole {
        len: usize,
        follow: u64,
        is_walked: bool,
    },
    /// More is needed.
    Short,
    /// Not for us.
    Unusual,
}

impl Ahead {
    /// Walks the next part.
    pub fn push(&mut self, part: &[u8]) {
        let mut bytes = part;
        while !self.is_given_up {
            let stepped = self.skip.min(bytes.len() as u64);
            bytes = &bytes[usize::try_from(stepped).unwrap_or(0)..];
            self.skip -= stepped;
            self.at += stepped;
            if self.skip > 0 {
                return;
            }
            while self.at == self.ends[self.level] {
                self.level -= 1;
            }
            if bytes.is_empty() {
                return;
            }
            if self.head_len == 0 {
                let left = self.ends[self.level] - self.at;
                let window = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let walked = plain_fields(&bytes[..window], &SHAPES[self.level].plain);
                bytes = &bytes[walked..];
                self.at += walked as u64;
                if walked == window {
                    continue;
                }
            }
            bytes = self.field(bytes);
        }
    }

    /// Takes one field's first bytes; what is left behind them.
    fn field<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let had = self.head_len;
        let more = bytes.len().min(HEAD_BYTES_MAX - had);
        self.head[had..had + more].copy_from_slice(&bytes[..more]);
        match head(SHAPES[self.level], &self.head[..had + more]) {
            Head::Whole {
                len,
                follow,
                is_walked,
            } => {
                self.head_len = 0;
                self.enter(len as u64, follow, is_walked);
                &bytes[len - had..]
            }
            Head::Short => {
                self.head_len = had + more;
                &[]
            }
            Head::Unusual => {
                self.is_given_up = true;
                &[]
            }
        }
    }

    fn enter(&mut self, len: u64, follow: u64, is_walked: bool) {
        self.at += len;
        let end = self.at.checked_add(follow);
        let Some(end) = end.filter(|&end| end <= self.ends[self.level]) else {
            self.is_given_up = true;
            return;
        };
        if !is_walked {
            self.skip = follow;
            return;
        }
        self.level += 1;
        self.ends[self.level] = end;
        if self.level == SHAPES.len() - 1 {
            match self.records.checked_add(1) {
                Some(records) => self.records = records,
                None => self.is_given_up = true,
            }
        }
    }

    /// What [`super::skim`] would say of all parts together; `None` if that has yet to be asked.
    #[must_use]
    pub const fn finish(&self) -> Option<Skim> {
        let is_whole = self.level == 0 && self.skip == 0 && self.head_len == 0;
        if self.is_given_up || !is_whole {
            return None;
        }
        Some(Skim {
            records: self.records,
            bytes: self.at,
        })
    }
}

fn head(shape: &Shape, bytes: &[u8]) -> Head {
    let Some((&key, value)) = bytes.split_first() else {
        return Head::Short;
    };
    let field = u32::from(key >> 3);
    // A key of more bytes has its first bit set, and no known field then.
    let Some(Some(wire)) = shape.known.get(field as usize).copied() else {
        return Head::Unusual;
    };
    if key & 7 != wire as u8 {
        return Head::Unusual;
    }
    let follow = match wire {
        Wire::Fixed64 => 8,
        Wire::Fixed32 => 4,
        Wire::Varint | Wire::Len => return head_with_varint(shape, field, wire, value),
        Wire::StartGroup | Wire::EndGroup => return Head::Unusual,
    };
    Head::Whole {
        len: 1,
        follow,
        is_walked: false,
    }
}

fn head_with_varint(shape: &Shape, field: u32, wire: Wire, bytes: &[u8]) -> Head {
    let mut value = 0;
    for (at, &byte) in bytes.iter().take(10).enumerate() {
        if at == 9 && byte > 1 {
            return Head::Unusual;
        }
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            let is_len = wire == Wire::Len;
            return Head::Whole {
                len: 1 + at + 1,
                follow: if is_len { value } else { 0 },
                is_walked: is_len && matches!(shape.child, Some((child, _)) if child == field),
            };
        }
    }
    if bytes.len() < 10 {
        Head::Short
    } else {
        Head::Unusual
    }
}
