//! The reflex allocates nothing: neither appending to a warm lane nor taking a pooled buffer does.

mod counting_allocator;
#[expect(dead_code, reason = "each test file uses its part")]
mod vault_support;

use counting_allocator::allocations;
use gophership::{uring::BufferPool, vault::Config};
use vault_support::{Random, meta, on_worker, open, real_disk, small};

#[test]
fn the_count_works() {
    let before = allocations();
    drop(std::hint::black_box(vec![1_u8; 100]));
    assert_eq!(allocations(), before + 1);
}

#[test]
fn appending_to_a_warm_lane_allocates_nothing() {
    let dir = real_disk();
    let config = Config {
        max_bytes: 256 << 20,
        ..small(dir.path())
    };
    let vault = open(&config);
    let mut random = Random(1);
    let short = random.content(3_000);
    let long = random.content(300_000);
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let (shorts, longs) = ([&short], [&long]);
        let one_round = async || {
            lane.append(meta(1, 0), &[&short[..10], &short[10..]])
                .await
                .unwrap();
            let (a, b, c, d) = tokio::join!(
                lane.append(meta(1, 0), &shorts),
                lane.append(meta(1, 0), &longs),
                lane.append(meta(1, 0), &shorts),
                lane.append(meta(1, 0), &shorts),
            );
            assert!(a.is_ok() && b.is_ok() && c.is_ok() && d.is_ok());
        };
        for _ in 0..20 {
            one_round().await;
        }
        let segments = vault.stats().segments;
        let before = allocations();
        for _ in 0..100 {
            one_round().await;
        }
        assert_eq!(allocations(), before);
        assert!(
            vault.stats().segments > segments + 2,
            "beginning a segment was measured too"
        );
    });
}

#[test]
fn taking_and_giving_back_a_pooled_buffer_allocates_nothing() {
    let pool = BufferPool::new(8, 64 << 10);
    let before = allocations();
    for _ in 0..1_000 {
        let first = pool.acquire();
        let second = pool.acquire();
        assert!(first.is_some() && second.is_some());
        drop((std::hint::black_box(first), std::hint::black_box(second)));
    }
    assert_eq!(allocations(), before);
}
