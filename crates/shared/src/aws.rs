//! The AWS clients, and every default of the SDK that is not left to chance.

mod credentials;
mod reason;

use std::{
    env,
    error::Error,
    ffi::OsString,
    fs, io,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::PathBuf,
    process::Command,
    time::Duration,
};

pub use aws_config::SdkConfig;
use aws_config::{
    BehaviorVersion, Region, identity::IdentityCache, profile::ProfileFileLoadError, retry::RetryConfig,
    stalled_stream_protection::StalledStreamProtectionConfig, timeout::TimeoutConfig,
};
use aws_credential_types::provider::ProvideCredentials;
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_smithy_http_client::{
    Builder, Connector,
    proxy::ProxyConfig,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::base64;
use aws_types::{
    os_shim_internal::{Env, Fs},
    service_config::ServiceConfigKey,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use thiserror::Error;
use tokio::time::{sleep, timeout};
use tracing::{instrument::WithSubscriber, subscriber::NoSubscriber};

pub use reason::reason;

use crate::{
    settings::{parse_http_url, public_url},
    shutdown::Shutdown,
    status::{Dependency, State, Status},
    telemetry::chain,
};

/// S3 closes an idle connection after about 20 seconds and the SDK would keep it for 90; a request on one that was just
/// closed fails for nothing (aws-sdk-rust issues 1106, 1417, 827).
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longer than a long poll of the queue, which is silent for 20 seconds.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A body that stands still this long is given up, in both directions.
const STALL_GRACE_PERIOD: Duration = Duration::from_secs(20);

/// Three tries within a call ride out a reset connection; anything longer is the loop's own back-off, which people can see.
const ATTEMPTS: u32 = 3;

/// How soon a daemon looks again whether the SDK's settings are mended, which nothing signals.
const SETTINGS_PAUSE: Duration = Duration::from_secs(2);

/// Whose the credentials are is worth no longer wait: STS cannot be reached from every network.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(5);

/// What the SDK cannot begin with.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message says what each field is")]
pub enum ConfigError {
    #[error("cannot read the AWS profiles (AWS_CONFIG_FILE, AWS_SHARED_CREDENTIALS_FILE)")]
    Profile(#[from] ProfileFileLoadError),
    #[error(
        "the endpoint of {service} (AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_{}, or in the profile) is no address: it begins with http:// or https://",
        service.to_uppercase()
    )]
    Endpoint { service: &'static str },
    #[error("there is no AWS region: set AWS_REGION, or `region` in the profile")]
    NoRegion,
    #[error("cannot read AWS_CA_BUNDLE (`ca_bundle` in a profile) {}", file.display())]
    CaBundle { file: PathBuf, source: io::Error },
    #[error("AWS_CA_BUNDLE (`ca_bundle` in a profile) {} holds no certificates in PEM", file.display())]
    NoCertificates { file: PathBuf },
}

/// Begins the program anew without the SDK's variables that are empty, if there are any: it takes them for values, such as a region without a
/// name, and panics at some. Where that fails they stay. To be called first.
pub fn drop_empty_variables() {
    let is_empty = |(name, value): &(OsString, OsString)| value.is_empty() && name.as_bytes().starts_with(b"AWS_");
    let mut empty = env::vars_os().filter(is_empty).map(|(name, _)| name).peekable();
    if empty.peek().is_none() {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    let mut again = Command::new(program);
    again.args(env::args_os().skip(1));
    for name in empty {
        again.env_remove(name);
    }
    // It does not come back, but for an error.
    let _ = again.exec();
}

/// Region, credentials, endpoints, proxies and authorities as people set them for the SDK (`AWS_*`, profile, instance role, `HTTPS_PROXY`), and
/// our own choices for the rest. With an endpoint of one's own the region falls back to `us-east-1`, since it means nothing there.
pub async fn config() -> Result<SdkConfig, ConfigError> {
    // The SDK warns of each file that it cannot read, and a daemon that waits looks every two seconds. What is missing in the end is an error.
    let loaded = load().with_subscriber(NoSubscriber::default()).await?;
    let http = http_client(set_for(&loaded, "s3", "AWS_CA_BUNDLE", "ca_bundle").map(PathBuf::from))?;
    for service in ["s3", "sqs", "sts"] {
        if endpoint(&loaded, service).is_some_and(|url| parse_http_url(&url).is_err()) {
            return Err(ConfigError::Endpoint { service });
        }
    }
    let is_own = endpoint(&loaded, "s3").is_some() || endpoint(&loaded, "sqs").is_some();
    let region = loaded.region().cloned().or_else(|| is_own.then(|| Region::from_static("us-east-1")));
    let region = region.ok_or(ConfigError::NoRegion)?;
    let credentials = credentials::Chain::provider(http.clone(), region.clone(), &loaded);
    Ok(loaded.into_builder().http_client(http).region(region).credentials_provider(credentials).build())
}

/// The same for a daemon, which waits until whatever is wrong is mended; `None` when it drains before.
pub async fn config_at_last(status: &Status, shutdown: &mut Shutdown) -> Option<SdkConfig> {
    loop {
        // Nothing is in hand, here and below.
        match shutdown.race(config()).await? {
            Ok(config) => return Some(config),
            Err(error) => status.set(State::Waiting(Dependency::Archive, chain(&error))),
        };
        shutdown.race(sleep(SETTINGS_PAUSE)).await?;
    }
}

#[allow(
    clippy::default_trait_access,
    reason = "the type of the third argument has a name only in another crate of the SDK"
)]
async fn load() -> Result<SdkConfig, ConfigError> {
    // The SDK goes on without a profile that it cannot read, and then asks another account's servers.
    aws_config::profile::load(&Fs::default(), &Env::default(), &Default::default(), None).await?;
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT).build();
    let stalls = StalledStreamProtectionConfig::enabled().grace_period(STALL_GRACE_PERIOD).build();
    let loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .stalled_stream_protection(stalls)
        // Our chain of credentials keeps what it found.
        .identity_cache(IdentityCache::no_cache());
    Ok(loader.load().await)
}

