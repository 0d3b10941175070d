//! The limit of a request: axum with one route and no layer.

use std::net::SocketAddr;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;

use crate::Outcome;

/// Serves until it is killed, on as many threads as the service takes.
pub(crate) fn serve(address: SocketAddr) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let ok = async || ([(CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#);
        let router = Router::new().route("/auth/health", get(ok)).route("/auth/verify", get(ok));
        let listener = tokio::net::TcpListener::bind(address).await?;
        axum::serve(
            axum::serve::ListenerExt::tap_io(listener, |stream| {
                let _ = stream.set_nodelay(true);
            }),
            router,
        )
        .await?;
        Ok(())
    })
}
