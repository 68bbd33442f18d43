//! Enrichment by splicing: a request is copied, and what it lacks is put in between its bytes.
//!
//! - Each `ResourceLogs` gets the attributes whose keys its resource doesn't have: at the end of its (last) resource
//!   field, or in one of its own, in front, if it has none.
//! - Each `LogRecord` whose observed time is missing or 0 gets the arrival time, at its end: of a field that isn't
//!   repeated, the last one counts.
//!
//! All other bytes stay as they are, but the lengths around what was put in, which keep at least their width. So the
//! output decodes to what decoding, changing and encoding the request would give, and unknown fields are still there.
//!
//! Two passes: the first ([`Enrichment::splice`]) finds what is lacking and how long the output is, the second
//! ([`Splice::write`]) copies. Between them is a plan of fixed size; what doesn't fit into it is found again. Neither
//! allocates, and both take time linear in the request.
//!
//! What can't be followed is copied as it is: a request that the skim refuses, or a resource that can't be read, which
//! the skim doesn't look into.

mod plan;
mod write;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use prost::Message as _;

use self::plan::Plan;

/// Most attributes of one [`Enrichment`].
pub const ATTRIBUTES_MAX: usize = 64;
/// Longest key of an attribute.
pub const KEY_BYTES_MAX: usize = 255;

/// A set of attributes of an [`Enrichment`], one bit each.
type Attributes = u64;

/// The key of `resource` in a `ResourceLogs`, and of `attributes` in a `Resource`: field 1 with a length.
const FIELD_1_LEN: u8 = 1 << 3 | 2;
/// The key of `observed_time_unix_nano` in a `LogRecord`: field 11, eight bytes.
const OBSERVED_KEY: u8 = 11 << 3 | 1;
/// Bytes of that field.
const OBSERVED_BYTES: usize = 1 + 8;

/// What requests are enriched with, besides the time of their arrival.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enrichment {
    attributes: Vec<Attribute>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Attribute {
    key: String,
    /// As it stands in a `Resource`: key, length, `KeyValue`.
    field: Vec<u8>,
}

impl Enrichment {
    /// With these resource attributes.
    ///
    /// # Panics
    /// If there are more than [`ATTRIBUTES_MAX`], or a key is longer than [`KEY_BYTES_MAX`].
    #[must_use]
    pub fn new(attributes: &[KeyValue]) -> Self {
        assert!(
            attributes.len() <= ATTRIBUTES_MAX,
            "{} attributes",
            attributes.len()
        );
        let prepare = |attribute: &KeyValue| {
            assert!(
                attribute.key.len() <= KEY_BYTES_MAX,
                "a key of {} bytes",
                attribute.key.len()
            );
            let mut field = vec![FIELD_1_LEN];
            field.extend(attribute.encode_length_delimited_to_vec());
            Attribute {
                key: attribute.key.clone(),
                field,
            }
        };
        Self {
            attributes: attributes.iter().map(prepare).collect(),
        }
    }

    /// The first pass over the request that `parts` hold one after the other.
    #[must_use]
    pub fn splice<'a, P: AsRef<[u8]>>(&'a self, parts: &'a [P]) -> Splice<'a, P> {
        let mut splice = Splice {
            enrichment: self,
            parts,
            bytes: parts.iter().map(|part| part.as_ref().len()).sum(),
            plan: Plan::default(),
        };
        // In its place: it is large enough for moving it to be felt.
        if splice.plan.walk(parts, splice.bytes, self).is_err() {
            // What isn't a request is left to those who judge it.
            splice.plan = Plan::default();
        }
        splice
    }

    /// All of them.
    fn all(&self) -> Attributes {
        match self.attributes.len() {
            ATTRIBUTES_MAX => Attributes::MAX,
            few => (1 << few) - 1,
        }
    }

    /// The ones in `set`, in order.
    fn of(&self, set: Attributes) -> impl Iterator<Item = &Attribute> {
        let attributes = self.attributes.iter().enumerate();
        attributes
            .filter(move |(index, _)| set & 1 << index != 0)
            .map(|(_, attribute)| attribute)
    }

    /// Bytes of the ones in `set`.
    fn bytes_of(&self, set: Attributes) -> usize {
        self.of(set).map(|attribute| attribute.field.len()).sum()
    }

    /// The one with this key.
    fn with_key(&self, key: &[u8]) -> Attributes {
        let attributes = self.attributes.iter();
        let mut found = 0;
        for (index, attribute) in attributes.enumerate() {
            found |= Attributes::from(attribute.key.as_bytes() == key) << index;
        }
        found
    }
}

/// One request and what is put into it.
#[derive(Debug)]
pub struct Splice<'a, P> {
    enrichment: &'a Enrichment,
    parts: &'a [P],
    /// Of the request.
    bytes: usize,
    plan: Plan,
}

impl<P: AsRef<[u8]>> Splice<'_, P> {
    /// Bytes of the enriched request.
    #[must_use]
    pub fn enriched_bytes(&self) -> usize {
        self.bytes + self.plan.growth()
    }

    /// Whether the request lacks nothing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.plan.growth() == 0
    }

    /// Gives the enriched request to `out`, piece by piece: [`Self::enriched_bytes`] in all.
    pub fn write(&self, arrival_unix_ns: u64, out: impl FnMut(&[u8])) {
        write::write(self, arrival_unix_ns, out);
    }
}

/// Bytes of `value` as a varint.
const fn varint_bytes(value: usize) -> usize {
    let bits = usize::BITS - (value | 1).leading_zeros();
    bits.div_ceil(7) as usize
}
