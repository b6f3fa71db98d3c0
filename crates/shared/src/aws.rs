//! The AWS clients, and every default of the SDK that is not left to chance.

use std::time::Duration;

use aws_config::{
    BehaviorVersion, Region, SdkConfig, retry::RetryConfig, stalled_stream_protection::StalledStreamProtectionConfig,
    timeout::TimeoutConfig,
};
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, rustls_provider::CryptoMode},
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

/// Region, credentials and endpoint as the SDK finds them (`AWS_*`, profile, instance role), and our own choices for the rest.
/// The region falls back to `us-east-1`, so that a custom endpoint needs none.
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
    if loaded.region().is_some() {
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
