//! Sizes, durations and shares as people write them, and back.

use std::time::Duration;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Reads bytes: `16MiB`, `1GiB`, `4096`. Whole numbers only; the suffixes are powers of 1024.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let (number, suffix) = split(text)?;
    let unit = match suffix {
        "" | "B" => 1,
        "KiB" => KIB,
        "MiB" => MIB,
        "GiB" => GIB,
        "TiB" => TIB,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// Reads a duration: `500us`, `20ms`, `5s`, `10m`, `1h`. Whole numbers of one unit, which may be
/// left out of `0` only.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, suffix) = split(text)?;
    match suffix {
        "" if number == 0 => Some(Duration::ZERO),
        "us" | "µs" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

/// Reads a share, `50%` or `12.5%`, in permille; at most `100%`, one decimal.
pub fn parse_permille(text: &str) -> Option<u32> {
    let number = text.strip_suffix('%')?.trim_end();
    let (whole, tenths) = match number.split_once('.') {
        None => (number, 0),
        Some((whole, tenth)) if tenth.len() == 1 => (whole, digits(tenth)?),
        Some(_) => return None,
    };
    let permille = digits(whole)?.checked_mul(10)?.checked_add(tenths)?;
    u32::try_from(permille).ok().filter(|p| *p <= 1000)
}

/// Writes bytes exactly, in the largest unit that divides them: the inverse of [`parse_bytes`].
pub fn exact_bytes(bytes: u64) -> String {
    for (unit, suffix) in [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{suffix}", bytes / unit);
        }
    }
    bytes.to_string()
}

/// Writes a share exactly: the inverse of [`parse_permille`].
pub fn exact_permille(permille: u32) -> String {
    match (permille / 10, permille % 10) {
        (whole, 0) => format!("{whole}%"),
        (whole, tenth) => format!("{whole}.{tenth}%"),
    }
}

fn split(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    Some((digits(&text[..end])?, text[end..].trim_start()))
}

/// Only digits: `u64::from_str` would also take a sign.
fn digits(text: &str) -> Option<u64> {
    let all = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    all.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_exactly_or_not_at_all() {
        assert_eq!(parse_bytes("16MiB"), Some(16 << 20));
        assert_eq!(parse_bytes("1 GiB"), Some(1 << 30));
        assert_eq!(parse_bytes("4096"), Some(4096));
        for bad in [
            "",
            "MiB",
            "16MB",
            "1.5GiB",
            "-1",
            "+1",
            "16777216TiB",
            "16mib",
        ] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_are_written_so_that_they_read_back() {
        for bytes in [0, 1, 1023, 1024, 1536, 64 << 20, 10 << 30, (1 << 40) + 1] {
            assert_eq!(parse_bytes(&exact_bytes(bytes)), Some(bytes));
        }
        assert_eq!(exact_bytes(64 << 20), "64MiB");
    }

    #[test]
    fn durations_need_their_unit() {
        assert_eq!(parse_duration("500us"), Some(Duration::from_micros(500)));
        assert_eq!(parse_duration("10m"), Some(Duration::from_secs(600)));
        assert_eq!(parse_duration("0"), Some(Duration::ZERO));
        for bad in [
            "",
            "5",
            "5 sec",
            "1h30m",
            "-1s",
            "1.5s",
            "6000000000000000000h",
        ] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn shares_are_permille_up_to_the_whole() {
        assert_eq!(parse_permille("50%"), Some(500));
        assert_eq!(parse_permille("12.5%"), Some(125));
        assert_eq!(parse_permille("100%"), Some(1000));
        for bad in ["", "%", "50", "0.5", "100.1%", "1.25%", "-1%"] {
            assert_eq!(parse_permille(bad), None, "{bad}");
        }
    }
}
