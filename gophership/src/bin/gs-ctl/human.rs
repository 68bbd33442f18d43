//! Numbers and times for people.

use std::time::Duration;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

const TENTH_OF_MS: Duration = Duration::from_micros(100);

/// `0 B`, `1023 B`, `1.5 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    // In hundredths, so that no float is needed.
    let mut scaled = u128::from(bytes) * 100 / 1024;
    while scaled >= 1024 * 100 && unit + 1 < UNITS.len() {
        scaled /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", scaled / 100, scaled / 10 % 10, UNITS[unit])
}

/// `1 234 567`: thin groups of three, as SI has them.
pub(crate) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// `1 entry`, `2 entries`, `1 234 segments`.
pub(crate) fn counted(number: u64, thing: &str) -> String {
    let shown = count(number);
    match (number, thing.strip_suffix('y')) {
        (1, _) => format!("{shown} {thing}"),
        (_, Some(stem)) => format!("{shown} {stem}ies"),
        (_, None) => format!("{shown} {thing}s"),
    }
}

/// The two largest units: `5 s`, `2 min 5 s`, `3 h 0 min`, `2 d 4 h`.
pub(crate) fn duration(duration: Duration) -> String {
    let s = duration.as_secs();
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86400, s % 86400 / 3600),
    }
}

/// `1 µs`, `6.2 ms`, `1.5 s`; from 10 s on as [`duration`].
pub(crate) fn seconds(seconds: f64) -> String {
    match Duration::try_from_secs_f64(seconds) {
        Ok(long) if long.as_secs() >= 10 => duration(long),
        Ok(_) if seconds >= 1.0 => format!("{seconds:.1} s"),
        // What isn't nothing mustn't read as nothing.
        Ok(short) if !short.is_zero() && short < TENTH_OF_MS => {
            format!("{:.0} µs", seconds * 1e6)
        }
        Ok(_) | Err(_) => format!("{:.1} ms", seconds * 1000.0),
    }
}

/// A measured number of whole things; what is no such number reads as none or very many.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates"
)]
pub(crate) const fn whole(value: f64) -> u64 {
    value as u64
}

/// Text from elsewhere on one line, without the control characters that a terminal would obey.
pub(crate) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' => ' ',
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

/// A moment as the wire has it.
pub(crate) fn moment(stamp: &prost_types::Timestamp) -> Option<OffsetDateTime> {
    let whole = OffsetDateTime::from_unix_timestamp(stamp.seconds).ok()?;
    whole
        .replace_nanosecond(u32::try_from(stamp.nanos).ok()?)
        .ok()
}

/// To the millisecond, in UTC: `2026-01-02T03:04:05.678Z`.
pub(crate) fn to_ms(stamp: &prost_types::Timestamp) -> Option<String> {
    let moment = moment(stamp)?;
    let (date, time) = (moment.date(), moment.time());
    let (hour, minute, second) = time.as_hms();
    let ms = time.millisecond();
    Some(format!("{date}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z"))
}

/// RFC 3339, for machines.
pub(crate) fn rfc3339(stamp: &prost_types::Timestamp) -> Option<String> {
    moment(stamp)?.format(&Rfc3339).ok()
}

/// How far `stamp` lies behind (or, if `ahead`, before) us; none if it is on the other side.
pub(crate) fn distance(stamp: &prost_types::Timestamp, ahead: bool) -> Option<String> {
    let now = OffsetDateTime::now_utc();
    let moment = moment(stamp)?;
    let distance = if ahead { moment - now } else { now - moment };
    Duration::try_from(distance).ok().map(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_one_decimal_and_a_binary_unit() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(10 << 30), "10.0 GiB");
        assert_eq!(bytes(u64::MAX), "16383.9 PiB");
    }

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(plain("a\nb\x1b[2Jc é"), "a b\u{fffd}[2Jc é");
    }

    #[test]
    fn counts_are_grouped() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1 234 567");
    }

    #[test]
    fn one_thing_is_no_plural() {
        assert_eq!(counted(0, "segment"), "0 segments");
        assert_eq!(counted(1, "segment"), "1 segment");
        assert_eq!(counted(1_234, "segment"), "1 234 segments");
        assert_eq!(counted(1, "entry"), "1 entry");
        assert_eq!(counted(2, "entry"), "2 entries");
    }

    #[test]
    fn a_short_time_is_not_none() {
        assert_eq!(seconds(0.0), "0.0 ms");
        assert_eq!(seconds(0.000_001), "1 µs");
        assert_eq!(seconds(0.000_099), "99 µs");
        assert_eq!(seconds(0.000_1), "0.1 ms");
    }

    #[test]
    fn durations_have_two_units_at_most() {
        assert_eq!(duration(Duration::from_secs(5)), "5 s");
        assert_eq!(duration(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(duration(Duration::from_secs(10_800)), "3 h 0 min");
        assert_eq!(duration(Duration::from_secs(187_200)), "2 d 4 h");
    }
}
