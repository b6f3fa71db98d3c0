//! RDS IAM tokens: a signed address that RDS takes for a password, for 15 minutes
//! (<https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.IAMDBAuth.Connecting.html>).

use std::{
    iter,
    time::{Duration, SystemTime},
};

use aws_credential_types::{Credentials, provider::ProvideCredentials};
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign},
    sign::v4,
};
use secrecy::SecretString;
use tracing::subscriber::{NoSubscriber, with_default};
use url::Url;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// RDS takes no longer validity.
const VALIDITY: Duration = Duration::from_mins(15);

/// A token for one connection, under the credentials that the SDK finds.
pub async fn rds_token(host: &str, port: u16, user: &str) -> Result<SecretString, BoxError> {
    let config = shared::aws::config().await?;
    let provider = config.credentials_provider().ok_or("there are no AWS credentials")?;
    let region = config.region().ok_or("there is no AWS_REGION")?.to_string();
    let credentials = provider.provide_credentials().await?;
    token(host, port, user, &region, credentials, SystemTime::now())
}

fn token(
    host: &str,
    port: u16,
    user: &str,
    region: &str,
    credentials: Credentials,
    now: SystemTime,
) -> Result<SecretString, BoxError> {
    let mut settings = SigningSettings::default();
    settings.expires_in = Some(VALIDITY);
    settings.signature_location = SignatureLocation::QueryParams;
    let identity = credentials.into();
    let parameters =
        v4::SigningParams::builder().identity(&identity).region(region).name("rds-db").time(now).settings(settings);
    let mut url = Url::parse(&format!("https://{host}:{port}/"))?;
    url.query_pairs_mut().append_pair("Action", "connect").append_pair("DBUser", user);
    let request = SignableRequest::new("GET", url.as_str(), iter::empty(), SignableBody::Bytes(&[]))?;
    let parameters = parameters.build()?.into();
    // A trace of the signing shows what is signed, and with it the session's token.
    let (signed, _) = with_default(NoSubscriber::default(), || sign(request, &parameters))?.into_parts();
    for (name, value) in signed.params() {
        url.query_pairs_mut().append_pair(name, value);
    }
    Ok(url.as_str().trim_start_matches("https://").to_owned().into())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_token_is_a_signed_address_without_its_scheme() {
        let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let token = token("db.example.org", 5432, "me", "eu-central-1", credentials, at).unwrap();
        let token = token.expose_secret();
        assert!(
            token.starts_with("db.example.org:5432/?Action=connect&DBUser=me&X-Amz-Algorithm=AWS4-HMAC-SHA256"),
            "{token}"
        );
        for part in [
            "X-Amz-Credential=AKIDEXAMPLE%2F20231114%2Feu-central-1%2Frds-db%2Faws4_request",
            "X-Amz-Expires=900",
            "X-Amz-Signature=",
        ] {
            assert!(token.contains(part), "{token}");
        }
        assert!(!token.contains("secret"));
    }
}
