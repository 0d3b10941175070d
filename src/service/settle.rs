//! Settling what clients were not told of, before the process ends.

use std::time::Duration;

use crate::app::App;

/// The longest time that the process waits for its database before it ends.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(3);

pub async fn settle(app: &App) {
    let settled = async {
        let (refreshes, logins) = tokio::join!(app.unanswered_refreshes.settle(), app.unanswered_logins.settle());
        refreshes.and(logins)
    };
    if !matches!(tokio::time::timeout(SETTLE_TIMEOUT, settled).await, Ok(Ok(()))) {
        tracing::warn!("clients were not told of refreshes or logins, and these could not be settled");
    }
}
