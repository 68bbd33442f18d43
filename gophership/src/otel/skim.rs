//! The skim: walks the lengths of an `ExportLogsServiceRequest`, so that nothing misframed is acknowledged.
//!
//! Walked are the fields of the request, of each `ResourceLogs`, each `ScopeLogs` and each `LogRecord`: keys, wire
//! types and lengths. What lies inside a record's body and attributes, in the resource and in the scope is stepped
//! over, and so is whether strings are UTF-8: that would cost more than twice as much as all of the walk, and nobody else
//! pays for what is broken there. A destination refuses it, and it becomes a dead letter with the reason.
//!
//! Invariants:
//! - no allocation, no recursion beyond the four messages, time linear in the keys seen (payloads are not touched);
//! - never looser than `prost` on what it walks: same keys, varints, wire types of known fields, groups and nesting
//!   limit (`prost::RECURSION_LIMIT`).
//!
//! The input may lie in any number of parts, cut anywhere. Wire format:
//! <https://protobuf.dev/programming-guides/encoding/>.

mod ahead;

pub use ahead::Ahead;

/// What a skim learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skim {
    /// Log records in the request.
    pub records: u32,
    /// Length of the request in bytes: the sum of its parts.
    pub bytes: u64,
}

/// The input is not an `ExportLogsServiceRequest`: a producer's error, `INVALID_ARGUMENT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed protobuf in the field at byte {offset}: {what}")]
pub struct Malformed {
    /// Where the field that is wrong begins, in bytes from the start of the request.
    pub offset: u64,
    /// What is wrong with it.
    pub what: &'static str,
}

/// Checks the framing of the request that `parts` hold one after the other, and counts its records.
///
/// # Errors
/// [`Malformed`] at the first field that breaks the wire format or has the wrong wire type.
pub fn skim<P: AsRef<[u8]>>(parts: &[P]) -> Result<Skim, Malformed> {
    let total = parts.iter().map(|part| part.as_ref().len()).sum();
    let mut walker = Walker::new(parts);
    walker.message(&REQUEST, total)?;
    Ok(Skim {
        records: walker.records,
        bytes: total as u64,
    })
}

/// Levels of messages and groups that `prost` follows; its `RECURSION_LIMIT` is private.
const NESTING_MAX: usize = 100;

const TRUNCATED: &str = "it ends in the middle";
const LENGTH: &str = "its length exceeds what encloses it";
const VARINT: &str = "a varint exceeds 64 bits";
const KEY: &str = "its key exceeds 32 bits";
const FIELD_NUMBER: &str = "field number 0";
const WIRE_TYPE: &str = "a wire type that doesn't exist";
const WRONG_WIRE_TYPE: &str = "a known field with another wire type than its own";
const END_GROUP: &str = "the end of a group that isn't open";
const OPEN_GROUP: &str = "a group that doesn't end";
const NESTING: &str = "groups nested too deeply";
const RECORDS: &str = "more than 4294967295 records";

/// How a field's value is delimited: its wire type, as numbered on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Len = 2,
    StartGroup = 3,
    EndGroup = 4,
    Fixed32 = 5,
}

