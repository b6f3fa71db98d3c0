//! The AWS clients, and every default of the SDK that is not left to chance.

use std::{error::Error, time::Duration};

pub use aws_config::SdkConfig;
use aws_config::{
    BehaviorVersion, Region, retry::RetryConfig, stalled_stream_protection::StalledStreamProtectionConfig,
    timeout::TimeoutConfig,
};
use aws_sdk_s3::{
    config::{RequestChecksumCalculation, ResponseChecksumValidation},
    error::{ProvideErrorMetadata, SdkError},
};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, rustls_provider::CryptoMode},
};

use crate::telemetry::chain;

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

/// Region, credentials and endpoint as the SDK finds them (`AWS_*`, profile, instance role), and our own choices for the rest.
/// With an endpoint of one's own the region falls back to `us-east-1`, since it means nothing there.
pub async fn config() -> SdkConfig {
    let http = Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .build_https();
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT).build();
    let stalls = StalledStreamProtectionConfig::enabled().grace_period(STALL_GRACE_PERIOD).build();
    let loaded = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .http_client(http)
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .stalled_stream_protection(stalls)
        .load()
        .await;
    if loaded.region().is_some() || loaded.endpoint_url().is_none() {
        return loaded;
    }
    loaded.into_builder().region(Region::from_static("us-east-1")).build()
}

/// S3, with path-style addresses where `AWS_ENDPOINT_URL` names another server: `bucket.localhost` resolves nowhere.
/// The archive brings its own SHA-256, so the SDK's checksums are off.
pub fn s3(config: &SdkConfig) -> aws_sdk_s3::Client {
    let s3 = aws_sdk_s3::config::Builder::from(config)
        .force_path_style(config.endpoint_url().is_some())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .build();
    aws_sdk_s3::Client::from_conf(s3)
}

/// SQS.
pub fn sqs(config: &SdkConfig) -> aws_sdk_sqs::Client {
    aws_sdk_sqs::Client::new(config)
}

/// What came back, for people. The SDK's own errors say "unhandled error" and their text twice.
pub fn reason<E>(error: &SdkError<E>) -> Box<dyn Error + Send + Sync>
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    match (error.code(), error.raw_response()) {
        (Some(code), _) => {
            let message =
                error.message().map(|message| format!(": {}", message.trim_end_matches('.'))).unwrap_or_default();
            format!("{code}{message}{}", remedy(code)).into()
        }
        // A HEAD is refused without a word.
        (None, Some(response)) => {
            let status = response.status().as_u16();
            let remedy = match status {
                301 | 307 => remedy("PermanentRedirect"),
                400 => "; renew the credentials, and set AWS_REGION to the region that the bucket is in",
                _ => "",
            };
            format!("the answer has status {status}{remedy}").into()
        }
        // No credentials, no name, no connection, no answer in time: the causes tell which.
        (None, None) => {
            let why = chain(error);
            format!("no answer; see to AWS_ENDPOINT_URL, AWS_REGION, credentials and network: {why}").into()
        }
    }
}

/// What to do about the codes that new users meet.
fn remedy(code: &str) -> &'static str {
    match code {
        "PermanentRedirect" | "AuthorizationHeaderMalformed" => "; set AWS_REGION to the region that the bucket is in",
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => "; renew the credentials",
        "QueueDoesNotExist" | "AWS.SimpleQueueService.NonExistentQueue" => {
            "; create the queue, or correct QUEUE_URL or AWS_REGION"
        }
        _ => "",
    }
}