/// What a variable or the profile says, for the service or for all.
fn set_for(config: &SdkConfig, service: &str, variable: &str, member: &str) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id(service).env(variable).profile(member).build();
    config.service_config()?.load_config(key.expect("all is given"))
}

/// The endpoint that is set for a service, or for all.
fn endpoint(config: &SdkConfig, service: &str) -> Option<String> {
    let own = set_for(config, service, "AWS_ENDPOINT_URL", "endpoint_url");
    own.or_else(|| config.endpoint_url().map(str::to_owned))
}

fn http_client(ca_bundle: Option<PathBuf>) -> Result<SharedHttpClient, ConfigError> {
    let mut trusted = TrustStore::default();
    if let Some(file) = ca_bundle {
        for certificate in certificates(file)? {
            let encoded = base64::encode(certificate);
            trusted.add_pem_certificate(format!("-----BEGIN CERTIFICATE-----\n{encoded}\n-----END CERTIFICATE-----\n"));
        }
    }
    let tls = TlsContext::builder().with_trust_store(trusted).build().expect("building it checks nothing");
    Ok(Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder();
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector
            .proxy_config(ProxyConfig::from_env())
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .tls_context(tls.clone())
            .build()
    }))
}

/// The certificates that can be trusted: the HTTP client panics at one that cannot.
fn certificates(file: PathBuf) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let pem = match fs::read(&file) {
        Ok(pem) => pem,
        Err(source) => return Err(ConfigError::CaBundle { file, source }),
    };
    let all = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
    let usable: Vec<_> = all.filter(|certificate| RootCertStore::empty().add(certificate.clone()).is_ok()).collect();
    if usable.is_empty() { Err(ConfigError::NoCertificates { file }) } else { Ok(usable) }
}

