//! Credentials from wherever the SDK finds them, looked for again after a fault.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime},
};

use aws_config::{
    Region, SdkConfig, default_provider::credentials::DefaultCredentialsChain, provider_config::ProviderConfig,
};
use aws_credential_types::{
    Credentials,
    provider::{self, ProvideCredentials, SharedCredentialsProvider, error::CredentialsError, future},
};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use tokio::{sync::Mutex, time::timeout};
use tracing::{instrument::WithSubscriber, subscriber::NoSubscriber};

/// Credentials that expire sooner than this are not used any more.
const EXPIRES_SOON: Duration = Duration::from_secs(30);

/// A program or a service that has given no credentials by then is given up.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);

/// Credentials are not looked for anew sooner, so that a program does not run with each request where they live for seconds, or are refused.
const LOOK_PAUSE: Duration = Duration::from_secs(5);

/// How often AWS has refused credentials. One a process, since S3 and SQS have the same ones.
static REFUSALS: AtomicU64 = AtomicU64::new(0);

/// Has credentials looked for anew, since AWS refused the ones in use.
pub(super) fn look_anew() {
    REFUSALS.fetch_add(1, Ordering::Relaxed);
}

/// The SDK's chain of credentials, built anew each time that it is asked: a chain remembers a broken profile, and the keys in it, for ever.
#[derive(Debug)]
pub(super) struct Chain {
    http: SharedHttpClient,
    region: Region,
    use_fips: Option<bool>,
    use_dual_stack: Option<bool>,
    held: Mutex<Option<Held>>,
}

/// What was found last.
#[derive(Debug)]
struct Held {
    credentials: Credentials,
    found: Instant,
    /// How many refusals there were before.
    refusals: u64,
}

impl Held {
    fn is_good(&self) -> bool {
        if self.found.elapsed() < LOOK_PAUSE {
            return true;
        }
        let soon = SystemTime::now() + EXPIRES_SOON;
        let is_refused = self.refusals != REFUSALS.load(Ordering::Relaxed);
        !is_refused && self.credentials.expiry().is_none_or(|expiry| expiry > soon)
    }
}

impl Chain {
    pub(super) fn provider(http: SharedHttpClient, region: Region, loaded: &SdkConfig) -> SharedCredentialsProvider {
        let (use_fips, use_dual_stack) = (loaded.use_fips(), loaded.use_dual_stack());
        SharedCredentialsProvider::new(Self { http, region, use_fips, use_dual_stack, held: Mutex::default() })
    }

    /// Those that were found last, until they expire or AWS refuses them.
    async fn look(&self) -> provider::Result {
        let mut held = self.held.lock().await;
        if let Some(held) = held.as_ref().filter(|held| held.is_good()) {
            return Ok(held.credentials.clone());
        }
        // What is refused from here on may be what is found now.
        let refusals = REFUSALS.load(Ordering::Relaxed);
        // Settings keep the profile that they have once read.
        let settings = ProviderConfig::default().with_http_client(self.http.clone());
        let settings = settings.with_use_fips(self.use_fips).with_use_dual_stack(self.use_dual_stack);
        let chain = DefaultCredentialsChain::builder().configure(settings).region(self.region.clone());
        let look = async { chain.build().await.provide_credentials().await };
        // Whoever needs them tells why there are none; the SDK would say so three times with each try.
        let found = timeout(LOOK_TIMEOUT, look.with_subscriber(NoSubscriber::default())).await;
        let found = found.map_err(|_| CredentialsError::provider_timed_out(LOOK_TIMEOUT)).flatten()?;
        // The SDK would panic at the one, and take the other for a fault of the network.
        let parts = [Some(found.access_key_id()), found.session_token()];
        if parts.iter().flatten().any(|part| part.contains(|c: char| c.is_control() || !c.is_ascii())) {
            let why = "the access key or the session token holds a character that none has: was it written with a line break?";
            return Err(CredentialsError::invalid_configuration(why));
        }
        *held = Some(Held { credentials: found.clone(), found: Instant::now(), refusals });
        Ok(found)
    }
}

impl ProvideCredentials for Chain {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.look())
    }
}
