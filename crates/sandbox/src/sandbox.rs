//! One stream with everything of its own: posts API, bucket, queue, database and the two daemons.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    sync::Arc,
};

use anyhow::{Context, Result};
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use aws_sdk_sqs::types::QueueAttributeName;
use shared::{archive::S3Archive, object::StreamName, settings::public_url};
use sqlx::{Connection, PgConnection};
use tokio::sync::Mutex;

use crate::{
    command, daemon::Daemon, event::Events, posts::Posts, posts_api::PostsApi, settings::Settings, world::World,
};

/// What a stream is to be like.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its name.
    pub stream: String,
    /// How many posts the API has at first.
    pub posts: u64,
    /// What the daemons have to know of an API that is not ours, which is the source in place of the posts: SOURCE_URL at least.
    pub own_api: Option<Settings>,
    /// Settings of the daemons on top of the sandbox's own, such as `("POLL_INTERVAL", "200ms")`.
    pub settings: Vec<(&'static str, &'static str)>,
    /// Whether to start the importer.
    pub importer: bool,
    /// Whether to start the transformer.
    pub transformer: bool,
}

/// Everything as in production, with a hundred posts and both daemons.
impl Default for Setup {
    fn default() -> Self {
        Self {
            stream: "posts".to_owned(),
            posts: 100,
            own_api: None,
            settings: Vec::new(),
            importer: true,
            transformer: true,
        }
    }
}

/// A stream. When it is dropped its daemons and its API end; bucket, queue and database end with the world.
#[derive(Debug)]
pub struct Sandbox {
    /// The source of the posts; it has none and is nowhere where the source is another API.
    pub api: PostsApi,
    /// Fetches, archives and announces.
    pub importer: Daemon,
    /// Hears and loads.
    pub transformer: Daemon,
    world: Arc<World>,
    events: Events,
    stream: StreamName,
    bucket: String,
    queue_url: String,
    pub(crate) database: String,
    pub(crate) schema: String,
    is_own_api: bool,
    settings: Settings,
    s3: aws_sdk_s3::Client,
    sqs: aws_sdk_sqs::Client,
    /// Kept between looks at the table, because a new one costs more than the look; given up after any error.
    pub(crate) connection: Mutex<Option<PgConnection>>,
}

/// Which of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `importer`
    Importer,
    /// `transformer`
    Transformer,
}

impl Sandbox {
    /// Makes the stream and its tables, and starts the daemons that were asked for. Where nobody says which table another API's records become
    /// rows of, there are no tables before `propose`.
    pub async fn start(world: &Arc<World>, setup: Setup) -> Result<Self> {
        let number = world.next_stream();
        let stream: StreamName = setup.stream.parse()?;
        // The first stream, which is the only one that people see, has names without a number.
        let name =
            |dash: &str| if number == 1 { setup.stream.clone() } else { format!("{}{dash}{number}", setup.stream) };
        let folder = world.folder().join(name("-"));
        fs::create_dir_all(folder.join("spool"))?;

        let config = world.aws_config();
        let (s3, sqs) = (shared::aws::s3(&config), shared::aws::sqs(&config));
        let bucket = format!("{}-archive", name("-")).replace('_', "-");
        let database = name("_").replace('-', "_");
        let events = Events::default();
        let queue = format!("{}.fifo", name("-"));
        let (api, (), queue_url, database_url) = tokio::try_join!(
            start_api(&setup, &events),
            // Boxed, because the SDK's futures are large for a stack.
            Box::pin(create_bucket(&s3, &bucket)),
            Box::pin(create_queue(&sqs, &queue)),
            world.postgres().create_database(&database),
        )?;

        let mut settings = world.aws_settings();
        settings.set(&[
            ("STREAM", &setup.stream),
            ("ARCHIVE_BUCKET", &bucket),
            ("QUEUE_URL", &queue_url),
            ("SOURCE_URL", &api.url()),
            ("POLL_INTERVAL", "2s"),
            ("SPOOL_DIR", &folder.join("spool").to_string_lossy()),
            ("DATABASE_URL", &database_url),
            ("DATABASE_SCHEMA", "public"),
            ("CATCH_UP_INTERVAL", "5s"),
        ]);
        settings.set(&setup.own_api.iter().flat_map(Settings::iter).collect::<Vec<_>>());
        settings.set(&setup.settings);

        let daemon = |name, program: &Path| {
            let mut settings = settings.clone();
            settings.set(&[("LOG_FORMAT", "json"), ("RUST_LOG", "info,importer=debug,transformer=debug")]);
            Daemon::new(name, program, settings, &folder, events.clone(), world.clone())
        };
        let sandbox = Self {
            api,
            importer: daemon("importer", &world.programs().importer),
            transformer: daemon("transformer", &world.programs().transformer),
            world: world.clone(),
            events,
            stream,
            bucket,
            queue_url,
            database,
            schema: settings.get("DATABASE_SCHEMA").unwrap_or("public").to_owned(),
            is_own_api: setup.own_api.is_some(),
            settings,
            s3,
            sqs,
            connection: Mutex::default(),
        };
        if sandbox.settings.get("TABLE_COLUMNS").is_some() || !sandbox.is_own_api {
            sandbox.migrate().await?;
        }
        if setup.importer {
            sandbox.importer.start();
        }
        if setup.transformer {
            sandbox.transformer.start();
        }
        Ok(sandbox)
    }

