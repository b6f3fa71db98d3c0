//! The whole of `deploy/terraform` is applied, to moto in AWS' place; the daemons run on what it made, told what its outputs tell and
//! under the roles of their hosts; and what is not theirs is refused.
//!
//! Of the policies moto weighs actions and resources. What they say under a condition (appending, TLS, the prefix of a list) is looked
//! at as text only, in the bucket's policy here and in the roles by Terraform's own tests.

use std::{collections::BTreeMap, fmt::Debug};

use anyhow::{Context, Result, ensure};
use aws_credential_types::Credentials;
use aws_sdk_s3::error::SdkError;
use sandbox::{Row, Sandbox, Setup};
use serde_json::{Value, json};
use support::{
    SOON, is_empty,
    moto::Moto,
    retitle, start,
    terraform::{Terraform, environment},
    world,
};

/// The importer is quick. The transformer looks at the archive when it starts, and then only if the queue tells it to.
const VARIABLES: &str = r#"
    source_url           = "https://jsonplaceholder.typicode.com/posts"
    importer_settings    = { POLL_INTERVAL = "200ms" }
    transformer_settings = { CATCH_UP_INTERVAL = "1h" }
    package_key          = "packages/posts-pipeline_1.0.0_amd64.deb"
    package_sha256       = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    alarm_email          = "on-call@example.org"
"#;

/// What the hosts install; the one among the variables.
const PACKAGE: &str = "packages/posts-pipeline_1.0.0_amd64.deb";

/// The stream's first object, one that is not there yet, and one of another stream.
const FIRST: &str = "raw/posts/000/000/000/001.json";
const NEXT: &str = "raw/posts/000/000/000/999.json";
const FOREIGN: &str = "raw/comments/000/000/000/001.json";

#[tokio::test]
async fn the_daemons_run_on_what_is_applied_and_may_do_nothing_else() -> Result<()> {
    let Some(mut terraform) = Terraform::find() else { return Ok(()) };
    let moto = Moto::start(&world().await).await?;
    moto.prepare(&mut terraform)?;
    let outputs = apply(&terraform)?;
    let [importer, transformer, administrator] = roles(&moto, &outputs).await?;
    the_bucket_is_append_only(&administrator).await?;
    moto.enforce().await?;

    the_daemons_run(&importer, &transformer, &administrator).await?;

    // In this order each is possible: what is read or deleted is there.
    let both: &[&Role] = &[&importer, &transformer];
    for (act, not_theirs) in [
        (Act::Put(FOREIGN), both),
        (Act::Put(PACKAGE), both),
        (Act::Put(NEXT), &[&transformer]),
        (Act::Get(FOREIGN), both),
        (Act::Delete(FIRST), both),
        (Act::DropPolicy, both),
        (Act::Send, &[&transformer]),
        (Act::Receive, &[&importer]),
        (Act::PurgeQueue, both),
    ] {
        for role in not_theirs {
            let outcome = role.tries(&act).await;
            let is_refused = outcome.as_ref().is_err_and(|answer| answer.contains("<Code>AccessDenied</Code>"));
            ensure!(is_refused, "{} {act:?}: {outcome:?}", role.name);
        }
        // Otherwise it was refused for being wrong.
        let done = administrator.tries(&act).await;
        ensure!(done.is_ok(), "administrator {act:?}: {done:?}");
    }
    Ok(())
}

/// The outputs. Nothing else runs on this thread meanwhile; most of the two minutes is Terraform's own waiting for the database.
fn apply(terraform: &Terraform) -> Result<Value> {
    terraform.write("terraform.tfvars", VARIABLES)?;
    terraform.init()?;
    terraform.run(&["apply", "-auto-approve", "-input=false", "-parallelism=30"])?;
    Ok(serde_json::from_str(&terraform.run(&["output", "-json"])?)?)
}

async fn roles(moto: &Moto, outputs: &Value) -> Result<[Role; 3]> {
    let arns = &outputs["role_arns"]["value"];
    let importer = environment(outputs, "importer_environment")?;
    let transformer = environment(outputs, "transformer_environment")?;
    Ok([
        Role::assume(moto, "importer", &arns["importer"], importer.clone()).await?,
        Role::assume(moto, "transformer", &arns["transformer"], transformer).await?,
        Role::assume(moto, "administrator", &outputs["administrator_arn"]["value"], importer).await?,
    ])
}

/// In the words that S3 keeps. Then the policy goes: moto would refuse every PUT, since it ignores the conditions.
async fn the_bucket_is_append_only(administrator: &Role) -> Result<()> {
    let bucket = administrator.told("ARCHIVE_BUCKET")?;
    let policy =
        administrator.s3.get_bucket_policy().bucket(bucket).send().await?.policy.context("there is a policy")?;
    let arn = format!("arn:aws:s3:::{bucket}");
    let expected = json!({
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "OnlyTls",
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:*",
                "Resource": [arn, format!("{arn}/*")],
                "Condition": { "Bool": { "aws:SecureTransport": "false" } },
            },
            {
                "Sid": "AppendOnly",
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:PutObject",
                "Resource": format!("{arn}/raw/*"),
                "Condition": { "Null": { "s3:if-none-match": "true" } },
            },
        ],
    });
    assert_eq!(serde_json::from_str::<Value>(&policy)?, expected);
    administrator.s3.delete_bucket_policy().bucket(bucket).send().await?;
    Ok(())
}

