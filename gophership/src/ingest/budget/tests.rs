use std::sync::Arc;

use super::*;

const SOON: Duration = Duration::from_millis(10);

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// Polls it as often as it takes to join the queue.
async fn begun<F: Future>(future: &mut std::pin::Pin<&mut F>) {
    tokio::select! {
        biased;
        _ = future.as_mut() => panic!("there is room"),
        () = std::future::ready(()) => {}
    }
}

#[test]
fn a_request_that_waits_holds_nothing_and_stops_readers_until_it_is_served_or_gives_up() {
    run(async {
        let budget = Budget::new(100);
        let first = budget.take_at_once(60).expect("there is room");
        assert!(!budget.is_spent());
        let gives_up = tokio::time::timeout(SOON, budget.take(50)).await;
        assert!(gives_up.is_err());
        assert!(!budget.is_spent(), "nobody waits any longer");

        let mut waiting = std::pin::pin!(budget.take(50));
        begun(&mut waiting).await;
        assert!(budget.is_spent());
        assert_eq!(budget.used(), 60);
        // What is left isn't given to requests that come later and want less,
        assert!(budget.take_at_once(10).is_none());
        // but to those that must not wait, and to connections.
        drop(budget.take_now(40).expect("it is free"));
        assert!(budget.try_take(10));
        assert_eq!((budget.used(), budget.used_by_requests()), (70, 60));
        drop(first);
        let taken = waiting.await;
        assert!(!budget.is_spent());
        assert_eq!((budget.used(), budget.used_by_requests()), (60, 50));
        drop(taken);
        budget.give_back(10);
        assert_eq!(budget.used(), 0);
    });
}

#[test]
fn who_comes_first_is_served_first_and_who_leaves_holds_up_nobody() {
    run(async {
        let budget = Budget::new(100);
        let first = budget.take_at_once(60).expect("there is room");
        let mut gone = Box::pin(budget.take(90));
        begun(&mut gone.as_mut()).await;
        let mut second = std::pin::pin!(budget.take(70));
        begun(&mut second).await;
        let mut third = std::pin::pin!(budget.take(30));
        begun(&mut third).await;
        drop(gone);
        begun(&mut second).await;
        begun(&mut third).await;
        drop(first);
        let (second, third) = (second.await, third.await);
        assert_eq!(budget.used(), 100);
        // One is served, and leaves before it has looked.
        let mut served = Box::pin(budget.take(100));
        begun(&mut served.as_mut()).await;
        drop((second, third));
        assert_eq!(budget.used(), 100);
        drop(served);
        assert_eq!(budget.used(), 0);
        assert!(budget.take_at_once(100).is_some());
    });
}

#[test]
fn many_threads_take_no_more_than_there_is_and_nobody_is_forgotten() {
    const TIMES: usize = 2000;
    let budget = Budget::new(100);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let budget = &budget;
            scope.spawn(move || {
                run(async {
                    for time in 0..TIMES {
                        let bytes = 1 + (time * 37 + thread * 11) % 100;
                        let taken = match budget.take_at_once(bytes) {
                            Some(taken) => taken,
                            None => budget.take(bytes).await,
                        };
                        assert!(budget.used() >= bytes);
                        let is_kept = budget.try_take(5);
                        tokio::task::yield_now().await;
                        drop(taken);
                        if is_kept {
                            budget.give_back(5);
                        }
                    }
                });
            });
        }
    });
    assert!(!budget.is_spent());
    assert_eq!((budget.used(), budget.used_by_requests()), (0, 0));
}

#[test]
fn a_part_grows_and_shrinks() {
    let budget = Budget::new(100);
    let mut part = budget.take_at_once(10).expect("there is room");
    assert!(part.grow(50));
    assert!(!part.grow(41));
    assert_eq!((part.bytes(), budget.used()), (60, 60));
    part.shrink_to(70);
    part.shrink_to(20);
    assert_eq!((part.bytes(), budget.used()), (20, 20));
    drop(part);
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_part_that_another_has_taken_over_is_given_back_by_him() {
    let budget = Arc::new(Budget::new(100));
    let mut part = budget.take_at_once(60).expect("there is room");
    let mut taken_over = Part::none(Arc::clone(&budget));
    part.hand_over(&mut taken_over);
    drop(part);
    assert_eq!((taken_over.bytes(), budget.used()), (60, 60));
    assert!(taken_over.grow(10) && !taken_over.grow(31));
    std::thread::spawn(move || drop(taken_over))
        .join()
        .expect("it is given back");
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_connections_bytes_are_given_back_once() {
    let budget = Budget::new(100);
    assert!(budget.try_take(70));
    assert!(!budget.try_take(31));
    assert_eq!((budget.used(), budget.used_by_requests()), (70, 0));
    budget.give_back(70);
    assert_eq!(budget.used(), 0);
}

#[test]
fn what_a_connection_waits_for_is_left_to_it() {
    let budget = Budget::new(100);
    let mut first = budget.take_at_once(90).expect("there is room");
    let now = Instant::now();
    assert!(!budget.try_take_or_wait(30, now));
    first.shrink_to(75);
    assert!(budget.take_at_once(1).is_none());
    first.shrink_to(60);
    assert!(budget.take_at_once(20).is_none());
    drop(budget.take_at_once(10).expect("more than it waits for"));
    assert!(budget.try_take_or_wait(30, now));
    assert!(budget.take_at_once(10).is_some());
}

#[test]
fn the_slowest_makes_way_for_who_has_waited_for_long() {
    run(async {
        let budget = Budget::new(100);
        let since = Instant::now();
        let held = [(30, 20), (30, 1), (30, 2)].map(|(bytes, received)| {
            let taken = budget.take_at_once(bytes).expect("there is room");
            (taken, budget.unfinished(since, bytes, received))
        });
        let [(_fast, _), (slowest, slowest_listed), (_slow, slow_listed)] = held;
        let makes_way = async {
            slowest_listed.asked_to_make_way().await;
            assert!(since.elapsed() >= PATIENCE);
            drop(slowest);
            budget.finished(&slowest_listed);
        };
        let (taken, ()) = tokio::join!(budget.take(35), makes_way);
        let others = tokio::time::timeout(SOON, slow_listed.asked_to_make_way()).await;
        assert!(others.is_err(), "one was enough");
        assert_eq!(taken.bytes(), 35);
        // And for a connection.
        let begun = Instant::now();
        assert!(!budget.try_take_or_wait(10, begun.checked_sub(PATIENCE).expect("it has been up")));
        slow_listed.asked_to_make_way().await;
    });
}
