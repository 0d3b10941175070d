//! Batches: what a call that panics does to the others.

use auth::db::batch::{BatchError, BatchedCall, Batcher};
use sqlx::{PgConnection, PgPool};

/// A call whose statement panics, or whose end does; or neither.
#[derive(Debug)]
enum Call {
    Plain(usize),
    PanicsInStatement,
    PanicsInWorker,
}

impl BatchedCall for Call {
    type Answer = usize;

    async fn execute(connection: &mut PgConnection, calls: &[&Self]) -> sqlx::Result<Vec<usize>> {
        sqlx::query("SELECT").execute(connection).await?;
        let panics = calls.iter().any(|call| matches!(call, Call::PanicsInStatement));
        assert!(!panics, "as a bug would");
        Ok(calls.iter().map(|call| if let Call::Plain(number) = call { *number } else { 0 }).collect())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        assert!(!matches!(self, Call::PanicsInWorker), "where no panic is caught");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_panic_fails_its_call_alone_and_the_worker_goes_on(pool: PgPool) {
    for max_batch in [1, 128] {
        let batcher = Batcher::start(&pool, 1, max_batch);
        for _ in 0..5 {
            let (one, poisoned, two) = tokio::join!(
                batcher.submit(Call::Plain(1)),
                batcher.submit(Call::PanicsInStatement),
                batcher.submit(Call::Plain(2))
            );
            assert_eq!((one.unwrap(), two.unwrap()), (1, 2));
            assert!(matches!(poisoned, Err(BatchError::InDoubt(_))));
        }
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_worker_that_panics_outside_of_a_statement_begins_anew(pool: PgPool) {
    let batcher = Batcher::start(&pool, 1, 128);
    // It is answered before it is dropped.
    batcher.submit(Call::PanicsInWorker).await.unwrap();
    assert_eq!(batcher.submit(Call::Plain(3)).await.unwrap(), 3);
}
