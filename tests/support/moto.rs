//! moto: a stand-in for all of AWS that Terraform can be applied to, and that enforces IAM. From PyPI, without Docker.
//!
//! Of policies it knows actions and resources. It ignores conditions, so a bucket's policy that refuses something under a condition
//! refuses it always; it does not look at the policies of queues, nor at who may assume a role.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use aws_config::{BehaviorVersion, Region, SdkConfig, sts::AssumeRoleProvider};
use aws_credential_types::{Credentials, provider::ProvideCredentials};
use sandbox::World;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Duration, Instant, sleep};

use crate::terraform::Terraform;

/// The release and what its server needs for the services that are in the configuration.
const REQUIREMENTS: &str = include_str!("moto/requirements.txt");

/// What it says when it listens, before the address.
const LISTENS: &str = " * Running on ";

/// A running moto. It ends when it is dropped, and at the latest with the world.
#[derive(Debug)]
pub struct Moto {
    process: Child,
    url: String,
    python: PathBuf,
}

impl Moto {
    /// Installs it unless it is there, starts it and waits until it listens. Everybody may do everything, until [`Moto::enforce`].
    pub async fn start(world: &Arc<World>) -> Result<Self> {
        let python = world.python("tests-venv-moto", REQUIREMENTS, "installing moto").await?;
        let path = world.folder().join(format!("moto-{}.log", uuid::Uuid::new_v4().simple()));
        let log = File::create(&path)?;
        let mut server = world.program(&python, &sandbox::Settings::new());
        server.args(["-m", "moto.server", "--host", "127.0.0.1", "--port", "0"]);
        let process = server.stdout(log.try_clone()?).stderr(log).spawn().context("cannot start moto")?;
        let mut moto = Self { process, url: String::new(), python };
        moto.url = moto.listens(&path).await?;
        Ok(moto)
    }

    async fn listens(&mut self, log: &Path) -> Result<String> {
        let deadline = Instant::now() + crate::SOON;
        loop {
            let has_ended = self.process.try_wait()?.is_some();
            let text = fs::read_to_string(log)?;
            let mut whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            if let Some(url) = whole.find_map(|line| line.strip_prefix(LISTENS)) {
                return Ok(url.to_owned());
            }
            if has_ended || Instant::now() > deadline {
                bail!("moto does not listen:\n{text}");
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Where all services are: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Makes a copy of the configuration one for moto.
    pub fn prepare(&self, terraform: &mut Terraform) -> Result<()> {
        terraform.write("moto_override.tf", include_str!("moto/provider_override.tf"))?;
        terraform.write("moto.tf", include_str!("moto/additions.tf"))?;
        terraform.set("AWS_ENDPOINT_URL", &self.url);
        Ok(())
    }

    /// The keys of a role, as a host of it gets them. Only while nothing is enforced: roles of hosts are not for people.
    pub async fn assume(&self, role_arn: &str, region: &str) -> Result<Credentials> {
        let anybody = self.config(Credentials::new("anybody", "anything", None, None, "test"), region).await;
        let role = AssumeRoleProvider::builder(role_arn).session_name("test").configure(&anybody).build().await;
        role.provide_credentials().await.with_context(|| format!("cannot assume {role_arn}"))
    }

    /// For clients in this process.
    pub async fn config(&self, credentials: Credentials, region: &str) -> SdkConfig {
        aws_config::defaults(BehaviorVersion::v2026_01_12())
            .region(Region::new(region.to_owned()))
            .credentials_provider(credentials)
            .endpoint_url(&self.url)
            .load()
            .await
    }

    /// From here on each request needs keys that moto gave out, and their role's permission.
    pub async fn enforce(&self) -> Result<()> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        // The body is how many more requests may do without.
        let request = client.post(format!("{}/moto-api/reset-auth", self.url)).header("Content-Type", "text/plain");
        request.body("0").send().await?.error_for_status()?;
        Ok(())
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a host's own program sees of EC2: the metadata with the keys of the host's role, and S3 by TLS. curl is led there by a file of
/// settings, so that the program is the one that hosts have, unchanged.
#[derive(Debug)]
pub struct Host {
    process: Child,
    python: PathBuf,
    /// Holds curl's settings.
    folder: TempDir,
    region: String,
    bucket: String,
}

impl Host {
    /// A host with the keys of its role, which reads this bucket.
    pub fn start(moto: &Moto, credentials: &Credentials, region: &str, bucket: &str) -> Result<Self> {
        let keys = json!({
            "AccessKeyId": credentials.access_key_id(),
            "SecretAccessKey": credentials.secret_access_key(),
            "Token": credentials.session_token(),
        });
        let mut server = Command::new(&moto.python);
        server.args(["-c", include_str!("moto/host.py"), &moto.url, &keys.to_string()]);
        let mut process = server.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut ports = String::new();
        BufReader::new(process.stdout.take().context("it is piped")?).read_line(&mut ports)?;
        let (metadata, s3) = ports.trim().split_once(' ').context("the host has no ports")?;

        let folder = TempDir::new()?;
        let curl = format!(
            "connect-to = \"169.254.169.254:80:127.0.0.1:{metadata}\"\n\
             connect-to = \"{bucket}.s3.{region}.amazonaws.com:443:127.0.0.1:{s3}\"\n\
             insecure\nnoproxy = \"*\"\n"
        );
        fs::write(folder.path().join(".curlrc"), curl)?;
        Ok(Self { process, python: moto.python.clone(), folder, region: region.into(), bucket: bucket.into() })
    }

    /// What the host's program reads of the bucket.
    pub fn fetch(&self, key: &str) -> Result<String> {
        let mut program = Command::new(&self.python);
        program.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/terraform/streams.py")).args(["fetch", key]);
        program.env("AWS_REGION", &self.region).env("ARCHIVE_BUCKET", &self.bucket);
        let output = program.env("CURL_HOME", self.folder.path()).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It ends with its standard input; both fail only if it has ended already.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
