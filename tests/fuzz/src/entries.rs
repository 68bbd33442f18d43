//! A decoded payload: its pieces, and the entries that come of them.

use crate::{
    mutation::{self, Bytewise},
    vault::{
        entry::{ENTRY_HEADER, Part, Piece, Pieces},
        format::{BlockHeader, BlockKind, Codec},
        walk::{Chain, Joined, decode_payload, is_consistent},
    },
};

/// Walks `data` as a payload.
pub fn check(data: &[u8]) {
    let (mut at, mut ended) = (0, 0);
    let mut is_whole = true;
    let mut chain = Chain::default();
    let mut joining = Joining::default();
    for piece in Pieces::new(data) {
        let Ok(piece) = piece else {
            assert!(is_whole, "nothing comes after what isn't a piece");
            is_whole = false;
            continue;
        };
        assert!(is_whole && piece.header.len as usize == piece.bytes.len());
        let end = at + ENTRY_HEADER + piece.bytes.len();
        let mut written = piece.header.encode().to_vec();
        written.extend_from_slice(piece.bytes);
        let mut read = data[at..end].to_vec();
        // The only byte that nobody reads.
        read[7] = 0;
        assert_eq!(written, read);
        at = end;
        ended += u32::from(piece.header.part.ends_entry());
        let joined = chain.join(&piece.header);
        assert_eq!(joined, joining.add(&piece), "{:?}", piece.header);
        assert_eq!(chain.is_open(), joined == Joined::Partial);
    }
    assert_eq!(is_whole, at == data.len());

    let header = header_of(data, ended);
    assert_eq!(is_consistent(&header, data), is_whole && !is_mixed(data));
    let more = BlockHeader {
        entries: ended + 1,
        ..header
    };
    assert!(!is_consistent(&more, data));
    if data.len() < 64 << 10 {
        compress(&header, data);
    }
}

/// Whether a piece of a larger entry isn't by itself, as a writer leaves it.
fn is_mixed(data: &[u8]) -> bool {
    let mut parts = Pieces::new(data).flatten().map(|piece| piece.header.part);
    Pieces::new(data).count() > 1 && parts.any(|part| part != Part::Whole)
}

/// What an entry in several pieces has so far, kept in the most obvious way.
#[derive(Default)]
struct Joining {
    bytes: Option<Vec<u8>>,
    total: u32,
}

impl Joining {
    fn add(&mut self, piece: &Piece<'_>) -> Joined {
        let header = &piece.header;
        let before = self.bytes.take();
        let mut bytes = match (header.part, before) {
            (Part::Whole | Part::First, _) => Vec::new(),
            (Part::Middle | Part::Last, Some(bytes))
                if bytes.len() == header.offset as usize && self.total == header.total =>
            {
                bytes
            }
            (Part::Middle | Part::Last, _) => return Joined::Orphan,
        };
        bytes.extend_from_slice(piece.bytes);
        if header.part.ends_entry() {
            assert_eq!(bytes.len(), header.total as usize);
            return Joined::Complete;
        }
        assert!(bytes.len() < header.total as usize);
        (self.total, self.bytes) = (header.total, Some(bytes));
        Joined::Partial
    }
}

fn header_of(payload: &[u8], entries: u32) -> BlockHeader {
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    BlockHeader {
        kind: BlockKind::Data,
        codec: Codec::Raw,
        segment: 1,
        tag: 2,
        index: 0,
        entries,
        first_entry: 0,
        first_record: 0,
        records: 0,
        raw_len: len,
        stored_len: len,
        durable_through: 0,
        wall_unix_ns: 0,
        monotonic_ns: 0,
        zone: 0,
        cause: 0,
        segment_crc: 0,
        payload_crc: 0,
    }
}

/// As a compressed payload, and as what was compressed.
fn compress(header: &BlockHeader, data: &[u8]) {
    let mut decoded = Vec::new();
    let header = BlockHeader {
        codec: Codec::Lz4,
        ..*header
    };
    let stored = lz4_flex::block::compress(data);
    assert_eq!(decode_payload(&header, &stored, &mut decoded), Some(data));
    if let Some(payload) = decode_payload(&header, data, &mut decoded) {
        assert_eq!(payload.len(), data.len());
    }
}

/// Makes a new input.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    bytewise: Bytewise,
) -> usize {
    mutation::mutate(data, size, max_size, seed, bytewise, |_| {})
}
