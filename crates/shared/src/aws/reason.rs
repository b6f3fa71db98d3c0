//! What AWS answered, in words for people, with what to do about it.

use std::{env, error::Error, iter, time::SystemTime};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::{
    error::{ProvideErrorMetadata, SdkError},
    primitives::{DateTime, DateTimeFormat},
};

use super::credentials::look_anew;
use crate::telemetry::chain;

/// AWS takes no request that was signed more than 15 minutes ago or ahead. The SDK corrects the clock by the answers that it gets, so a clock
/// that is off is the cause of few refusals.
const SKEW_SECS: u64 = 5 * 60;

/// What AWS says of credentials that others may replace, and of signatures with them.
const OF_CREDENTIALS: [&str; 10] = [
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "TokenRefreshRequired",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "SignatureDoesNotMatch",
    "InvalidSignatureException",
    "InvalidSignature",
];

/// What it says of the time of a request.
const OF_TIME: [&str; 3] = ["RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"];

/// The header in which S3 says where a bucket is, also when it refuses.
pub(super) const BUCKET_REGION: &str = "x-amz-bucket-region";

/// What came back, for people, where the role needs these rights. Where credentials are refused, they are looked for anew from here on. (The
/// SDK's own errors say "unhandled error" and their text twice.)
pub fn reason<E>(error: &SdkError<E>, rights: &str) -> Box<dyn Error + Send + Sync>
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let Some(response) = error.raw_response() else {
        return unanswered(error).into();
    };
    let (status, code) = (response.status().as_u16(), error.code());
    let is_refused = matches!(status, 400 | 401 | 403);
    // Some servers say AccessDenied to a key that they do not know any more.
    let may_be_credentials = |code: &str| OF_CREDENTIALS.contains(&code) || code.starts_with("AccessDenied");
    if is_refused && code.is_none_or(may_be_credentials) {
        look_anew();
    }
    // A HEAD is refused without a word.
    let said = match (code, error.message()) {
        (Some(code), Some(message)) => format!("{code}: {}", message.trim_end_matches('.')),
        (Some(code), None) => code.to_owned(),
        (None, _) => format!("the answer has status {status}"),
    };
    let header = |name| response.headers().get(name);
    let may_be_time = |code: &str| OF_TIME.contains(&code) || code.contains("Signature");
    let skew = header("date").and_then(skew).filter(|_| is_refused && code.is_none_or(may_be_time));
    let remedy = skew.unwrap_or_else(|| remedy(status, code, &said, header(BUCKET_REGION), rights));
    let separator = if remedy.is_empty() { "" } else { "; " };
    format!("{said}{separator}{remedy}").into()
}

