//! What a session remembers of the client that opened it.

use std::net::IpAddr;

/// The client of a request: its address, and what it calls itself.
#[derive(Clone, Debug)]
pub struct ClientInfo {
    pub user_agent: Option<String>,
    pub ip: IpAddr,
}

impl ClientInfo {
    /// The width of `sessions.user_agent`, in characters.
    const USER_AGENT_CHARACTERS: usize = 255;

    pub fn new(user_agent: Option<&str>, ip: IpAddr) -> Self {
        let user_agent = user_agent.map(|text| text.chars().take(Self::USER_AGENT_CHARACTERS).collect());
        Self { user_agent, ip }
    }
}
