//! Refuses requests with a body that a page of another site made a browser send.
//!
//! Such a page cannot read the answer, but it could sign somebody in, register accounts, and use up the throttle of its
//! visitor's network. Browsers say where a request comes from; clients that are no browsers say nothing of it, and pass.
//! The rules are those of Go's `net/http.CrossOriginProtection`.

use axum::body::{Body, HttpBody as _};
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::response::{IntoResponse as _, Response};
use tower_http::validate_request::ValidateRequest;

use super::error::ApiError;
use super::extract::Peer;
use crate::app::App;
use crate::config::CorsOrigins;

const SEC_FETCH_SITE: &str = "sec-fetch-site";
const X_FORWARDED_HOST: &str = "x-forwarded-host";

#[derive(Clone, Debug)]
pub(super) struct OwnOriginOnly(pub App);

impl ValidateRequest<Body> for OwnOriginOnly {
    type ResponseBody = Body;

    fn validate(&mut self, request: &mut Request) -> Result<(), Response> {
        let may_change = !request.method().is_safe() && !request.body().is_end_stream();
        if may_change && self.is_foreign(request) { Err(ApiError::ForeignOrigin.into_response()) } else { Ok(()) }
    }
}

impl OwnOriginOnly {
    fn is_foreign(&self, request: &Request) -> bool {
        let headers = request.headers();
        let sites: Vec<_> = headers.get_all(SEC_FETCH_SITE).iter().collect();
        let origins: Vec<_> = headers.get_all(ORIGIN).iter().collect();
        if !origins.is_empty() && origins.iter().all(|origin| self.allows(origin)) {
            return false;
        }
        let from = |site: &str| sites.iter().all(|value| *value == site);
        if origins.is_empty() {
            // A page's request that is no GET has an origin (Fetch, "append a request `Origin` header").
            return !from("none") && !from("same-origin");
        }
        let known = |origin: &&HeaderValue| self.allows(origin) || self.is_own(origin, request);
        // Where a gateway sends the request to another host than the browser did, the browser still knows.
        let own_site = !sites.is_empty() && from("same-origin");
        sites.iter().any(|site| *site == "cross-site") || !(own_site || origins.iter().all(known))
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        match &self.0.config.cors_allowed_origins {
            Some(CorsOrigins::Any) => true,
            Some(CorsOrigins::List(list)) => {
                list.iter().any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
            }
            None => false,
        }
    }

    /// Whether an origin is the host that the request was sent to.
    fn is_own(&self, origin: &HeaderValue, request: &Request) -> bool {
        let Some((scheme, origin)) = origin.to_str().ok().and_then(|origin| origin.split_once("://")) else {
            return false;
        };
        let default_port = match scheme.to_ascii_lowercase().as_str() {
            "http" => 80,
            "https" => 443,
            _ => return false,
        };
        let Some(origin) = host_and_port(origin, default_port) else { return false };
        let headers = request.headers();
        let peer = request.extensions().get::<Peer>();
        let forwarded = peer.is_some_and(|peer| self.0.config.trusted_proxies.trusts(peer.0.ip()));
        let hosts = headers.get_all(X_FORWARDED_HOST).iter().filter(|_| forwarded).chain(headers.get(HOST));
        let hosts = hosts.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
        hosts.map(str::trim).any(|host| host_and_port(host, default_port).as_ref() == Some(&origin))
    }
}

/// A host in lower case and its port. With anything else beside them it is no host.
fn host_and_port(text: &str, default_port: u16) -> Option<(String, u16)> {
    let host = text.parse::<Authority>().ok().filter(|host| !host.as_str().contains('@'))?;
    Some((host.host().to_ascii_lowercase(), host.port_u16().unwrap_or(default_port)))
}
