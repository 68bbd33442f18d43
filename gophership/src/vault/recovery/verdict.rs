//! The table that tells a torn tail from damage.

use crate::vault::{format::FormatError, walk::Look};

/// What a place without the block that belongs there means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::vault) enum Verdict {
    /// Nobody was promised what is from here on.
    Torn,
    /// Acknowledged bytes are lost.
    Damaged,
}

/// What is known of the blocks from a place on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::vault) struct Vouched {
    /// Most blocks known to have been durable, from all that was found.
    pub(in crate::vault) durable: u32,
    /// The disk couldn't read all that might say more.
    pub(in crate::vault) unsure: bool,
}

/// Tells a torn tail from damage. `index` is the missing block's.
#[must_use]
pub(in crate::vault) fn judge(look: Look, index: u32, vouched: Vouched) -> Option<Verdict> {
    match look {
        Look::Block(_) => None,
        // Never cut off what another attempt, or another version, may read, nor what that may vouch for: a
        // torn header has no matching checksum.
        Look::Unreadable | Look::NoBlock(FormatError::Version(_) | FormatError::Field) => {
            Some(Verdict::Damaged)
        }
        Look::BadPayload(_)
        | Look::NoBlock(
            FormatError::Short | FormatError::Blank | FormatError::Magic | FormatError::Checksum,
        )
        | Look::Foreign
        | Look::End => Some(if vouched.durable > index || vouched.unsure {
            Verdict::Damaged
        } else {
            Verdict::Torn
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::format::{BlockHeader, BlockKind, Codec};

    #[test]
    fn only_what_nobody_was_promised_and_nobody_can_read_is_torn() {
        use Verdict::{Damaged, Torn};
        let header = BlockHeader {
            kind: BlockKind::Data,
            codec: Codec::Raw,
            segment: 1,
            tag: 2,
            index: 5,
            entries: 1,
            first_entry: 0,
            first_record: 0,
            records: 1,
            raw_len: 0,
            stored_len: 0,
            durable_through: 0,
            wall_unix_ns: 0,
            monotonic_ns: 0,
            zone: 0,
            cause: 0,
            segment_crc: 0,
            payload_crc: 0,
        };
        let looks = [
            (Look::NoBlock(FormatError::Blank), Torn),
            (Look::NoBlock(FormatError::Short), Torn),
            (Look::NoBlock(FormatError::Magic), Torn),
            (Look::NoBlock(FormatError::Checksum), Torn),
            (Look::BadPayload(header), Torn),
            (Look::Foreign, Torn),
            (Look::End, Torn),
            (Look::NoBlock(FormatError::Version(2)), Damaged),
            (Look::NoBlock(FormatError::Field), Damaged),
            (Look::Unreadable, Damaged),
        ];
        let vouched = |durable, unsure| Vouched { durable, unsure };
        for (look, unpromised) in looks {
            assert_eq!(
                judge(look, 5, vouched(5, false)),
                Some(unpromised),
                "{look:?}"
            );
            let durable = judge(look, 5, vouched(6, false));
            assert_eq!(durable, Some(Damaged), "{look:?}, durable");
            let unsure = judge(look, 5, vouched(5, true));
            assert_eq!(unsure, Some(Damaged), "{look:?}, unsure");
        }
        assert_eq!(judge(Look::Block(header), 5, vouched(6, true)), None);
    }
}