    /// Drains both daemons.
    pub async fn stop(&self) -> Result<()> {
        let (importer, transformer) = tokio::join!(self.importer.terminate(), self.transformer.terminate());
        importer.and(transformer).map(|_| ())
    }

    /// Runs a command of a program to its end with the stream's settings: `run(Program::Transformer, &["audit"])`.
    pub async fn run(&self, program: Program, arguments: &[&str]) -> Result<Output> {
        let programs = self.world.programs();
        let program = match program {
            Program::Importer => &programs.importer,
            Program::Transformer => &programs.transformer,
        };
        let mut command = self.world.program(program, &self.settings);
        command.args(arguments);
        let output = tokio::process::Command::from(command).kill_on_drop(true).output().await;
        output.with_context(|| format!("cannot start {}", program.display()))
    }

    /// Has `transformer propose` choose the table for what is archived, and makes it. What it says of it; or what it says is in the way.
    pub(crate) async fn propose(&mut self) -> Result<Result<Vec<String>, String>> {
        let output = self.run(Program::Transformer, &["propose"]).await?;
        let [proposed, said] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        if !output.status.success() {
            return Ok(Err(said.trim().to_owned()));
        }
        for name in ["TABLE", "TABLE_COLUMNS"] {
            let value = proposed.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            let value = value.context("`transformer propose` names the table and its columns")?;
            // As a shell would read it.
            let value = value.replace("'\"'\"'", "\0").replace('\'', "").replace('\0', "'");
            self.settings.set(&[(name, &value)]);
            self.transformer.set(&[(name, &value)]);
        }
        self.migrate().await?;
        Ok(Ok(proposed
            .lines()
            .map(str::to_owned)
            .chain([String::new()])
            .chain(said.lines().map(str::to_owned))
            .collect()))
    }

    /// Makes the tables, or brings them up to date.
    pub async fn migrate(&self) -> Result<()> {
        let mut migrate = self.world.program(&self.world.programs().transformer, &self.settings);
        migrate.arg("migrate");
        command::finish(migrate, |_| ()).await.map(|_| ())
    }

    /// What happens from here on: log lines of the daemons, changes at the API, starts and ends.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The world that the stream is in.
    pub fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// The daemons' settings, without those that each has for itself.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// An S3 client.
    pub fn s3(&self) -> &aws_sdk_s3::Client {
        &self.s3
    }

    /// An SQS client.
    pub fn sqs(&self) -> &aws_sdk_sqs::Client {
        &self.sqs
    }

    /// The stream's name.
    pub fn stream(&self) -> &StreamName {
        &self.stream
    }

    /// Whether the source is not our posts, but an API that nobody here can change.
    pub(crate) fn is_own_api(&self) -> bool {
        self.is_own_api
    }

    /// The source's address, as it may be shown.
    pub(crate) fn source_url(&self) -> String {
        let url = self.settings.get("SOURCE_URL").unwrap_or_default();
        url.parse().map(|url| public_url(&url)).unwrap_or_default()
    }

    /// The bucket that holds the archive.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The queue.
    pub fn queue_url(&self) -> &str {
        &self.queue_url
    }

    /// The database, as a URL.
    pub fn database_url(&self) -> &str {
        self.settings.get("DATABASE_URL").unwrap_or_default()
    }

    /// The archive, as the daemons see it.
    pub fn archive(&self) -> S3Archive {
        S3Archive::new(self.s3.clone(), self.bucket.clone(), self.stream.clone())
    }

    /// A connection of the caller's own.
    pub async fn connect(&self) -> Result<PgConnection> {
        Ok(PgConnection::connect(self.database_url()).await?)
    }

    /// The folder with the daemons' logs.
    pub fn logs(&self) -> PathBuf {
        self.importer.log().with_file_name("")
    }
}

async fn start_api(setup: &Setup, events: &Events) -> Result<PostsApi> {
    if setup.own_api.is_some() {
        return Ok(PostsApi::none());
    }
    let posts = setup.posts;
    // A million posts take a second or more to write.
    let posts = tokio::task::spawn_blocking(move || Posts::lorem_ipsum(posts)).await?;
    PostsApi::start(posts, events.clone()).await.context("cannot start the posts API")
}

async fn create_bucket(s3: &aws_sdk_s3::Client, bucket: &str) -> Result<()> {
    s3.create_bucket().bucket(bucket).send().await.with_context(|| format!("cannot create the bucket {bucket}"))?;
    // As in production, where it is what brings a deleted object back.
    let enabled = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
    s3.put_bucket_versioning().bucket(bucket).versioning_configuration(enabled).send().await?;
    Ok(())
}

pub(crate) async fn create_queue(sqs: &aws_sdk_sqs::Client, name: &str) -> Result<String> {
    let request = sqs.create_queue().queue_name(name).attributes(QueueAttributeName::FifoQueue, "true");
    let created = request.send().await.with_context(|| format!("cannot create the queue {name}"))?;
    created.queue_url.with_context(|| format!("the queue {name} has no URL"))
}
