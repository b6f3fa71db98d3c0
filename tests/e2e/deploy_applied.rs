//! The whole of `deploy/terraform` is applied, to moto in AWS' place, with one stream and then with another beside it, on the same hosts.
//! The daemons of both run on what it made, told what its outputs tell and under the roles of their hosts; and what is the other host's,
//! or of a stream that is not there, is refused. One stream's daemon is not refused what is the other stream's: it has its host's role.
//!
//! Of the policies moto weighs actions and resources. What they say under a condition (appending, TLS, the prefix of a list) is looked
//! at as text only, in the bucket's policy here and in the roles by Terraform's own tests.

use std::{collections::BTreeMap, fmt::Debug};

use anyhow::{Context, Result, ensure};
use aws_credential_types::Credentials;
use aws_sdk_s3::error::SdkError;
use aws_sdk_sqs::types::QueueAttributeName;
use sandbox::{Row, Sandbox, Setup};
use serde_json::{Value, json};
use support::{
    SOON, is_empty,
    moto::{Host, Moto},
    retitle, start,
    terraform::{Terraform, environments},
    world,
};

const VARIABLES: &str = r#"
    package_key    = "packages/posts-pipeline_1.0.0_amd64.deb"
    package_sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    alarm_email    = "on-call@example.org"
"#;

/// The importer is quick. The transformer looks at the archive when it starts, and then only if the queue tells it to.
const STREAM: &str = r#"{
    source_url           = "https://jsonplaceholder.typicode.com/posts"
    importer_settings    = { POLL_INTERVAL = "200ms" }
    transformer_settings = { CATCH_UP_INTERVAL = "1h" }
}"#;

/// The first, and the one that is added.
const STREAMS: [&str; 2] = ["posts", "comments"];

/// What the hosts install; the one among the variables.
const PACKAGE: &str = "packages/posts-pipeline_1.0.0_amd64.deb";

/// A stream's first object, one that is not there yet, and one of a stream that nobody declared.
const FIRST: &str = "raw/posts/000/000/000/001.json";
const NEXT: &str = "raw/posts/000/000/000/999.json";
const FOREIGN: &str = "raw/photos/000/000/000/001.json";

/// The streams that a host runs and how.
const IMPORTERS: &str = "settings/importer.json";
const TRANSFORMERS: &str = "settings/transformer.json";