async fn the_daemons_run(importer: &Role, transformer: &Role, administrator: &Role) -> Result<()> {
    let sandbox = start(Setup { importer: false, transformer: false, ..Setup::default() }).await?;
    // The API and the database are on this machine.
    let (source, database) = (sandbox.api.url(), sandbox.database_url().to_owned());
    let importers = importer.settings(&[("SOURCE_URL", &source)]);
    let transformers = transformer.settings(&[("DATABASE_URL", &database), ("DATABASE_AUTH", "password")]);
    sandbox.importer.restart_with(&importers).await?;
    sandbox.transformer.restart_with(&transformers).await?;
    all_is_loaded(&sandbox).await?;
    // That the transformer may have found by itself. Of this it has to hear.
    retitle(&sandbox, 7, "rung for");
    all_is_loaded(&sandbox).await?;
    // A receive that is refused is followed by a look at the archive too, but then the message stays.
    let queue = administrator.told("QUEUE_URL")?;
    sandbox.wait_until("the messages are deleted", SOON, async || is_empty(&administrator.sqs, queue).await).await?;
    for output in [
        support::importer(&sandbox, &importers, &["check"]).await?,
        support::transformer(&sandbox, &transformers, &["check"]).await?,
    ] {
        ensure!(output.status.success(), "check: {}", String::from_utf8_lossy(&output.stdout));
    }
    assert_eq!((sandbox.importer.restarts(), sandbox.transformer.restarts()), (0, 0), "no daemon died");
    sandbox.stop().await
}

/// Waits until the table has the API's hundred posts, as they are now.
async fn all_is_loaded(sandbox: &Sandbox) -> Result<()> {
    let posts: Vec<_> = sandbox.api.posts().iter().filter_map(Row::of).collect();
    assert_eq!(posts.len(), 100);
    sandbox.wait_until("the table equals the API", SOON, async || Ok(sandbox.rows().await? == posts)).await
}

// ---- Who does what ----

/// A role with its keys, and what Terraform tells whoever has it.
struct Role {
    name: &'static str,
    credentials: Credentials,
    environment: BTreeMap<String, String>,
    s3: aws_sdk_s3::Client,
    sqs: aws_sdk_sqs::Client,
    endpoint: String,
}

/// Something that one may do or not.
#[derive(Debug)]
enum Act {
    Get(&'static str),
    Put(&'static str),
    Delete(&'static str),
    DropPolicy,
    Send,
    Receive,
    PurgeQueue,
}

impl Role {
    async fn assume(
        moto: &Moto,
        name: &'static str,
        arn: &Value,
        environment: BTreeMap<String, String>,
    ) -> Result<Self> {
        let region = environment.get("AWS_REGION").context("the region is told")?;
        let credentials = moto.assume(arn.as_str().context("a role has an ARN")?, region).await?;
        let config = moto.config(credentials.clone(), region).await;
        let (s3, sqs) = (shared::aws::s3(&config), shared::aws::sqs(&config));
        Ok(Self { name, credentials, environment, s3, sqs, endpoint: moto.url().to_owned() })
    }

    fn told(&self, name: &str) -> Result<&str> {
        self.environment.get(name).map(String::as_str).with_context(|| format!("{name} is not told"))
    }

    /// All that Terraform tells the daemon, the keys that its host would give it, and what is ours.
    fn settings<'a>(&'a self, ours: &[(&'static str, &'a str)]) -> Vec<(&'static str, &'a str)> {
        // The names of settings are constants elsewhere; these few live as long as the tests.
        let told = self.environment.iter().map(|(name, value)| (&*name.clone().leak(), value.as_str()));
        let keys = [
            ("AWS_ENDPOINT_URL", self.endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", self.credentials.access_key_id()),
            ("AWS_SECRET_ACCESS_KEY", self.credentials.secret_access_key()),
            ("AWS_SESSION_TOKEN", self.credentials.session_token().unwrap_or_default()),
        ];
        told.chain(keys).chain(ours.iter().copied()).collect()
    }

    /// What comes of it: nothing, or the answer that is an error.
    async fn tries(&self, act: &Act) -> Result<(), String> {
        let told = |name| self.told(name).map_err(|error| error.to_string());
        let (bucket, queue) = (told("ARCHIVE_BUCKET")?, told("QUEUE_URL")?);
        match act {
            Act::Get(key) => outcome(self.s3.get_object().bucket(bucket).key(*key).send().await),
            Act::Put(key) => outcome(self.s3.put_object().bucket(bucket).key(*key).send().await),
            Act::Delete(key) => outcome(self.s3.delete_object().bucket(bucket).key(*key).send().await),
            Act::DropPolicy => outcome(self.s3.delete_bucket_policy().bucket(bucket).send().await),
            Act::Send => {
                let message = self.sqs.send_message().queue_url(queue).message_body("{}");
                outcome(message.message_group_id("posts").message_deduplication_id("posts-999").send().await)
            }
            Act::Receive => outcome(self.sqs.receive_message().queue_url(queue).wait_time_seconds(0).send().await),
            Act::PurgeQueue => outcome(self.sqs.purge_queue().queue_url(queue).send().await),
        }
    }
}

/// moto refuses in XML, also the SQS client, which reads JSON: so this is the answer itself.
fn outcome<T, E: Debug>(result: Result<T, SdkError<E>>) -> Result<(), String> {
    result.map(|_| ()).map_err(|error| match error.raw_response().and_then(|response| response.body().bytes()) {
        Some(answer) => String::from_utf8_lossy(answer).into_owned(),
        None => format!("{error:?}"),
    })
}
