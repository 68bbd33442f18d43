//! How fast the vault is being emptied, for those whom it refuses while it is full.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use super::daemon::Daemon;

const LOOK: Duration = Duration::from_secs(1);
/// The rate is that of so many looks.
const LOOKS: usize = 10;

/// Tells the vault how fast replay delivers, as long as the daemon runs.
pub(super) async fn predict(daemon: Arc<Daemon>) {
    let mut rate = Rate::default();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let records = daemon.replay.progress().records;
        let records_per_second = rate.after(records, Instant::now());
        daemon.vault.expect_room(records_per_second);
    }
}

/// How fast a total grows.
#[derive(Debug, Default)]
struct Rate(VecDeque<(Instant, u64)>);

impl Rate {
    /// Takes the total in; its growth a second over the last looks.
    fn after(&mut self, total: u64, now: Instant) -> u64 {
        if self.0.len() > LOOKS {
            self.0.pop_front();
        }
        self.0.push_back((now, total));
        let (since, before) = self.0[0];
        let millis = now.saturating_duration_since(since).as_millis();
        let grown = u128::from(total.saturating_sub(before)) * 1000;
        let rate = grown.checked_div(millis).unwrap_or(0);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_ten_looks() {
        let start = Instant::now();
        let mut rate = Rate::default();
        assert_eq!(rate.after(5_000, start), 0, "nothing to compare with");
        assert_eq!(rate.after(5_300, start + LOOK), 300);
        assert_eq!(rate.after(5_300, start + LOOK * 2), 150);
        for look in 3..=10_u32 {
            assert_eq!(
                rate.after(5_300, start + LOOK * look),
                300 / u64::from(look)
            );
        }
        assert_eq!(rate.after(5_300, start + LOOK * 11), 0, "forgotten");
    }
}
