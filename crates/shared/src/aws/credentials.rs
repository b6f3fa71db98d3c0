//! Credentials from wherever the SDK finds them, looked for again after a fault.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use aws_config::{Region, default_provider::credentials::DefaultCredentialsChain, provider_config::ProviderConfig};
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

/// Whether AWS has refused credentials since they were last looked for. One a process, since S3 and SQS have the same ones.
static ARE_REFUSED: AtomicBool = AtomicBool::new(false);

/// Has credentials looked for anew, since AWS refused the ones in use.
pub(super) fn look_anew() {
    ARE_REFUSED.store(true, Ordering::Relaxed);
}

/// The SDK's chain of credentials, built anew each time that it is asked: a chain remembers a broken profile, and the keys in it, for ever.
#[derive(Debug)]
pub(super) struct Chain {
    http: SharedHttpClient,
    region: Region,
    held: Mutex<Option<Credentials>>,
}

impl Chain {
    pub(super) fn provider(http: SharedHttpClient, region: Region) -> SharedCredentialsProvider {
        SharedCredentialsProvider::new(Self { http, region, held: Mutex::default() })
    }

    /// Those that were found last, until they expire or AWS refuses them.
    async fn look(&self) -> provider::Result {
        let mut held = self.held.lock().await;
        if ARE_REFUSED.swap(false, Ordering::Relaxed) {
            *held = None;
        }
        let soon = SystemTime::now() + EXPIRES_SOON;
        if let Some(known) = held.as_ref().filter(|known| known.expiry().is_none_or(|expiry| expiry > soon)) {
            return Ok(known.clone());
        }
        // Settings keep the profile that they have once read.
        let settings = ProviderConfig::default().with_http_client(self.http.clone());
        let settings = settings.with_region(Some(self.region.clone()));
        let look = async {
            let chain = DefaultCredentialsChain::builder().configure(settings).build().await;
            chain.provide_credentials().await
        };
        // Whoever needs them tells why there are none; the SDK would say so three times with each try.
        let found = timeout(LOOK_TIMEOUT, look.with_subscriber(NoSubscriber::default())).await;
        let found = found.map_err(|_| CredentialsError::provider_timed_out(LOOK_TIMEOUT)).flatten()?;
        *held = Some(found.clone());
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
