use std::sync::mpsc;
use std::task::Poll;

use super::*;

const BRIEF: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_mins(1);

fn pool(max_wait: Duration) -> WorkerPool {
    WorkerPool::with_group_delay(PoolSettings { concurrency: 1, max_wait }, LONG, &Metrics::default()).unwrap()
}

/// Runs a job that says when it begins, and ends when `end` is dropped.
async fn hold(slot: Slot<'_>, begun: mpsc::Sender<()>, end: mpsc::Receiver<()>) {
    let work = move || {
        begun.send(()).unwrap();
        let _ = end.recv();
    };
    slot.run(BRIEF, work).await.unwrap();
}

#[tokio::test]
async fn an_admitted_caller_counts_until_it_goes_away() {
    let pool = pool(LONG * 2);
    let first = pool.acquire(LONG).await.unwrap();
    let second = pool.acquire(LONG).await.unwrap();
    let third = pool.acquire(LONG).await.unwrap();
    assert_eq!(pool.acquire(LONG).await.unwrap_err(), Overloaded { retry_after: LONG * 3 });
    assert_eq!(pool.shared.metrics.hash_shed.get(), 1);
    drop((first, second));
    let fourth = pool.acquire(LONG).await.unwrap();
    drop(third);
    // The better estimate replaces the first one.
    fourth.run(BRIEF, || ()).await.unwrap();
    assert_eq!(pool.shared.state.lock().backlog, Duration::ZERO);
}

#[tokio::test]
async fn callers_are_released_at_once_while_the_queue_is_empty_and_together_otherwise() {
    let pool = pool(LONG * 9);
    let (begun, begins) = mpsc::channel();
    let (end, ends) = mpsc::channel();
    let mut at_work = std::pin::pin!(hold(pool.acquire(LONG).await.unwrap(), begun, ends));
    assert!(poll(at_work.as_mut()).await.is_pending());
    begins.recv().unwrap();
    // The worker is busy, but the queue is empty.
    let (second, at_once) = pool.shared.admit(LONG).unwrap();
    assert!(at_once <= Instant::now());
    let mut second = std::pin::pin!(second.run(LONG, || ()));
    assert!(poll(second.as_mut()).await.is_pending());

    let before = Instant::now();
    let (_third, later) = pool.shared.admit(LONG).unwrap();
    let (_fourth, together) = pool.shared.admit(LONG).unwrap();
    assert!(later >= before + LONG / GROUP_DELAY_SHARE);
    assert_eq!(later, together);
    drop(end);
    at_work.await;
    second.await.unwrap();
    // The others still wait to be released, but now a worker is free.
    let (_fifth, at_once) = pool.shared.admit(LONG).unwrap();
    assert!(at_once <= Instant::now());
}

#[tokio::test]
async fn callers_are_notified_together_while_others_wait() {
    let pool = pool(LONG * 9);
    let (begun, begins) = mpsc::channel();
    let (mut callers, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (end, ended) = mpsc::channel();
        let mut caller = Box::pin(hold(pool.shared.admit(LONG).unwrap().0, begun.clone(), ended));
        assert!(poll(caller.as_mut()).await.is_pending());
        callers.push(caller);
        ends.push(end);
    }
    // A long job is still to come, so the wait is long and its share is, too.
    let _coming = pool.shared.admit(LONG).unwrap();
    for (before, end) in ends.into_iter().enumerate() {
        begins.recv().unwrap();
        assert_eq!(pool.shared.state.lock().done.len(), before, "a caller was notified alone");
        drop(end);
    }
    for caller in callers {
        caller.await;
    }
    assert!(pool.shared.state.lock().done.is_empty());
}

#[tokio::test]
async fn a_panic_fails_its_caller_and_the_worker_goes_on() {
    let pool = pool(LONG);
    for _ in 0..3 {
        let slot = pool.acquire(BRIEF).await.unwrap();
        slot.run(BRIEF, || -> () { panic!("as a bug would") }).await.unwrap_err();
    }
    pool.acquire(BRIEF).await.unwrap().run(BRIEF, || ()).await.unwrap();
    assert!(pool.is_complete());
    assert_eq!(pool.shared.state.lock().backlog, Duration::ZERO);
    assert_eq!(pool.shared.metrics.hash_queue_depth.get(), 0);
}

/// Panics once more when the worker that caught it drops it, which nothing catches.
struct PanicOnDrop;

impl Drop for PanicOnDrop {
    fn drop(&mut self) {
        panic!("where no panic is caught");
    }
}

#[tokio::test]
async fn a_pool_that_has_lost_a_worker_is_not_complete() {
    let pool = pool(LONG);
    let slot = pool.acquire(BRIEF).await.unwrap();
    slot.run(BRIEF, || -> () { std::panic::panic_any(PanicOnDrop) }).await.unwrap_err();
    while pool.is_complete() {
        tokio::task::yield_now().await;
    }
}

async fn poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}
