//! Tasks for the life of the service. Where one panics, that is logged, and it begins anew: a defect that shows now and then
//! must not end the clean-up, or the mails, for good.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;

/// The pause before a task begins anew. One that panics at once must fill neither a core nor the log.
const PAUSE: Duration = Duration::from_secs(1);

/// Spawns a task on the current runtime. Where it panics it begins anew with the same state; where it returns it has ended.
pub fn spawn<S, F>(task: &'static str, state: S, mut begin: impl FnMut(S) -> F + Send + 'static) -> JoinHandle<()>
where
    S: Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        while let Err(panic) = AssertUnwindSafe(begin(state.clone())).catch_unwind().await {
            tracing::error!(task, panic = message(&*panic), "a background task panicked; it begins anew");
            tokio::time::sleep(PAUSE).await;
        }
    })
}

/// What a panic says.
pub fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("(no message)")
}