/// There was no answer: no credentials, no name, no connection, no time. The causes tell which.
fn unanswered(error: &(dyn Error + 'static)) -> String {
    let mut causes = iter::successors(Some(error), |&error| error.source());
    if let Some(credentials) = causes.find_map(|cause| cause.downcast_ref::<CredentialsError>()) {
        return no_credentials(credentials);
    }
    let why = chain(error);
    let more = match () {
        () if why.contains("UnknownIssuer") => ", AWS_CA_BUNDLE for an authority of your own",
        () if why.contains("tunnel") || why.contains("proxy") => ", HTTPS_PROXY",
        () => "",
    };
    format!("no answer; see to AWS_ENDPOINT_URL, AWS_REGION{more} and network: {why}")
}

/// Why the chain of credentials found none.
pub(super) fn no_credentials(error: &CredentialsError) -> String {
    let why = error.source().map_or_else(|| error.to_string(), chain);
    let why = why.trim_end().trim_end_matches('.');
    match error {
        CredentialsError::CredentialsNotLoaded(_) => {
            let profile = env::var("AWS_PROFILE").map(|name| format!(" (it names `{name}`)")).unwrap_or_default();
            format!(
                "there are no AWS credentials; set AWS_ACCESS_KEY_ID or AWS_PROFILE{profile}, or give the machine a role: {why}"
            )
        }
        _ if why.contains("SSO") => format!("cannot get AWS credentials; `aws sso login` may help: {why}"),
        _ => format!("cannot get AWS credentials: {why}"),
    }
}

/// What is wrong with this machine's clock, by the time that AWS answered.
fn skew(date: &str) -> Option<String> {
    let there = SystemTime::try_from(DateTime::from_str(date, DateTimeFormat::HttpDate).ok()?).ok()?;
    let (off, word) = match SystemTime::now().duration_since(there) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    let minutes = off.as_secs() / 60;
    (off.as_secs() > SKEW_SECS).then(|| format!("this machine's clock is {minutes} minutes {word} AWS's: set it"))
}

/// What to do about the answers that people meet.
fn remedy(status: u16, code: Option<&str>, said: &str, bucket_region: Option<&str>, rights: &str) -> String {
    let region = || format!("set AWS_REGION to {}", bucket_region.unwrap_or("the region that the bucket is in"));
    match code {
        Some("PermanentRedirect" | "TemporaryRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => region(),
        Some("ExpiredToken" | "ExpiredTokenException" | "InvalidToken" | "TokenRefreshRequired") => "renew the credentials".into(),
        Some("InvalidAccessKeyId" | "InvalidClientTokenId" | "UnrecognizedClientException") => {
            "AWS does not know this access key: renew the credentials".into()
        }
        Some(code) if OF_TIME.contains(&code) => "set this machine's clock".into(),
        Some("SignatureDoesNotMatch" | "InvalidSignatureException" | "InvalidSignature") => {
            "put the secret key right, or this machine's clock".into()
        }
        Some("InvalidObjectState") => {
            "S3 keeps the object in an archive tier such as Glacier: restore it, and end the lifecycle rule that moves objects there"
                .into()
        }
        Some("QueueDoesNotExist" | "AWS.SimpleQueueService.NonExistentQueue" | "InvalidAddress") => {
            "create the queue, or correct QUEUE_URL or AWS_REGION; a queue of another account shows itself only to those whom its own policy lets in".into()
        }
        Some(code) if code.contains("Throttl") => String::new(),
        _ if is_of_kms(said) => {
            "see to the KMS key: it must be enabled, and its policy or the role's must allow kms:Decrypt, and kms:GenerateDataKey to append or to send".into()
        }
        _ if status == 403 || code.is_some_and(|code| code.starts_with("AccessDenied")) => format!(
            "see to the credentials (`check` shows whose they are) and to the policies of role and resource: the role needs {rights}"
        ),
        None if matches!(status, 301 | 307) => region(),
        None if status == 400 => format!("renew the credentials, or {}", region()),
        _ => String::new(),
    }
}

/// S3 names the right that is lacking, such as `kms:Decrypt`; SQS and S3 have codes such as `KMS.DisabledException` and `KmsAccessDenied`.
fn is_of_kms(said: &str) -> bool {
    said.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("kms")) || said.contains(" kms:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_says_what_to_do() {
        for (status, said, expected) in [
            (403, "AccessDenied: Access Denied", "the role needs s3:GetObject"),
            (400, "AccessDeniedException: no", "the role needs s3:GetObject"),
            (
                403,
                "AccessDenied: User: me is not authorized to perform: kms:Decrypt on resource: key",
                "kms:GenerateDataKey",
            ),
            (400, "KMS.DisabledException: it is disabled", "it must be enabled"),
            (400, "KmsAccessDenied: no", "kms:Decrypt"),
            (
                403,
                "InvalidObjectState: The operation is not valid for the object's storage class",
                "Glacier: restore it",
            ),
            (403, "RequestTimeTooSkewed: The difference is too large", "set this machine's clock"),
            (403, "SignatureDoesNotMatch: no", "the secret key"),
            (403, "InvalidAccessKeyId: no", "renew the credentials"),
            (400, "ExpiredToken: no", "renew the credentials"),
            (301, "PermanentRedirect: elsewhere", "set AWS_REGION to eu-west-1"),
            (403, "", "the role needs s3:GetObject"),
            (301, "", "set AWS_REGION to eu-west-1"),
            (400, "", "renew the credentials, or set AWS_REGION"),
            (503, "SlowDown: slow down", ""),
        ] {
            let code = said.split_once(':').map(|(code, _)| code);
            let remedy = remedy(status, code, said, Some("eu-west-1"), "s3:GetObject");
            assert!(remedy.contains(expected) && (remedy.is_empty() == expected.is_empty()), "{said}: {remedy}");
        }
    }

    #[test]
    fn a_clock_that_is_off_is_told_by_the_answers_date() {
        let at = |offset: i64| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().cast_signed();
            DateTime::from_secs(now + offset).fmt(DateTimeFormat::HttpDate).unwrap()
        };
        assert_eq!(skew(&at(10)), None);
        assert_eq!(skew(&at(-1_230)).unwrap(), "this machine's clock is 20 minutes ahead of AWS's: set it");
        assert_eq!(skew(&at(1_230)).unwrap(), "this machine's clock is 20 minutes behind AWS's: set it");
        assert_eq!(skew("yesterday"), None);
    }
}
