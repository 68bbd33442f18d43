//! The first few of many, in bounded memory.

use std::{cmp::Reverse, time::Duration};

use super::{IngestSocket, SocketOrder};

/// Keeps the first `limit` sockets in an order; ties go by the peer's address.
pub(super) struct First {
    order: SocketOrder,
    limit: usize,
    kept: Vec<IngestSocket>,
    /// Sockets offered.
    pub(super) total: usize,
}

impl First {
    pub(super) fn new(order: SocketOrder, limit: usize) -> Self {
        Self {
            order,
            limit,
            kept: Vec::new(),
            total: 0,
        }
    }

    /// Offers one more.
    pub(super) fn offer(&mut self, socket: IngestSocket) {
        self.total += 1;
        self.kept.push(socket);
        // Sorting once in a while keeps the cost of each offer small.
        if self.kept.len() >= 2 * self.limit + 64 {
            self.settle();
        }
    }

    /// The first ones, in order.
    pub(super) fn into_sorted(mut self) -> Vec<IngestSocket> {
        self.settle();
        self.kept
    }

    fn settle(&mut self) {
        let order = self.order;
        self.kept
            .sort_by_cached_key(|socket| (Reverse(rank(socket, order)), socket.peer));
        self.kept.truncate(self.limit);
    }
}

/// Greater comes first; what isn't known comes last.
fn rank(socket: &IngestSocket, order: SocketOrder) -> u128 {
    let depth = u128::from(socket.depth_bytes);
    match order {
        SocketOrder::Depth => depth,
        SocketOrder::HighWater => socket
            .followed
            .map_or(0, |followed| u128::from(followed.high_water_bytes) + 1),
        // In fractions of 2^-32, plus one to come before what isn't known.
        SocketOrder::Fill => socket.capacity_bytes.map_or(0, |capacity| {
            (depth << 32) / u128::from(capacity.max(1)) + 1
        }),
        // Never is longer than any time.
        SocketOrder::Idle => socket.followed.map_or(0, |followed| {
            followed.since_dequeue.unwrap_or(Duration::MAX).as_nanos() + 1
        }),
    }
}

#[cfg(test)]
mod tests {
    use gophership_common::Zone;

    use super::{super::Followed, *};

    fn socket(port: u16, depth_bytes: u64) -> IngestSocket {
        IngestSocket {
            cookie: None,
            local: ([127, 0, 0, 1], 4317).into(),
            peer: ([127, 0, 0, 1], port).into(),
            state: "established",
            depth_bytes,
            capacity_bytes: None,
            followed: None,
            process: None,
        }
    }

    fn ports(order: SocketOrder, limit: usize, sockets: Vec<IngestSocket>) -> Vec<u16> {
        let mut first = First::new(order, limit);
        for socket in sockets {
            first.offer(socket);
        }
        let sorted = first.into_sorted();
        sorted.iter().map(|socket| socket.peer.port()).collect()
    }

    #[test]
    fn the_deepest_of_many_are_kept_in_order() {
        let sockets = (1..=1000).map(|port| socket(port, u64::from(port) * 7 % 1009));
        let mut expected: Vec<_> = sockets.clone().collect();
        expected.sort_by_key(|socket| Reverse(socket.depth_bytes));
        let expected: Vec<_> = expected[..3].iter().map(|s| s.peer.port()).collect();
        assert_eq!(ports(SocketOrder::Depth, 3, sockets.collect()), expected);
    }

    #[test]
    fn each_order_puts_what_is_not_known_last() {
        let followed = |port, high_water_bytes, since_dequeue| IngestSocket {
            capacity_bytes: Some(100),
            followed: Some(Followed {
                high_water_bytes,
                since_dequeue,
                level: Zone::Green,
            }),
            ..socket(port, 50)
        };
        let second = Some(Duration::from_secs(1));
        let sockets = || {
            vec![
                socket(1, 70),
                followed(2, 0, second),
                followed(3, 9, None),
                IngestSocket {
                    capacity_bytes: Some(60),
                    ..followed(4, 5, second)
                },
            ]
        };
        assert_eq!(ports(SocketOrder::Depth, 9, sockets()), [1, 2, 3, 4]);
        assert_eq!(ports(SocketOrder::HighWater, 9, sockets()), [3, 4, 2, 1]);
        assert_eq!(ports(SocketOrder::Fill, 9, sockets()), [4, 2, 3, 1]);
        assert_eq!(ports(SocketOrder::Idle, 9, sockets()), [3, 2, 4, 1]);
    }

    #[test]
    fn all_are_counted() {
        let mut first = First::new(SocketOrder::Depth, 1);
        (1..=500).for_each(|port| first.offer(socket(port, 0)));
        assert_eq!(first.total, 500);
        assert_eq!(first.into_sorted().len(), 1);
    }
}
