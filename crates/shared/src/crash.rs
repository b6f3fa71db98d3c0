//! Crash points: the places at which a test ends a daemon, named after what has just happened there.
//!
//! They are compiled under the feature `failpoints` alone. `FAILPOINTS=appended=16*off->panic` then ends the process at the 17th passage
//! of the point `appended`.

/// A place between two effects that outlive the process.
#[cfg(feature = "failpoints")]
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        $crate::crash::fail_point!($name)
    };
}

/// Nothing.
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {};
}

#[cfg(feature = "failpoints")]
#[doc(hidden)]
pub use fail::fail_point;

/// Reads from `FAILPOINTS` where to end, which then happens as by `kill -9`: nothing is unwound, dropped or drained.
#[cfg(feature = "failpoints")]
pub fn arm() -> fail::FailScenario<'static> {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(panic);
        std::process::abort();
    }));
    fail::FailScenario::setup()
}
