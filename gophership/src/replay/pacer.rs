//! One weight for all background work: replay, scrub, the work on sealed segments, the archive.
//!
//! This table is the truth, and a test compares the code with it. A weight is a share of each work's
//! own full rate, in thousandths; *strain* is how far the host has come from Yellow's entry (0) to
//! Red's (1000), in thousandths too.
//!
//! | zone | strain 0 | 1 | 250 | 500 | 750 | 999 | 1000 |
//! |---|---|---|---|---|---|---|---|
//! | green | 1000 | 1000 | 1000 | 1000 | 1000 | 1000 | 1000 |
//! | yellow | 250 | 249 | 187 | 125 | 62 | 0 | 0 |
//! | red | 0 | 0 | 0 | 0 | 0 | 0 | 0 |
//!
//! Strain is that of the signal nearest to its Red: first of all CPU wait, which background work adds
//! to, but whatever else has two levels as well (memory, budgets, the accept queue). A signal that is
//! never Red, like a slow disk, has no way to go and adds none. What isn't available isn't known to be
//! strained. Green has no strain by definition: every signal is below Yellow's entry or was overridden
//! by an operator, who means it. So CPU wait changes nothing in Green; it ends Green.

use gophership_common::Zone;

use crate::pressure::SignalReading;

/// The weight of work that nothing holds back.
pub const FULL: u32 = 1000;
/// The most that Yellow leaves.
pub const YELLOW_MAX: u32 = FULL / 4;

/// The weight of background work, in thousandths, at a strain in thousandths. Falls as strain grows
/// and as the zone rises; more than 1000 is as 1000.
#[must_use]
pub const fn weight(zone: Zone, strain: u32) -> u32 {
    let left = FULL.saturating_sub(strain);
    match zone {
        Zone::Green => FULL,
        Zone::Yellow => YELLOW_MAX * left / FULL,
        Zone::Red => 0,
    }
}

/// `rate`, in whatever a second, weighted; 0 only if the weight or the rate is.
#[must_use]
pub const fn weighted(rate: u64, weight: u32) -> u64 {
    if rate == 0 || weight == 0 {
        return 0;
    }
    let full = FULL as u64;
    let weight = weight as u64;
    let share = rate / full * weight + rate % full * weight / full;
    if share == 0 { 1 } else { share }
}

/// How far the host has come from Yellow's entry to Red's, in thousandths.
#[must_use]
pub fn strain(signals: &[SignalReading]) -> u32 {
    let strains = signals.iter().filter_map(|reading| {
        let (yellow, red) = (reading.yellow?, reading.red?);
        reading.available.then(|| way(reading.value, yellow, red))
    });
    strains.max().unwrap_or(0)
}

/// How far `value` is on the way from `yellow` to `red`, which may be below it; 0 if there is no way.
fn way(value: f64, yellow: f64, red: f64) -> u32 {
    let share = (value - yellow) / (red - yellow);
    if share.is_nan() || yellow == red {
        return 0;
    }
    #[expect(clippy::cast_possible_truncation, reason = "between 0 and 1000")]
    let thousandths = (share.clamp(0.0, 1.0) * f64::from(FULL)).round() as u32;
    thousandths
}

#[cfg(test)]
mod tests {
    use gophership_common::Signal;

    use super::*;

    const ZONES: [Zone; 3] = [Zone::Green, Zone::Yellow, Zone::Red];

    /// The cells of the table above: the strains, then a row a zone.
    fn table() -> Vec<Vec<String>> {
        include_str!("pacer.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("//! | "))
            .map(|row| row.split('|').map(|cell| cell.trim().to_owned()).collect())
            .collect()
    }

    #[test]
    fn the_table_is_what_the_code_does() {
        let rows = table();
        let strains: Vec<u32> = rows[0][1..]
            .iter()
            .filter_map(|cell| cell.trim_start_matches("strain ").parse().ok())
            .collect();
        assert_eq!(strains.len(), 7);
        assert_eq!(rows.len(), 1 + ZONES.len());
        for (row, zone) in rows[1..].iter().zip(ZONES) {
            assert_eq!(row[0], zone.as_str());
            for (cell, &strain) in row[1..].iter().zip(&strains) {
                let found = weight(zone, strain).to_string();
                assert_eq!(*cell, found, "{} at {strain}", zone.as_str());
            }
        }
    }

    #[test]
    fn at_every_strain_the_weight_is_within_its_bounds_and_falls() {
        for zone in ZONES {
            for strain in (0..=2 * FULL).chain([u32::MAX - 1]) {
                let here = weight(zone, strain);
                assert!(here <= FULL);
                assert!(weight(zone, strain + 1) <= here, "falls with strain");
                match zone {
                    Zone::Green => assert_eq!(here, FULL),
                    Zone::Yellow => assert!(here <= YELLOW_MAX),
                    Zone::Red => assert_eq!(here, 0),
                }
            }
        }
    }

    #[test]
    fn a_weighted_rate_is_exact_and_never_nothing_by_rounding() {
        let rates = [1, 3, 999, 1000, 1001, 64 << 20, u64::MAX];
        for rate in rates {
            for share in [1, 249, 250, 999, 1000] {
                let exact = u128::from(rate) * u128::from(share) / 1000;
                assert_eq!(u128::from(weighted(rate, share)), exact.max(1));
            }
            assert_eq!(weighted(rate, 0), 0);
        }
        assert_eq!(weighted(0, 1000), 0);
    }

    fn reading(signal: Signal, value: f64, yellow: Option<f64>, red: Option<f64>) -> SignalReading {
        SignalReading {
            signal,
            value,
            worst: None,
            unit: "ratio",
            yellow,
            red,
            available: true,
            reason: String::new(),
        }
    }

    #[test]
    fn strain_is_that_of_the_signal_nearest_to_red() {
        let cpu = |value| reading(Signal::CpuWait, value, Some(0.3), Some(0.7));
        // Low is bad here.
        let memory = |value| reading(Signal::MemoryAvailable, value, Some(0.15), Some(0.07));
        let disk = reading(Signal::DiskLatency, 9.0, Some(0.05), None);
        let away = SignalReading {
            available: false,
            ..cpu(1.0)
        };
        assert_eq!(strain(&[]), 0);
        assert_eq!(strain(&[cpu(0.1), memory(0.9), disk, away]), 0);
        assert_eq!(strain(&[cpu(0.5), memory(0.9)]), 500);
        assert_eq!(strain(&[cpu(0.4), memory(0.09)]), 750);
        assert_eq!(strain(&[cpu(0.9), memory(0.0)]), FULL);
        let mut last = 0;
        for step in 0..=1000 {
            let here = strain(&[cpu(f64::from(step) / 1000.0)]);
            assert!(here >= last, "rises with CPU wait");
            last = here;
        }
        for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(strain(&[cpu(odd)]) <= FULL);
        }
        let no_way = |value| reading(Signal::BudgetVault, value, Some(0.8), Some(0.8));
        assert_eq!(strain(&[no_way(0.9)]), 0);
    }
}
