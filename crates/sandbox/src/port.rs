//! Free ports on loopback.

use std::net::{Ipv4Addr, TcpListener};

use uuid::Uuid;

/// Below what Linux (32768) and macOS (49152) hand out to outgoing connections, so that a port stays free while the daemon that
/// owns it is being started again.
const FIRST: u16 = 18_000;
const COUNT: u16 = 14_000;

/// A port that was free a moment ago. Whoever needs certainty tries again when it turns out to be taken.
pub(crate) fn free_port() -> u16 {
    loop {
        // Two sandboxes that start together must not walk the same way, hence random.
        let random = u16::try_from(Uuid::new_v4().as_u128() % u128::from(COUNT)).expect("less than COUNT");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, FIRST + random)).is_ok() {
            return FIRST + random;
        }
    }
}
