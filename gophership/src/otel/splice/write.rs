//! The second pass: the request is copied, with what it lacks.

use super::{
    super::skim::{Malformed, Walker},
    Attributes, FIELD_1_LEN, OBSERVED_BYTES, OBSERVED_KEY, Splice,
    plan::{Field, ResourcePlan, lacks_observed_time, resource_logs, scope_logs},
};

/// Most bytes of a varint.
const VARINT_BYTES_MAX: usize = 10;

/// Gives the enriched request to `out`.
pub(super) fn write<P: AsRef<[u8]>>(
    splice: &Splice<'_, P>,
    arrival_unix_ns: u64,
    mut out: impl FnMut(&[u8]),
) {
    if splice.is_complete() {
        return splice.parts.iter().for_each(|part| out(part.as_ref()));
    }
    let mut observed = [OBSERVED_KEY; OBSERVED_BYTES];
    observed[1..].copy_from_slice(&arrival_unix_ns.to_le_bytes());
    let mut writer = Writer {
        splice,
        walker: Walker::new(splice.parts),
        source: Source {
            parts: splice.parts.iter(),
            chunk: &[],
            at: 0,
        },
        observed,
        resource_logs: 0,
        scope_logs: 0,
        out,
    };
    writer
        .request()
        .expect("the first pass has walked the same request");
}

struct Writer<'a, P, W> {
    splice: &'a Splice<'a, P>,
    walker: Walker<'a, P>,
    source: Source<'a, P>,
    /// What records get that lack it.
    observed: [u8; OBSERVED_BYTES],
    /// Messages so far, as the plan counts them.
    resource_logs: usize,
    scope_logs: usize,
    out: W,
}

impl<P: AsRef<[u8]>, W: FnMut(&[u8])> Writer<'_, P, W> {
    fn request(&mut self) -> Result<(), Malformed> {
        let end = self.splice.bytes;
        while let Some(field) = Field::next(&mut self.walker, 0, end)? {
            if field.is_message(1) {
                self.resource_logs(field)?;
            } else {
                self.walker.skip(field.len());
            }
        }
        self.copy(end);
        Ok(())
    }

    fn resource_logs(&mut self, logs: Field) -> Result<(), Malformed> {
        let enrichment = self.splice.enrichment;
        let plan = match self.splice.plan.resource_logs(self.resource_logs) {
            Some(plan) => plan,
            None => resource_logs(&mut self.walker.clone(), logs.end, enrichment, |_| {})?,
        };
        self.resource_logs += 1;
        if plan.growth == 0 {
            self.walker.skip(logs.len());
            return Ok(());
        }
        self.grow(logs, plan.growth);
        if plan.missing != 0 && plan.resource_at.is_none() {
            (self.out)(&[FIELD_1_LEN]);
            self.length(enrichment.bytes_of(plan.missing), 1);
            self.attributes(plan.missing);
        }
        while let Some(field) = Field::next(&mut self.walker, 1, logs.end)? {
            if field.is_message(2) {
                self.scope_logs(field)?;
                continue;
            }
            self.walker.skip(field.len());
            if field.is_message(1) {
                self.resource(field, &plan);
            }
        }
        Ok(())
    }

    fn resource(&mut self, resource: Field, plan: &ResourcePlan) {
        if plan.missing != 0 && plan.resource_at == Some(resource.at) {
            let added = self.splice.enrichment.bytes_of(plan.missing);
            self.grow(resource, added);
            self.copy(resource.end);
            self.attributes(plan.missing);
        }
    }

    fn scope_logs(&mut self, logs: Field) -> Result<(), Malformed> {
        let growth = match self.splice.plan.scope_logs(self.scope_logs) {
            Some(growth) => growth,
            None => scope_logs(&mut self.walker.clone(), logs.end)?,
        };
        self.scope_logs += 1;
        if growth == 0 {
            self.walker.skip(logs.len());
            return Ok(());
        }
        self.grow(logs, growth);
        while let Some(field) = Field::next(&mut self.walker, 2, logs.end)? {
            if !field.is_message(2) {
                self.walker.skip(field.len());
            } else if lacks_observed_time(&mut self.walker, field.end)? {
                self.grow(field, OBSERVED_BYTES);
                self.copy(field.end);
                (self.out)(&self.observed);
            }
        }
        Ok(())
    }

    /// Copies up to the content of `field`, with the length that it has with `growth` more bytes.
    fn grow(&mut self, field: Field, growth: usize) {
        self.copy(field.length_at);
        self.source.advance(field.content, |_| {});
        self.length(field.len() + growth, field.length_width());
    }

    fn copy(&mut self, until: usize) {
        self.source.advance(until, &mut self.out);
    }

    fn attributes(&mut self, set: Attributes) {
        for attribute in self.splice.enrichment.of(set) {
            (self.out)(&attribute.field);
        }
    }

    /// Writes a length as a varint of at least `width` bytes: what was written wider than it needs, stays so.
    fn length(&mut self, mut length: usize, width: usize) {
        let mut bytes = [0; VARINT_BYTES_MAX];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = length.to_le_bytes()[0] & 0x7f;
            length >>= 7;
            if length == 0 && at + 1 >= width {
                return (self.out)(&bytes[..=at]);
            }
            *byte |= 0x80;
        }
    }
}

/// The request's bytes that aren't copied yet.
struct Source<'a, P> {
    /// The parts after `chunk`.
    parts: std::slice::Iter<'a, P>,
    chunk: &'a [u8],
    /// Where `chunk` begins, in bytes from the start of the request.
    at: usize,
}

impl<P: AsRef<[u8]>> Source<'_, P> {
    /// Gives the bytes up to `until` to `out`.
    #[inline(always)]
    fn advance(&mut self, until: usize, mut out: impl FnMut(&[u8])) {
        while self.at < until {
            let len = self.chunk.len().min(until - self.at);
            if len == 0 {
                let Some(part) = self.parts.next() else {
                    return;
                };
                self.chunk = part.as_ref();
                continue;
            }
            let (bytes, rest) = self.chunk.split_at(len);
            out(bytes);
            self.chunk = rest;
            self.at += len;
        }
    }
}