/// S3, with path-style addresses where an endpoint of one's own is set: `bucket.localhost` resolves nowhere.
/// The archive brings its own SHA-256, so the SDK's checksums are off.
pub fn s3(config: &SdkConfig) -> aws_sdk_s3::Client {
    let endpoint = endpoint(config, "s3");
    let mut s3 = aws_sdk_s3::config::Builder::from(config)
        .force_path_style(endpoint.is_some())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    s3.set_endpoint_url(endpoint);
    aws_sdk_s3::Client::from_conf(s3.build())
}

/// SQS.
pub fn sqs(config: &SdkConfig) -> aws_sdk_sqs::Client {
    let mut sqs = aws_sdk_sqs::config::Builder::from(config);
    sqs.set_endpoint_url(endpoint(config, "sqs"));
    aws_sdk_sqs::Client::from_conf(sqs.build())
}

/// Who one is on AWS and where it is asked, in one line: identity, region, endpoints, and where the bucket is, as far as S3 says so.
///
/// # Errors
/// There are no settings or no credentials, or the bucket is in another region.
pub async fn surroundings(config: &Result<SdkConfig, ConfigError>, bucket: &str) -> Result<String, String> {
    let config = config.as_ref().map_err(|error| chain(error))?;
    let provider = config.credentials_provider().ok_or("the SDK has no provider of credentials")?;
    let found = provider.provide_credentials().await;
    let credentials = found.map_err(|error| reason::no_credentials(&error))?;
    let who = match identity(config).await {
        Ok(arn) => arn,
        Err(why) => format!("access key {}, whose owner is not known ({why})", credentials.access_key_id()),
    };
    let region = config.region().map_or("none", Region::as_ref);
    let at = |service| match endpoint(config, service) {
        None => "AWS".to_owned(),
        Some(url) => url.parse().map_or_else(
            |_| "an address that is none".to_owned(),
            |url| public_url(&url).trim_end_matches('/').to_owned(),
        ),
    };
    let says = format!("{who}; region {region}; S3 at {}, SQS at {}", at("s3"), at("sqs"));
    match s3_region(&s3(config), bucket).await {
        Some(there) if there != region && endpoint(config, "s3").is_none() => {
            Err(format!("{says}; bucket {bucket} is in {there}: set AWS_REGION={there}"))
        }
        Some(there) => Ok(format!("{says}; bucket {bucket} in {there}")),
        None => Ok(says),
    }
}

/// The ARN of the credentials' owner. Where S3 has an endpoint of its own and STS has none, nobody is asked: AWS does not know such keys.
async fn identity(config: &SdkConfig) -> Result<String, Box<dyn Error + Send + Sync>> {
    if endpoint(config, "sts").is_none() && endpoint(config, "s3").is_some() {
        return Err("no endpoint is set for STS".into());
    }
    let mut sts = aws_sdk_sts::config::Builder::from(config);
    sts.set_endpoint_url(endpoint(config, "sts"));
    let sts = aws_sdk_sts::Client::from_conf(sts.build());
    let answer =
        timeout(IDENTITY_TIMEOUT, sts.get_caller_identity().send()).await.map_err(|_| "STS gives no answer")?;
    let answer = answer.map_err(|error| match error.code() {
        Some(code) => format!("STS answers {code}"),
        None => "STS gives no answer".to_owned(),
    })?;
    answer.arn.ok_or_else(|| "STS names nobody".into())
}

/// Where the bucket is. S3 says so in a header, also to those whom it refuses the rest.
async fn s3_region(s3: &aws_sdk_s3::Client, bucket: &str) -> Option<String> {
    match s3.head_bucket().bucket(bucket).send().await {
        Ok(head) => head.bucket_region,
        Err(error) => error.raw_response()?.headers().get(reason::BUCKET_REGION).map(str::to_owned),
    }
}
