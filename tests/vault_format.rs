//! The formats: what is encoded decodes to the same, and no bytes at all make a decoder panic.

#[expect(dead_code, reason = "each test file uses its part")]
mod vault_support;

use gophership::vault::{
    ContentEncoding, EntryMeta, Kind,
    entry::{Part, PieceHeader, Pieces},
    format::{BLOCK_HEADER, BlockHeader, BlockKind, Codec, FormatError, PAGE, SegmentHeader},
    walk::{decode_payload, is_consistent},
};
use vault_support::Random;

fn some_u32(random: &mut Random) -> u32 {
    u32::try_from(random.next() >> 32).unwrap()
}

fn some_block(random: &mut Random) -> BlockHeader {
    let index = some_u32(random);
    let first_entry = random.below(60_000) as u64;
    let stored_len = u32::try_from(random.below(200_000)).unwrap();
    BlockHeader {
        kind: BlockKind::Data,
        codec: Codec::Lz4,
        segment: random.next(),
        tag: random.next(),
        index,
        entries: u32::try_from(random.below(500)).unwrap(),
        first_entry,
        first_record: first_entry * u64::from(some_u32(random)),
        records: some_u32(random),
        raw_len: u32::try_from(random.below(1 << 20) / 2).unwrap(),
        stored_len,
        durable_through: index / 2,
        wall_unix_ns: random.next(),
        monotonic_ns: random.next(),
        zone: 2,
        cause: 9,
        segment_crc: some_u32(random),
        payload_crc: some_u32(random),
    }
}

#[test]
fn headers_decode_to_what_was_encoded() {
    let mut random = Random(1);
    for _ in 0..2_000 {
        let block = some_block(&mut random);
        let mut bytes = random.content(PAGE);
        block.encode(&mut bytes);
        assert_eq!(BlockHeader::decode(&bytes), Ok(block));
        let segment = SegmentHeader {
            lane: 3,
            segment: random.next(),
            tag: random.next(),
            previous: random.next(),
            previous_durable: some_u32(&mut random),
            previous_given_up: some_u32(&mut random).is_multiple_of(2),
            is_ready: some_u32(&mut random).is_multiple_of(2),
            created_unix_ns: random.next(),
            bytes: random.next(),
            host: [7; 16],
        };
        segment.encode(&mut bytes);
        assert_eq!(SegmentHeader::decode(&bytes), Ok(segment));
        assert_eq!(BlockHeader::decode(&bytes), Err(FormatError::Magic));
    }
}

