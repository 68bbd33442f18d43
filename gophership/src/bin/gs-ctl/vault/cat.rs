//! `vault cat`.

use std::{
    fmt::Write as _,
    io::{self, BufWriter, ErrorKind, StdoutLock, Write},
    ops::ControlFlow,
};

use gophership::{
    decompress::decompress,
    otel::json,
    vault::{
        ContentEncoding, Kind,
        inspect::{Damage, Depth, ENTRY_BYTES_MAX, Ending, EntrySeen, SegmentFile, Visitor, walk},
    },
};

use super::{
    Opened,
    args::{Format, Selection},
    failed,
    inspect::{encoding, kind},
    list::place,
    number, short_time, tell,
};
use crate::{failure::Failure, human::counted};

/// `vault cat`.
pub(super) fn run(
    opened: &Opened,
    what: &[Selection],
    format: Format,
    owed: bool,
    limit: Option<u64>,
) -> Result<(), Failure> {
    let chosen: Vec<(&SegmentFile, Option<u64>)> = match what {
        [] => opened
            .directory
            .segments()
            .iter()
            .map(|file| (file, None))
            .collect(),
        some => some
            .iter()
            .map(|selection| Ok((opened.segment(selection.segment)?, selection.entry)))
            .collect::<Result<_, Failure>>()?,
    };
    let mut writer = Writer {
        out: BufWriter::new(io::stdout().lock()),
        format,
        owed,
        left: limit.unwrap_or(u64::MAX),
        segment: 0,
        entry: None,
        found: false,
        problems: 0,
        failure: None,
    };
    for (file, entry) in chosen {
        if writer.left == 0 {
            break;
        }
        (writer.segment, writer.entry, writer.found) = (file.number, entry, false);
        let walked = walk(&opened.directory, file, Depth::Everything, &mut writer);
        let walked = walked.map_err(failed)?;
        if let Some(entry) = entry.filter(|_| !writer.found && walked.ending != Ending::Gone) {
            writer.problem(&format!(
                "{:x}:{entry}: there is no such entry",
                file.number
            ));
        }
        if writer.failure.is_some() {
            break;
        }
    }
    writer.finish()
}

struct Writer<'a> {
    out: BufWriter<StdoutLock<'a>>,
    format: Format,
    owed: bool,
    left: u64,
    segment: u64,
    /// The only one that is asked for.
    entry: Option<u64>,
    found: bool,
    problems: u64,
    failure: Option<io::Error>,
}

impl Writer<'_> {
    fn is_asked_for(&self, entry: u64) -> bool {
        self.entry.is_none_or(|only| only == entry)
    }

    fn problem(&mut self, text: &str) {
        self.problems += 1;
        tell(text);
    }

    fn write(&mut self, entry: &EntrySeen<'_>) -> io::Result<()> {
        let Some(bytes) = entry.bytes else {
            let text = format!(
                "{:x}:{}: {} bytes long; at most {ENTRY_BYTES_MAX} are put together",
                self.segment, entry.index, entry.len
            );
            self.problem(&text);
            return Ok(());
        };
        match self.format {
            Format::Raw => self.out.write_all(bytes),
            Format::Hex => {
                let title = title(self.segment, entry);
                self.out.write_all(title.as_bytes())?;
                hex(&mut self.out, bytes)
            }
            Format::Json => match line(entry.kind, entry.encoding, bytes) {
                Ok(line) => self.out.write_all(&line),
                Err(why) => {
                    let text = format!("{:x}:{}: {why}", self.segment, entry.index);
                    self.problem(&text);
                    Ok(())
                }
            },
        }
    }

    fn finish(mut self) -> Result<(), Failure> {
        let ended = self.failure.take().map_or(Ok(()), Err);
        match ended.and_then(|()| self.out.flush()) {
            // The reader, such as `head`, has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
            Err(error) => Err(Failure::Failed(format!("cannot write: {error}"))),
            Ok(()) if self.problems > 0 => Err(Failure::Failed(format!(
                "{} could not be shown",
                counted(self.problems, "part")
            ))),
            Ok(()) => Ok(()),
        }
    }
}

impl Visitor for Writer<'_> {
    fn wants_bytes(&mut self, entry: u64) -> bool {
        self.is_asked_for(entry)
    }

    fn entry(&mut self, entry: &EntrySeen<'_>) -> ControlFlow<()> {
        if !self.is_asked_for(entry.index) {
            return ControlFlow::Continue(());
        }
        self.found = true;
        if !self.owed || entry.owed != 0 {
            self.left -= 1;
            self.failure = self.write(entry).err();
        }
        match self.failure.is_some() || self.left == 0 || self.entry.is_some() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn damage(&mut self, damage: &Damage) {
        if self.entry.is_none() {
            let text = format!("{}: damaged, {}", number(self.segment), place(damage));
            self.problem(&text);
        }
    }
}

/// The request that a producer sent.
fn line(kind: Kind, encoding: ContentEncoding, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut plain = Vec::new();
    decompress(encoding, bytes, ENTRY_BYTES_MAX, &mut plain).map_err(|error| error.to_string())?;
    if kind == Kind::OtlpLogsJson {
        let mut protobuf = Vec::new();
        json::to_protobuf(&plain, &mut protobuf)
            .map_err(|error| format!("not a request in JSON ({error}); try --format raw"))?;
        plain = protobuf;
    }
    let mut line = Vec::new();
    json::write_line(&plain, &mut line).map_err(|error| format!("{error}; try --format hex"))?;
    Ok(line)
}

fn title(segment: u64, entry: &EntrySeen<'_>) -> String {
    format!(
        "# {segment:x}:{}, {} bytes, {}, {}, {}, arrived {} UTC\n",
        entry.index,
        entry.len,
        kind(entry.kind),
        encoding(entry.encoding),
        counted(entry.records.into(), "record"),
        short_time(entry.arrival_unix_ns)
    )
}

/// Sixteen bytes a line: offset, hexadecimal, ASCII.
fn hex(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    for (row, chunk) in bytes.chunks(16).enumerate() {
        let mut line = format!("{:08x}  ", row * 16);
        for at in 0..16 {
            // Writing to a string can't fail.
            let _ = match chunk.get(at) {
                Some(byte) => write!(line, "{byte:02x} "),
                None => write!(line, "   "),
            };
            if at == 7 {
                line.push(' ');
            }
        }
        line.push_str(" |");
        line.extend(chunk.iter().map(|&byte| match byte {
            b' '..=b'~' => char::from(byte),
            _ => '.',
        }));
        line.push_str("|\n");
        out.write_all(line.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_has_offset_hex_and_text() {
        let mut out = Vec::new();
        hex(&mut out, b"0123456789abcdef\x1b[").unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "00000000  30 31 32 33 34 35 36 37  38 39 61 62 63 64 65 66  |0123456789abcdef|\n\
             00000010  1b 5b                                             |.[|\n"
        );
    }

    #[test]
    fn what_is_not_a_request_is_named_and_bounded() {
        for (kind, encoding, bytes) in [
            (Kind::OtlpLogs, ContentEncoding::Gzip, &b"not gzip"[..]),
            (Kind::OtlpLogs, ContentEncoding::Identity, &[0xff; 40]),
            (Kind::OtlpLogs, ContentEncoding::Zstd, b"not zstd"),
            (Kind::OtlpLogsJson, ContentEncoding::Identity, b"[]"),
        ] {
            assert!(
                line(kind, encoding, bytes).is_err(),
                "{kind:?} {encoding:?}"
            );
        }
    }
}
