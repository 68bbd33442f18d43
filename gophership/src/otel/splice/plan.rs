//! The first pass: what a request lacks, and how much the messages around it grow.

use super::{
    super::skim::{Malformed, Walker, Wire, plain_fields},
    Attributes, Enrichment, KEY_BYTES_MAX, OBSERVED_BYTES, OBSERVED_KEY, varint_bytes,
};

/// `ResourceLogs` that a plan tells of.
const RESOURCE_LOGS_KEPT: usize = 16;
/// `ScopeLogs` that a plan tells of.
const SCOPE_LOGS_KEPT: usize = 64;

/// How much a request grows, and the first of its messages, in their order.
#[derive(Debug, Default)]
pub(super) struct Plan {
    growth: usize,
    resource_logs: Kept<ResourcePlan, RESOURCE_LOGS_KEPT>,
    /// Growth of the content of each `ScopeLogs`, in those `ResourceLogs` that grow.
    scope_logs: Kept<usize, SCOPE_LOGS_KEPT>,
}

/// What one `ResourceLogs` gets.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ResourcePlan {
    /// Growth of its content.
    pub(super) growth: usize,
    /// Attributes that its resource lacks.
    pub(super) missing: Attributes,
    /// Where its last resource field begins; `None`: it has no resource.
    pub(super) resource_at: Option<usize>,
}

/// The first `N` of what was pushed.
#[derive(Debug)]
pub(super) struct Kept<T, const N: usize> {
    items: [T; N],
    /// Of all that was pushed.
    count: usize,
}

impl<T: Copy + Default, const N: usize> Default for Kept<T, N> {
    fn default() -> Self {
        Self {
            items: [T::default(); N],
            count: 0,
        }
    }
}

impl<T: Copy, const N: usize> Kept<T, N> {
    fn push(&mut self, item: T) {
        if let Some(place) = self.items.get_mut(self.count) {
            *place = item;
        }
        self.count += 1;
    }

    /// The item that was pushed as number `index`, if it was kept.
    pub(super) fn get(&self, index: usize) -> Option<T> {
        self.items.get(index).copied()
    }
}

impl Plan {
    /// Walks the request of `bytes` bytes, which is the first one of this plan.
    pub(super) fn walk<P: AsRef<[u8]>>(
        &mut self,
        parts: &[P],
        bytes: usize,
        enrichment: &Enrichment,
    ) -> Result<(), Malformed> {
        let mut walker = Walker::new(parts);
        while let Some(field) = Field::next(&mut walker, 0, bytes)? {
            if !field.is_message(1) {
                walker.skip(field.len());
                continue;
            }
            let scopes_before = self.scope_logs.count;
            let keep = |growth| self.scope_logs.push(growth);
            let own = resource_logs(&mut walker, field.end, enrichment, keep)?;
            if own.growth == 0 {
                // The second pass steps over them.
                self.scope_logs.count = scopes_before;
            }
            self.resource_logs.push(own);
            self.growth += field.grown(own.growth);
        }
        Ok(())
    }

    /// Bytes that are put in.
    pub(super) const fn growth(&self) -> usize {
        self.growth
    }

    /// What the `ResourceLogs` number `index` gets, if that was kept.
    pub(super) fn resource_logs(&self, index: usize) -> Option<ResourcePlan> {
        self.resource_logs.get(index)
    }

    /// Growth of the content of the `ScopeLogs` number `index`, if that was kept.
    pub(super) fn scope_logs(&self, index: usize) -> Option<usize> {
        self.scope_logs.get(index)
    }
}

/// Walks one `ResourceLogs`; `keep` hears of the growth of its `ScopeLogs`.
pub(super) fn resource_logs<P: AsRef<[u8]>>(
    walker: &mut Walker<'_, P>,
    end: usize,
    enrichment: &Enrichment,
    mut keep: impl FnMut(usize),
) -> Result<ResourcePlan, Malformed> {
    let mut growth = 0;
    let mut missing = enrichment.all();
    let mut resource = None;
    while let Some(field) = Field::next(walker, 1, end)? {
        if field.is_message(1) {
            // On a copy: whether it can be read is not our verdict.
            let present = keys(&mut walker.clone(), field.end, enrichment);
            missing &= !present.unwrap_or(Attributes::MAX);
            resource = Some(field);
            walker.skip(field.len());
        } else if field.is_message(2) {
            let own = scope_logs(walker, field.end)?;
            keep(own);
            growth += field.grown(own);
        } else {
            walker.skip(field.len());
        }
    }
    if missing != 0 {
        let added = enrichment.bytes_of(missing);
        growth += match resource {
            Some(resource) => resource.grown(added),
            None => 1 + varint_bytes(added) + added,
        };
    }
    Ok(ResourcePlan {
        growth,
        missing,
        resource_at: resource.map(|resource| resource.at),
    })
}