#[test]
fn a_header_with_any_flipped_bit_is_refused() {
    let mut random = Random(2);
    let mut bytes = vec![0; BLOCK_HEADER];
    some_block(&mut random).encode(&mut bytes);
    for bit in 0..BLOCK_HEADER * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(BlockHeader::decode(&bytes).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(BlockHeader::decode(&vec![0; PAGE]), Err(FormatError::Blank));
    assert_eq!(
        BlockHeader::decode(&bytes[..BLOCK_HEADER - 1]),
        Err(FormatError::Short)
    );
}

#[test]
fn a_checksummed_header_with_impossible_fields_is_refused() {
    let block = some_block(&mut Random(3));
    let impossible = [
        BlockHeader {
            stored_len: 1 << 20,
            ..block
        },
        BlockHeader {
            raw_len: u32::MAX,
            ..block
        },
        BlockHeader {
            codec: Codec::Raw,
            raw_len: 1,
            stored_len: 2,
            ..block
        },
        BlockHeader {
            first_entry: u64::MAX - 10,
            ..block
        },
        BlockHeader {
            entries: u32::MAX,
            ..block
        },
        BlockHeader {
            first_record: u64::MAX,
            ..block
        },
        BlockHeader {
            durable_through: block.index + 1,
            ..block
        },
        BlockHeader {
            kind: BlockKind::Seal,
            ..block
        },
        BlockHeader {
            kind: BlockKind::Mark,
            entries: 1,
            records: 0,
            raw_len: 0,
            stored_len: 0,
            ..block
        },
    ];
    for header in impossible {
        let mut bytes = [0; BLOCK_HEADER];
        header.encode(&mut bytes);
        assert_eq!(
            BlockHeader::decode(&bytes),
            Err(FormatError::Field),
            "{header:?}"
        );
    }
}

fn some_payload(random: &mut Random) -> (Vec<u8>, Vec<(PieceHeader, Vec<u8>)>) {
    let (mut payload, mut pieces) = (Vec::new(), Vec::new());
    for _ in 0..random.below(20) {
        let len = random.below(300);
        let content = random.content(len);
        let meta = EntryMeta {
            kind: [Kind::OtlpLogs, Kind::OtlpLogsJson][random.below(2)],
            encoding: [
                ContentEncoding::Identity,
                ContentEncoding::Gzip,
                ContentEncoding::Zstd,
            ][random.below(3)],
            owed: some_u32(random),
            arrival_unix_ns: random.next(),
            records: some_u32(random),
            held: false,
        };
        let len = u32::try_from(len).unwrap();
        let header = match random.below(4) {
            0 => PieceHeader::new(&meta, Part::First, len, 0, len + 1),
            1 => PieceHeader::new(&meta, Part::Middle, len, 5, len + 6),
            2 => PieceHeader::new(&meta, Part::Last, len, 9, len + 9),
            _ => PieceHeader::new(&meta, Part::Whole, len, 0, len),
        };
        payload.extend_from_slice(&header.encode());
        payload.extend_from_slice(&content);
        pieces.push((header, content));
    }
    (payload, pieces)
}

#[test]
fn payloads_decode_to_what_was_encoded() {
    let mut random = Random(4);
    for _ in 0..500 {
        let (payload, pieces) = some_payload(&mut random);
        let decoded: Vec<_> = Pieces::new(&payload)
            .map(|piece| {
                piece
                    .map(|piece| (piece.header, piece.bytes.to_vec()))
                    .unwrap()
            })
            .collect();
        assert_eq!(decoded, pieces);
        if !payload.is_empty() {
            let cut = &payload[..payload.len() - 1];
            assert!(
                Pieces::new(cut).any(|piece| piece.is_err()) || pieces.last().unwrap().1.is_empty()
            );
        }
    }
}

#[test]
fn a_piece_of_a_larger_entry_is_by_itself() {
    let meta = EntryMeta {
        kind: Kind::OtlpLogs,
        encoding: ContentEncoding::Identity,
        owed: 1,
        arrival_unix_ns: 0,
        records: 1,
        held: false,
    };
    let piece = |part, offset, total| {
        let mut piece = PieceHeader::new(&meta, part, 1, offset, total)
            .encode()
            .to_vec();
        piece.push(7);
        piece
    };
    let (whole, first) = (piece(Part::Whole, 0, 1), piece(Part::First, 0, 2));
    let header = |entries| BlockHeader {
        entries,
        ..some_block(&mut Random(6))
    };
    assert!(is_consistent(&header(1), &whole) && is_consistent(&header(0), &first));
    assert!(is_consistent(&header(2), &[&*whole, &*whole].concat()));
    // A reader that needs no entry of the block would pass over the larger one's beginning.
    assert!(!is_consistent(&header(1), &[whole, first].concat()));
}

#[test]
fn mutated_and_random_bytes_never_panic_a_decoder() {
    let mut random = Random(5);
    let mut decoded = Vec::new();
    for _ in 0..5_000 {
        let (mut payload, _) = some_payload(&mut random);
        if random.below(4) == 0 {
            let len = random.below(2_000);
            payload = random.content(len);
        }
        for _ in 0..random.below(4) {
            if !payload.is_empty() {
                let at = random.below(payload.len());
                payload[at] = u8::try_from(random.below(256)).unwrap();
            }
        }
        let steps = Pieces::new(&payload).count();
        assert!(steps <= payload.len() / 32 + 1);
        let header = some_block(&mut random);
        if let Some(bytes) = decode_payload(&header, &payload, &mut decoded) {
            assert_eq!(bytes.len(), header.raw_len as usize);
            let _ = is_consistent(&header, bytes);
        }
        let compressed = lz4_flex::block::compress(&payload);
        let honest = BlockHeader {
            raw_len: u32::try_from(payload.len()).unwrap(),
            ..header
        };
        assert_eq!(
            decode_payload(&honest, &compressed, &mut decoded),
            Some(payload.as_slice())
        );
        let _ = (
            BlockHeader::decode(&payload).is_ok(),
            SegmentHeader::decode(&payload).is_ok(),
        );
    }
}

#[test]
fn more_records_than_entries_can_have_are_refused() {
    let mut random = Random(9);
    let mut block = some_block(&mut random);
    let mut bytes = vec![0; PAGE];
    for (first_entry, first_record, is_sane) in [
        (0, 0, true),
        (0, 1, false),
        (2, 2 * u64::from(u32::MAX), true),
        (2, 2 * u64::from(u32::MAX) + 1, false),
        // Two of these would overflow a sum.
        (60_000, 1 << 63, false),
    ] {
        (block.first_entry, block.first_record) = (first_entry, first_record);
        block.encode(&mut bytes);
        let decoded = BlockHeader::decode(&bytes);
        assert_eq!(
            decoded.is_ok(),
            is_sane,
            "{first_entry}, {first_record}: {decoded:?}"
        );
    }
}