#[tokio::test]
async fn the_daemons_run_on_what_is_applied_and_may_do_nothing_else() -> Result<()> {
    let Some(mut terraform) = Terraform::find() else { return Ok(()) };
    let moto = Moto::start(&world().await).await?;
    moto.prepare(&mut terraform)?;
    terraform.init()?;
    let first = apply(&terraform, &STREAMS[..1], &[])?;
    the_bucket_is_append_only(&moto, &first).await?;
    // Without looking at all that is there, most of which is as it was a minute ago.
    let outputs = apply(&terraform, &STREAMS, &["-refresh=false"])?;
    assert_eq!(first["instance_ids"], outputs["instance_ids"], "another stream replaces no host");
    taking_a_stream_out_takes_nothing_else(&terraform)?;
    let [importer, transformer, administrator] = roles(&moto, &outputs).await?;
    let photos = administrator.create_queue("photos.fifo").await?;
    moto.enforce().await?;

    for stream in STREAMS {
        the_daemons_run(stream, &importer, &transformer, &administrator).await?;
    }
    the_hosts_read_their_settings(&moto, &importer, &transformer)?;

    // In this order each is possible: what is read or deleted is there.
    let both: &[&Role] = &[&importer, &transformer];
    let posts = importer.told("posts", "QUEUE_URL")?;
    for (act, not_theirs) in [
        (Act::Put(FOREIGN), both),
        (Act::Put(PACKAGE), both),
        (Act::Put(IMPORTERS), both),
        (Act::Put(TRANSFORMERS), both),
        (Act::Put(NEXT), &[&transformer]),
        (Act::Get(FOREIGN), both),
        (Act::Get(TRANSFORMERS), &[&importer]),
        (Act::Get(IMPORTERS), &[&transformer]),
        (Act::Delete(FIRST), both),
        (Act::DropPolicy, both),
        (Act::Send(posts), &[&transformer]),
        (Act::Receive(posts), &[&importer]),
        (Act::Send(&photos), both),
        (Act::Receive(&photos), both),
        (Act::PurgeQueue(posts), both),
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

/// The outputs. Nothing else runs on this thread meanwhile; most of two minutes is Terraform's own waiting for the database.
fn apply(terraform: &Terraform, streams: &[&str], arguments: &[&str]) -> Result<Value> {
    choose(terraform, streams)?;
    terraform.run(&[&["apply", "-auto-approve", "-input=false", "-parallelism=30"], arguments].concat())?;
    Ok(serde_json::from_str(&terraform.run(&["output", "-json"])?)?)
}

fn choose(terraform: &Terraform, streams: &[&str]) -> Result<()> {
    let streams: Vec<_> = streams.iter().map(|stream| format!("{stream} = {STREAM}\n")).collect();
    terraform.write("terraform.tfvars", &format!("{VARIABLES}\nstreams = {{\n{}}}\n", streams.concat()))
}

/// As Terraform plans it.
fn taking_a_stream_out_takes_nothing_else(terraform: &Terraform) -> Result<()> {
    choose(terraform, &STREAMS[1..])?;
    let plan = terraform.run(&["plan", "-refresh=false", "-input=false"])?;
    let mut destroyed: Vec<_> =
        plan.lines().filter_map(|line| line.trim().strip_prefix("# ")?.strip_suffix(" will be destroyed")).collect();
    destroyed.sort_unstable();
    assert_eq!(destroyed, ["aws_cloudwatch_metric_alarm.queue_age[\"posts\"]", "aws_sqs_queue.bell[\"posts\"]"]);
    ensure!(!plan.contains("must be replaced"), "{plan}");
    Ok(())
}

async fn roles(moto: &Moto, outputs: &Value) -> Result<[Role; 3]> {
    let arns = &outputs["role_arns"]["value"];
    Ok([
        Role::assume(moto, outputs, "importer", &arns["importer"]).await?,
        Role::assume(moto, outputs, "transformer", &arns["transformer"]).await?,
        Role::assume(moto, outputs, "administrator", &outputs["administrator_arn"]["value"]).await?,
    ])
}

/// In the words that S3 keeps. Then the policy goes: moto would refuse every PUT, since it ignores the conditions.
async fn the_bucket_is_append_only(moto: &Moto, outputs: &Value) -> Result<()> {
    let administrator = Role::assume(moto, outputs, "administrator", &outputs["administrator_arn"]["value"]).await?;
    let bucket = administrator.told("posts", "ARCHIVE_BUCKET")?;
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

async fn the_daemons_run(
    stream: &'static str,
    importer: &Role,
    transformer: &Role,
    administrator: &Role,
) -> Result<()> {
    // The tables are made in the schema that Terraform names after the stream.
    let settings = vec![("DATABASE_SCHEMA", stream)];
    let sandbox =
        start(Setup { stream: stream.to_owned(), settings, importer: false, transformer: false, ..Setup::default() })
            .await?;
    // The API and the database are on this machine.
    let (source, database) = (sandbox.api.url(), sandbox.database_url().to_owned());
    let importers = importer.settings(stream, &[("SOURCE_URL", &source)])?;
    let transformers = transformer.settings(stream, &[("DATABASE_URL", &database), ("DATABASE_AUTH", "password")])?;
    sandbox.importer.restart_with(&importers).await?;
    sandbox.transformer.restart_with(&transformers).await?;
    all_is_loaded(&sandbox).await?;
    // That the transformer may have found by itself. Of this it has to hear.
    retitle(&sandbox, 7, "rung for");
    all_is_loaded(&sandbox).await?;
    // A receive that is refused is followed by a look at the archive too, but then the message stays.
    let queue = administrator.told(stream, "QUEUE_URL")?;
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

/// By the program that user data brings to them, with curl, which signs.
fn the_hosts_read_their_settings(moto: &Moto, importer: &Role, transformer: &Role) -> Result<()> {
    for (role, own, other) in [(importer, IMPORTERS, TRANSFORMERS), (transformer, TRANSFORMERS, IMPORTERS)] {
        let [bucket, region] = [role.told("posts", "ARCHIVE_BUCKET")?, role.told("posts", "AWS_REGION")?];
        let host = Host::start(moto, &role.credentials, region, bucket)?;
        let settings: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&host.fetch(own)?)?;
        for stream in STREAMS {
            let line = format!("QUEUE_URL=\"{}\"\n", role.told(stream, "QUEUE_URL")?);
            ensure!(settings[stream]["env"].contains(&line), "{}: {settings:?}", role.name);
        }
        let refused = host.fetch(other).err().with_context(|| format!("{} reads {other}", role.name))?;
        ensure!(refused.to_string().contains("error: 403"), "{}: {refused}", role.name);
    }
    Ok(())
}

/// Waits until the table has the API's hundred posts, as they are now.
async fn all_is_loaded(sandbox: &Sandbox) -> Result<()> {
    let posts: Vec<_> = sandbox.api.posts().iter().filter_map(Row::of).collect();
    assert_eq!(posts.len(), 100);
    sandbox.wait_until("the table equals the API", SOON, async || Ok(sandbox.rows().await? == posts)).await
}

// ---- Who does what ----

/// A role with its keys, and what Terraform tells the daemons of whoever has it, by stream.
struct Role {
    name: &'static str,
    credentials: Credentials,
    environments: BTreeMap<String, BTreeMap<String, String>>,
    s3: aws_sdk_s3::Client,
    sqs: aws_sdk_sqs::Client,
    endpoint: String,
}

/// Something that one may do or not.
#[derive(Debug)]
enum Act<'a> {
    Get(&'static str),
    Put(&'static str),
    Delete(&'static str),
    DropPolicy,
    Send(&'a str),
    Receive(&'a str),
    PurgeQueue(&'a str),
}

impl Role {
    async fn assume(moto: &Moto, outputs: &Value, name: &'static str, arn: &Value) -> Result<Self> {
        // An administrator knows what the importers know.
        let environments = environments(outputs, if name == "transformer" { name } else { "importer" })?;
        let region = environments["posts"].get("AWS_REGION").context("the region is told")?;
        let credentials = moto.assume(arn.as_str().context("a role has an ARN")?, region).await?;
        let config = moto.config(credentials.clone(), region).await;
        let (s3, sqs) = (shared::aws::s3(&config), shared::aws::sqs(&config));
        Ok(Self { name, credentials, environments, s3, sqs, endpoint: moto.url().to_owned() })
    }

    fn told(&self, stream: &str, name: &str) -> Result<&str> {
        let environment = self.environments.get(stream).with_context(|| format!("{stream} is not there"))?;
        environment.get(name).map(String::as_str).with_context(|| format!("{name} is not told"))
    }

    async fn create_queue(&self, name: &str) -> Result<String> {
        let queue = self.sqs.create_queue().queue_name(name).attributes(QueueAttributeName::FifoQueue, "true");
        queue.send().await?.queue_url.context("a queue has a URL")
    }

    /// All that Terraform tells a stream's daemon, the keys that its host would give it, and what is ours.
    fn settings<'a>(&'a self, stream: &str, ours: &[(&'static str, &'a str)]) -> Result<Vec<(&'static str, &'a str)>> {
        let environment = self.environments.get(stream).with_context(|| format!("{stream} is not there"))?;
        // The names of settings are constants elsewhere; these few live as long as the tests.
        let told = environment.iter().map(|(name, value)| (&*name.clone().leak(), value.as_str()));
        let keys = [
            ("AWS_ENDPOINT_URL", self.endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", self.credentials.access_key_id()),
            ("AWS_SECRET_ACCESS_KEY", self.credentials.secret_access_key()),
            ("AWS_SESSION_TOKEN", self.credentials.session_token().unwrap_or_default()),
        ];
        Ok(told.chain(keys).chain(ours.iter().copied()).collect())
    }

    /// What comes of it: nothing, or the answer that is an error.
    async fn tries(&self, act: &Act<'_>) -> Result<(), String> {
        let bucket = self.told("posts", "ARCHIVE_BUCKET").map_err(|error| error.to_string())?;
        match act {
            Act::Get(key) => outcome(self.s3.get_object().bucket(bucket).key(*key).send().await),
            Act::Put(key) => outcome(self.s3.put_object().bucket(bucket).key(*key).send().await),
            Act::Delete(key) => outcome(self.s3.delete_object().bucket(bucket).key(*key).send().await),
            Act::DropPolicy => outcome(self.s3.delete_bucket_policy().bucket(bucket).send().await),
            Act::Send(queue) => {
                let message = self.sqs.send_message().queue_url(*queue).message_body("{}");
                outcome(message.message_group_id("posts").message_deduplication_id("posts-999").send().await)
            }
            Act::Receive(queue) => {
                outcome(self.sqs.receive_message().queue_url(*queue).wait_time_seconds(0).send().await)
            }
            Act::PurgeQueue(queue) => outcome(self.sqs.purge_queue().queue_url(*queue).send().await),
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
