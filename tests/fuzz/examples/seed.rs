//! Cuts the first corpus from a vault's directory: `cargo run --package gophership-fuzz --example seed`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use gophership_fuzz::{
    packed::{self, Kind},
    vault::{
        format::{BLOCK_HEADER, BlockHeader, PAGE, SegmentHeader},
        walk::decode_payload,
    },
};

/// Longest run of bytes of a segment that becomes an input.
const BYTES_MAX: usize = 1500;

fn main() -> io::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let vault = here.join("../fixtures/vault-1");
    let corpus = here.join("corpus");
    for target in [
        "block", "cursors", "entries", "manifest", "segment", "tables",
    ] {
        fs::create_dir_all(corpus.join(target))?;
    }
    let save = |target: &str, name: &str, bytes: &[u8]| {
        fs::write(corpus.join(target).join(format!("seed-{name}")), bytes)
    };
    save(
        "tables",
        "destinations",
        &fs::read(vault.join("destinations"))?,
    )?;
    let mut small = Vec::new();
    for slot in ["cursors-a", "cursors-b"] {
        let bytes = fs::read(vault.join(slot))?;
        save("cursors", slot, &bytes)?;
        packed::push(&mut small, Kind::Cursors, &bytes);
    }
    let mut all = small.clone();
    for lane in 0..packed::LANES {
        let dir = vault.join(format!("lane-{lane:02}"));
        let manifest = fs::read(dir.join("manifest"))?;
        save("manifest", &format!("lane-{lane}"), &manifest)?;
        let mut has_manifest = false;
        for path in sorted(&dir)? {
            let number = number_of(&path);
            let name = format!("segment-{number}");
            let mut packed = small.clone();
            packed::push(
                &mut packed,
                Kind::Segment,
                &[u8::try_from(lane).unwrap_or(0), number],
            );
            let quarantine = path.with_extension("quarantine");
            if quarantine.exists() {
                let bytes = fs::read(&quarantine)?;
                save("tables", &format!("quarantine-{number}"), &bytes)?;
                packed::push(&mut packed, Kind::Quarantine, &bytes);
            }
            pack(&fs::read(&path)?, &mut packed, |kind, at, bytes| {
                save(kind, &format!("{number}-{at}"), bytes)
            })?;
            if !has_manifest {
                packed::push(&mut packed, Kind::Manifest, &manifest);
                has_manifest = true;
            }
            save("segment", &name, &packed)?;
            all.extend_from_slice(&packed[small.len()..]);
        }
    }
    save("segment", "all", &all)
}

/// Packs a segment's file, where long blocks are left out as damage; gives its blocks and payloads.
fn pack(
    file: &[u8],
    packed: &mut Vec<u8>,
    mut save: impl FnMut(&str, usize, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = 0;
    while at < file.len() {
        let page = &file[at..at + PAGE];
        let mut len = PAGE;
        if let Ok(header) = BlockHeader::decode(page) {
            len = header.padded_len().min(file.len() - at);
            let block = trimmed(&file[at..at + len]);
            let stored = block.get(BLOCK_HEADER..).unwrap_or_default();
            let mut decoded = Vec::new();
            if block.len() <= BYTES_MAX {
                save("block", at, block)?;
                if let Some(payload) = decode_payload(&header, stored, &mut decoded)
                    && !payload.is_empty()
                    && payload.len() <= BYTES_MAX
                {
                    save("entries", at, payload)?;
                }
            }
        } else if SegmentHeader::decode(page).is_ok() {
            save("block", at, trimmed(page))?;
        }
        let bytes = trimmed(&file[at..at + len]);
        match bytes.len() {
            0 => packed::push(
                packed,
                Kind::Zeros,
                &[u8::try_from(len / PAGE).unwrap_or(1)],
            ),
            long if long > BYTES_MAX => packed::push(packed, Kind::Bytes, &bytes[..BLOCK_HEADER]),
            _ => packed::push(packed, Kind::Bytes, bytes),
        }
        at += len;
    }
    Ok(())
}

/// Without the zeros at the end, but for those of a header.
fn trimmed(bytes: &[u8]) -> &[u8] {
    let end = bytes
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |at| at + 1);
    match end {
        0 => &[],
        end => &bytes[..end.max(BLOCK_HEADER)],
    }
}

fn sorted(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "gsv") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn number_of(path: &Path) -> u8 {
    let stem = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    u8::from_str_radix(&stem[stem.len().saturating_sub(2)..], 16).unwrap_or(1)
}
