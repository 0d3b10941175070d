//! What is known of a client.

use std::net::IpAddr;

use super::mail::Locale;

/// The client of a request: its address, what it calls itself, and the language that it prefers.
#[derive(Clone, Debug)]
pub struct ClientInfo {
    pub user_agent: Option<String>,
    pub ip: IpAddr,
    pub locale: Locale,
}

impl ClientInfo {
    /// The width of `sessions.user_agent`, in characters.
    const USER_AGENT_CHARACTERS: usize = 255;

    pub fn new(user_agent: Option<&str>, ip: IpAddr, locale: Locale) -> Self {
        let user_agent = user_agent.map(|text| text.chars().take(Self::USER_AGENT_CHARACTERS).collect());
        Self { user_agent, ip, locale }
    }
}
