//! Tasks for the life of the service (`background`): one that panics goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use auth::background;
use auth::db::unanswered::{Settle, Unanswered};
use sqlx::{PgConnection, PgPool};

/// Fails as a bug would, but for every third time.
fn attempt(attempts: &AtomicUsize) {
    assert!(attempts.fetch_add(1, Ordering::Relaxed) % 3 == 2, "as a bug would");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_begins_anew_and_one_that_returns_has_ended() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let task = background::spawn("test", Arc::clone(&attempts), |attempts| async move { attempt(&attempts) });
    task.await.unwrap();
    assert_eq!(attempts.load(Ordering::Relaxed), 3);
}

static SETTLED: AtomicUsize = AtomicUsize::new(0);

#[derive(Debug)]
struct Write;

impl Settle for Write {
    const WHAT: &str = "tests";

    async fn settle(_: &mut PgConnection, _: &[Arc<Self>]) -> sqlx::Result<()> {
        attempt(&SETTLED);
        Ok(())
    }
}

#[sqlx::test]
async fn writes_without_an_answer_are_settled_though_an_attempt_panicked(pool: PgPool) {
    let started = std::time::Instant::now();
    Unanswered::new(pool, Duration::from_secs(20)).expect(Write).failed();
    while SETTLED.load(Ordering::Relaxed) < 3 {
        assert!(started.elapsed().as_secs() < 30, "not settled");
        tokio::task::yield_now().await;
    }
}
