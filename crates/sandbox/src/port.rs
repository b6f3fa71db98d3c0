//! Free ports on loopback.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
};

use uuid::Uuid;

/// Below what Linux (32768) and macOS (49152) hand out to outgoing connections, so that a port stays free while the daemon that
/// owns it is being started again.
const FIRST: u16 = 18_000;
const COUNT: u16 = 14_000;

/// Two sandboxes that start together must not walk the same way, hence random.
static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| Uuid::new_v4().as_fields().1.into());

/// A port that was free a moment ago, and that nobody else in this process got: it may be long until its daemon is started. Whoever
/// needs certainty tries again when it turns out to be taken.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = FIRST + NEXT.fetch_add(1, Relaxed) % COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
