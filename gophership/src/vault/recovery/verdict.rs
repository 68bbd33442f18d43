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

/// Tells a torn tail from damage. `index` is the missing block's, `durable` the most blocks known to
/// have been durable, from all that was found.
#[must_use]
pub(in crate::vault) fn judge(look: Look, index: u32, durable: u32) -> Option<Verdict> {
    match look {
        Look::Block(_) => None,
        // Never cut off what another attempt, or another version, may read: a torn header has no
        // matching checksum.
        Look::Unreadable | Look::NoBlock(FormatError::Version(_) | FormatError::Field) => {
            Some(Verdict::Damaged)
        }
        Look::BadPayload(_)
        | Look::NoBlock(
            FormatError::Short | FormatError::Blank | FormatError::Magic | FormatError::Checksum,
        )
        | Look::Foreign
        | Look::End => Some(if durable > index {
            Verdict::Damaged
        } else {
            Verdict::Torn
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_was_promised_and_nobody_can_read_is_torn() {
        use Verdict::{Damaged, Torn};
        let looks = [
            (Look::NoBlock(FormatError::Blank), Torn),
            (Look::NoBlock(FormatError::Short), Torn),
            (Look::NoBlock(FormatError::Magic), Torn),
            (Look::NoBlock(FormatError::Checksum), Torn),
            (Look::Foreign, Torn),
            (Look::End, Torn),
            (Look::NoBlock(FormatError::Version(2)), Damaged),
            (Look::NoBlock(FormatError::Field), Damaged),
            (Look::Unreadable, Damaged),
        ];
        for (look, unpromised) in looks {
            assert_eq!(judge(look, 5, 5), Some(unpromised), "{look:?}");
            assert_eq!(judge(look, 5, 6), Some(Damaged), "{look:?}, durable");
        }
    }
}