/// What the walk knows of one message.
struct Shape {
    /// Wire types of the known fields, by field number; all of them are below 16.
    known: [Option<Wire>; 16],
    /// The field that is walked in turn, and its shape.
    child: Option<(u32, &'static Self)>,
    /// Messages around this one.
    depth: usize,
    /// Wire types of the known fields that aren't walked, by their key, which is one byte.
    plain: [Option<Wire>; 128],
}

static REQUEST: Shape = shape(0, Some((1, &RESOURCE_LOGS)), &[(1, Wire::Len)]);
static RESOURCE_LOGS: Shape = shape(
    1,
    Some((2, &SCOPE_LOGS)),
    &[(1, Wire::Len), (2, Wire::Len), (3, Wire::Len)],
);
static SCOPE_LOGS: Shape = shape(
    2,
    Some((2, &LOG_RECORD)),
    &[(1, Wire::Len), (2, Wire::Len), (3, Wire::Len)],
);
static LOG_RECORD: Shape = shape(
    3,
    None,
    &[
        (1, Wire::Fixed64),
        (2, Wire::Varint),
        (3, Wire::Len),
        (5, Wire::Len),
        (6, Wire::Len),
        (7, Wire::Varint),
        (8, Wire::Fixed32),
        (9, Wire::Len),
        (10, Wire::Len),
        (11, Wire::Fixed64),
        (12, Wire::Len),
    ],
);

/// Wire types of a `LogRecord`'s known fields, by their key, which is one byte.
pub(super) static RECORD_FIELDS: &[Option<Wire>; 128] = &LOG_RECORD.plain;

const fn shape(
    depth: usize,
    child: Option<(u32, &'static Shape)>,
    fields: &[(usize, Wire)],
) -> Shape {
    let mut known = [None; 16];
    let mut plain = [None; 128];
    let mut at = 0;
    while at < fields.len() {
        let (field, wire) = fields[at];
        known[field] = Some(wire);
        let walked = matches!(child, Some((child, _)) if child as usize == field);
        if !walked {
            plain[field << 3 | wire as usize] = Some(wire);
        }
        at += 1;
    }
    Shape {
        known,
        child,
        depth,
        plain,
    }
}

/// Bytes at the front of `bytes` that are whole, known, valid fields which nothing is walked in.
///
/// This is for speed alone, and may stop early: `Walker::message` judges whatever comes next. It more than halves the
/// cost of a record: keys repeat from record to record, so the processor predicts these branches and waits for the
/// lengths only. (A table of steps by key was slower: each step then waits for its key as well.)
pub(super) fn plain_fields(bytes: &[u8], plain: &[Option<Wire>; 128]) -> usize {
    let mut rest = bytes;
    while let &[key, low, ref value @ ..] = rest {
        let Some(wire) = plain.get(usize::from(key)).copied().flatten() else {
            break;
        };
        let after = if wire == Wire::Len {
            if low < 0x80 {
                value.get(usize::from(low)..)
            } else {
                // Lengths of two bytes are common: bodies and attributes of 128 bytes and more.
                match value {
                    &[high, ref value @ ..] if high < 0x80 => {
                        value.get((usize::from(low & 0x7f) | usize::from(high) << 7)..)
                    }
                    _ => None,
                }
            }
        } else {
            match wire {
                Wire::Varint if low < 0x80 => Some(value),
                Wire::Fixed64 => value.get(7..),
                Wire::Fixed32 => value.get(3..),
                _ => None,
            }
        };
        match after {
            Some(after) => rest = after,
            None => break,
        }
    }
    bytes.len() - rest.len()
}

/// A place in the parts, moving forward.
pub(super) struct Walker<'a, P> {
    /// The parts after `chunk`.
    parts: std::slice::Iter<'a, P>,
    /// What is left of the current part.
    chunk: &'a [u8],
    /// Where `chunk` ends, in bytes from the start of the request.
    chunk_end: usize,
    records: u32,
}

impl<P> Clone for Walker<'_, P> {
    fn clone(&self) -> Self {
        Self {
            parts: self.parts.clone(),
            ..*self
        }
    }
}

impl<'a, P: AsRef<[u8]>> Walker<'a, P> {
    /// At the first byte.
    pub(super) fn new(parts: &'a [P]) -> Self {
        Self {
            parts: parts.iter(),
            chunk: &[],
            chunk_end: 0,
            records: 0,
        }
    }

    /// Walks the fields of one message up to `end`, an offset within the request.
    fn message(&mut self, shape: &'static Shape, end: usize) -> Result<(), Malformed> {
        loop {
            let window = self.chunk.len().min(end - self.offset());
            self.skip(plain_fields(&self.chunk[..window], &shape.plain));
            let at = self.offset();
            if at == end {
                return Ok(());
            }
            let (field, wire) = self.key(at)?;
            if let Some(Some(own)) = shape.known.get(field as usize)
                && *own != wire
            {
                return malformed(at, WRONG_WIRE_TYPE);
            }
            let length = match wire {
                Wire::StartGroup => {
                    self.group(field, shape.depth, at, end)?;
                    continue;
                }
                wire => self.length(wire, at)?,
            };
            let length = self.within(length, at, end)?;
            match shape.child {
                Some((child, child_shape)) if child == field => {
                    if child_shape.child.is_none() {
                        self.count_record(at)?;
                    }
                    self.message(child_shape, self.offset() + length)?;
                }
                _ => self.skip(length),
            }
        }
    }

    /// Walks what follows a start-group key up to its end, as `prost` does with unknown fields.
    #[cold]
    pub(super) fn group(
        &mut self,
        field: u32,
        depth: usize,
        at: usize,
        end: usize,
    ) -> Result<(), Malformed> {
        let limit = NESTING_MAX - depth;
        let mut open = [0; NESTING_MAX];
        open[0] = field;
        let mut groups = 1;
        while groups > 0 {
            if self.offset() >= end {
                return malformed(at, OPEN_GROUP);
            }
            let inner_at = self.offset();
            let (inner, wire) = self.key(inner_at)?;
            if wire == Wire::EndGroup {
                groups -= 1;
                if open[groups] != inner {
                    return malformed(inner_at, END_GROUP);
                }
                continue;
            }
            if groups >= limit {
                return malformed(inner_at, NESTING);
            }
            if wire == Wire::StartGroup {
                open[groups] = inner;
                groups += 1;
            } else {
                let length = self.length(wire, inner_at)?;
                let length = self.within(length, inner_at, end)?;
                self.skip(length);
            }
        }
        self.within(0, at, end)?;
        Ok(())
    }