/// The attributes that a `Resource` has.
fn keys<P: AsRef<[u8]>>(
    walker: &mut Walker<'_, P>,
    end: usize,
    enrichment: &Enrichment,
) -> Result<Attributes, Malformed> {
    let mut present = 0;
    while let Some(field) = Field::next(walker, 2, end)? {
        if field.is_message(1) {
            present |= key(walker, field.end, enrichment)?;
        } else {
            walker.skip(field.len());
        }
    }
    Ok(present)
}

/// Which attribute a `KeyValue` is, by its (last) key.
fn key<P: AsRef<[u8]>>(
    walker: &mut Walker<'_, P>,
    end: usize,
    enrichment: &Enrichment,
) -> Result<Attributes, Malformed> {
    let mut named = enrichment.with_key(b"");
    while let Some(field) = Field::next(walker, 3, end)? {
        let len = field.len();
        if field.is_message(1) {
            named = match walker.chunk().get(..len) {
                Some(key) => enrichment.with_key(key),
                // It is cut between parts.
                None if len <= KEY_BYTES_MAX => {
                    let mut key = [0; KEY_BYTES_MAX];
                    let mut bytes = walker.clone();
                    for place in &mut key[..len] {
                        *place = bytes.byte().unwrap_or_default();
                    }
                    enrichment.with_key(&key[..len])
                }
                None => 0,
            };
        }
        walker.skip(len);
    }
    Ok(named)
}

/// Walks one `ScopeLogs`; gives the growth of its content.
pub(super) fn scope_logs<P: AsRef<[u8]>>(
    walker: &mut Walker<'_, P>,
    end: usize,
) -> Result<usize, Malformed> {
    let mut growth = 0;
    while let Some(field) = Field::next(walker, 2, end)? {
        if !field.is_message(2) {
            walker.skip(field.len());
        } else if lacks_observed_time(walker, field.end)? {
            growth += field.grown(OBSERVED_BYTES);
        }
    }
    Ok(growth)
}

/// Wire types of a record's known fields, by their key, but of the observed time.
static UNOBSERVED: [Option<Wire>; 128] = {
    let mut fields = *super::super::skim::RECORD_FIELDS;
    fields[OBSERVED_KEY as usize] = None;
    fields
};

/// Walks one `LogRecord`.
pub(super) fn lacks_observed_time<P: AsRef<[u8]>>(
    walker: &mut Walker<'_, P>,
    end: usize,
) -> Result<bool, Malformed> {
    let mut lacks = true;
    loop {
        let window = walker.chunk().len().min(end - walker.offset());
        let chunk = &walker.chunk()[..window];
        let plain = plain_fields(chunk, &UNOBSERVED);
        walker.skip(plain);
        if let Some(&[OBSERVED_KEY, ref time @ ..]) = chunk[plain..].first_chunk::<OBSERVED_BYTES>()
        {
            lacks = *time == [0; 8];
            walker.skip(OBSERVED_BYTES);
            continue;
        }
        let Some(field) = Field::next(walker, 3, end)? else {
            return Ok(lacks);
        };
        if (field.number, field.wire) == (11, Wire::Fixed64) {
            // Cut between parts.
            let mut bytes = walker.clone();
            lacks = (0..8).all(|_| bytes.byte() == Some(0));
        }
        walker.skip(field.len());
    }
}

/// One field, whose value lies ahead, but for a varint's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    number: u32,
    wire: Wire,
    /// Where it begins, in bytes from the start of the request.
    pub(super) at: usize,
    /// Where its length begins, if it has one.
    pub(super) length_at: usize,
    /// Where its content begins.
    pub(super) content: usize,
    /// Where its content ends.
    pub(super) end: usize,
}

impl Field {
    /// The next field of a message that ends at `end` and has `depth` around it; whole groups are stepped over.
    #[inline(always)]
    pub(super) fn next<P: AsRef<[u8]>>(
        walker: &mut Walker<'_, P>,
        depth: usize,
        end: usize,
    ) -> Result<Option<Self>, Malformed> {
        let at = walker.offset();
        if at == end {
            return Ok(None);
        }
        let (number, wire) = walker.key(at)?;
        let length_at = walker.offset();
        let length = if wire == Wire::StartGroup {
            walker.group(number, depth, at, end)?;
            0
        } else {
            walker.length(wire, at)?
        };
        let length = walker.within(length, at, end)?;
        let content = walker.offset();
        Ok(Some(Self {
            number,
            wire,
            at,
            length_at,
            content,
            end: content + length,
        }))
    }

    /// Whether it is the message, or the text, that has this number.
    #[inline(always)]
    pub(super) fn is_message(&self, number: u32) -> bool {
        self.number == number && self.wire == Wire::Len
    }

    /// Bytes of its content.
    #[inline(always)]
    pub(super) const fn len(&self) -> usize {
        self.end - self.content
    }

    /// Bytes of its length.
    pub(super) const fn length_width(&self) -> usize {
        self.content - self.length_at
    }

    /// How much it grows if its content grows by `growth`: its length may, too.
    #[inline(always)]
    pub(super) fn grown(&self, growth: usize) -> usize {
        if growth == 0 {
            return 0;
        }
        growth + varint_bytes(self.len() + growth).saturating_sub(self.length_width())
    }
}