    /// Reads a key: field number and wire type.
    #[inline(always)]
    pub(super) fn key(&mut self, at: usize) -> Result<(u32, Wire), Malformed> {
        let key = self.varint(at)?;
        let Ok(key) = u32::try_from(key) else {
            return malformed(at, KEY);
        };
        let wire = match key & 7 {
            0 => Wire::Varint,
            1 => Wire::Fixed64,
            2 => Wire::Len,
            3 => Wire::StartGroup,
            4 => Wire::EndGroup,
            5 => Wire::Fixed32,
            _ => return malformed(at, WIRE_TYPE),
        };
        match key >> 3 {
            0 => malformed(at, FIELD_NUMBER),
            field => Ok((field, wire)),
        }
    }

    /// Bytes of the value that still lie ahead (a varint is read at once). Groups have no length.
    #[inline(always)]
    pub(super) fn length(&mut self, wire: Wire, at: usize) -> Result<u64, Malformed> {
        match wire {
            Wire::Varint => self.varint(at).map(|_| 0),
            Wire::Fixed64 => Ok(8),
            Wire::Len => self.varint(at),
            Wire::Fixed32 => Ok(4),
            Wire::StartGroup | Wire::EndGroup => malformed(at, END_GROUP),
        }
    }

    /// Checks that nothing read so far, nor the `length` bytes ahead, exceeds `end`.
    #[inline(always)]
    pub(super) fn within(&self, length: u64, at: usize, end: usize) -> Result<usize, Malformed> {
        let offset = self.offset();
        match usize::try_from(length) {
            Ok(length) if offset <= end && length <= end - offset => Ok(length),
            _ => malformed(at, LENGTH),
        }
    }

    #[inline(always)]
    pub(super) fn varint(&mut self, at: usize) -> Result<u64, Malformed> {
        match *self.chunk {
            [low, ref rest @ ..] if low < 0x80 => {
                self.chunk = rest;
                Ok(u64::from(low))
            }
            [low, high, ref rest @ ..] if high < 0x80 => {
                self.chunk = rest;
                Ok(u64::from(low & 0x7f) | u64::from(high) << 7)
            }
            _ => self.long_varint(at),
        }
    }

    /// A varint of three bytes and more, or one that crosses parts.
    #[inline(never)]
    fn long_varint(&mut self, at: usize) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let Some(byte) = self.byte() else {
                return malformed(at, TRUNCATED);
            };
            if shift == 63 && byte > 1 {
                return malformed(at, VARINT);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        malformed(at, VARINT)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        while self.chunk.is_empty() {
            self.next_part()?;
        }
        let (&byte, rest) = self.chunk.split_first()?;
        self.chunk = rest;
        Some(byte)
    }

    /// Steps over bytes that `within` found to be there.
    #[inline(always)]
    pub(super) fn skip(&mut self, length: usize) {
        match self.chunk.get(length..) {
            Some(rest) => self.chunk = rest,
            None => self.skip_parts(length),
        }
    }

    #[cold]
    fn skip_parts(&mut self, mut length: usize) {
        while length > self.chunk.len() {
            length -= self.chunk.len();
            if self.next_part().is_none() {
                return;
            }
        }
        self.chunk = &self.chunk[length..];
    }

    fn next_part(&mut self) -> Option<()> {
        self.chunk = self.parts.next()?.as_ref();
        self.chunk_end += self.chunk.len();
        Some(())
    }

    /// What is left of the current part.
    #[inline(always)]
    pub(super) fn chunk(&self) -> &'a [u8] {
        self.chunk
    }

    /// Bytes walked.
    #[inline(always)]
    pub(super) fn offset(&self) -> usize {
        self.chunk_end - self.chunk.len()
    }

    fn count_record(&mut self, at: usize) -> Result<(), Malformed> {
        match self.records.checked_add(1) {
            Some(records) => {
                self.records = records;
                Ok(())
            }
            None => malformed(at, RECORDS),
        }
    }
}

#[cold]
fn malformed<T>(at: usize, what: &'static str) -> Result<T, Malformed> {
    Err(Malformed {
        offset: at as u64,
        what,
    })
}
