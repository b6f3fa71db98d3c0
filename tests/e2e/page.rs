//! The page of the sandbox, as a person uses it: in a browser, with real drills. Skipped, with a line that says so, where there is no Chromium.
//!
//! Pictures of the page are left in the target folder's `tmp`; the one in the README is `page-light.png`.

use std::{env, path::Path, process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use sandbox::{Sandbox, Setup, drills::Drill};
use serde_json::{Value, json};
use support::{SOON, start};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// As Debian, other systems and Google call it.
const PROGRAMS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"];

/// The slowest drill waits for a poll, a restore and an idle look; the drill's own deadline is shorter and says more.
const PATIENCE: Duration = Duration::from_secs(150);

#[tokio::test]
async fn every_drill_heals_before_the_eyes_of_a_person() -> Result<()> {
    let Some(program) = PROGRAMS.iter().find(|program| is_on_path(program)) else {
        support::skipped(format!("none of {} is on the PATH (Debian: apt install chromium)", PROGRAMS.join(", ")));
        return Ok(());
    };
    let sandbox = with_page().await?;
    let mut browser = Browser::open(program, &sandbox.1).await?;
    browser.wait_for(&format!("{} === '100' && {} === '1'", text_of("rows"), text_of("position"))).await?;

    for drill in Drill::ALL {
        browser.evaluate(&format!("document.querySelector('button[name={drill}]').click()")).await?;
        let result = "document.getElementById('result')";
        let is_over = format!("{result}.dataset.drill === '{drill}' && {result}.dataset.state.match('healed|failed')");
        browser.wait_for(&is_over).await?;
        let said = browser.evaluate(&format!("{result}.textContent")).await?;
        let position = sandbox.0.position().await?;
        let expected = format!("100 rows, equal to the API, position {position}, the end of the archive.");
        assert!(said.as_str().is_some_and(|said| said.contains(": healed in ") && said.ends_with(&expected)), "{said}");
        let shows = format!("{} === '100' && {} === '{position}'", text_of("rows"), text_of("position"));
        browser.wait_for(&shows).await?;
    }
    browser
        .wait_for("document.getElementById('whole').textContent === 'all is applied, both daemons are ready'")
        .await?;

    for (name, width, height, scheme) in
        [("light", 1280, 900, "light"), ("dark", 1280, 900, "dark"), ("phone", 390, 844, "light")]
    {
        browser.look_like(width, height, scheme).await?;
        let overflow =
            browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth").await?;
        assert_eq!(overflow, 0, "nothing sticks out at a width of {width}");
        let picture = browser.picture().await?;
        tokio::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("page-{name}.png")), picture).await?;
    }
    assert_eq!(browser.complaints, Vec::<Value>::new(), "the console is clean");
    Ok(())
}

#[tokio::test]
async fn a_second_drill_is_refused_while_one_runs() -> Result<()> {
    let (sandbox, page) = with_page().await?;
    sandbox.settled(SOON).await?;
    let post = async |name: &str| {
        let response = reqwest::Client::new().post(format!("{page}/drills/{name}")).send().await?;
        anyhow::Ok((response.status().as_u16(), response.text().await?))
    };
    let (first, second) = tokio::join!(post("kill-importer"), post("kill-transformer"));
    let mut answers = [first?, second?];
    answers.sort();
    assert_eq!((answers[0].0, answers[1].0), (200, 409), "{answers:?}");
    assert_eq!(answers[1].1, "another drill is running; one at a time\n");
    let (status, why) = post("kill-the-moon").await?;
    assert_eq!(status, 404);
    assert!(why.contains("`kill-the-moon` is no drill; there are change-a-post, "), "{why}");
    Ok(())
}

/// A stream whose page has seen it from its beginning, and the page's address.
async fn with_page() -> Result<(Arc<Sandbox>, String)> {
    let sandbox = Arc::new(start(Setup { importer: false, transformer: false, ..Setup::default() }).await?);
    let page = sandbox::page::serve(sandbox.clone()).await?;
    sandbox.importer.start();
    sandbox.transformer.start();
    Ok((sandbox, page))
}

fn is_on_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

/// What stands in one of the table station's places.
fn text_of(place: &str) -> String {
    format!("document.querySelector('#table [data-is={place}]').textContent")
}

/// One tab of a headless Chromium, driven by the `DevTools` protocol over pipes: JSON, each message ended by a zero byte. That needs neither a
/// driver program nor a port nor a crate, and Chromium ends when its pipe is closed, so it cannot outlive the test.
struct Browser {
    _process: Child,
    profile: TempDir,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    session: Option<String>,
    last_id: u64,
    /// Exceptions and errors on the console.
    complaints: Vec<Value>,
}

impl Browser {
    async fn open(program: &str, url: &str) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        // Chromium reads from descriptor 3 and writes to 4.
        let mut command = Command::new("sh");
        command.args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null"#, program]);
        command.args(["--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-quic"]);
        command.args([
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).env("HOME", profile.path());
        let stderr = std::fs::File::create(profile.path().join("stderr"))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).kill_on_drop(true);
        let mut process = command.spawn()?;
        let mut browser = Self {
            commands: process.stdin.take().context("stdin is piped")?,
            answers: BufReader::new(process.stdout.take().context("stdout is piped")?),
            _process: process,
            profile,
            session: None,
            last_id: 0,
            complaints: Vec::new(),
        };
        let tab = browser.call("Target.createTarget", json!({"url": "about:blank"})).await?;
        let attach = json!({"targetId": tab["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", attach).await?;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        browser.call("Runtime.enable", json!({})).await?;
        browser.call("Log.enable", json!({})).await?;
        browser.look_like(1280, 900, "light").await?;
        let navigated = browser.call("Page.navigate", json!({"url": url})).await?;
        ensure!(navigated.get("errorText").is_none(), "{url} cannot be opened: {navigated}");
        Ok(browser)
    }

    /// The value of an expression in the page; a promise is waited for.
    async fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let parameters = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut answer = self.call("Runtime.evaluate", parameters).await?;
        ensure!(answer.get("exceptionDetails").is_none(), "{expression}: {}", answer["exceptionDetails"]);
        Ok(answer["result"]["value"].take())
    }

    /// Waits in the page until the condition holds.
    async fn wait_for(&mut self, condition: &str) -> Result<()> {
        let promise = format!(
            "new Promise(done => {{
                const look = () => document.readyState === 'complete' && ({condition}) ? done() : setTimeout(look, 20);
                look();
            }})"
        );
        let waited = self.evaluate(&promise).await.map(|_| ());
        waited.with_context(|| format!("waited until {condition}"))
    }

    async fn look_like(&mut self, width: u32, height: u32, scheme: &str) -> Result<()> {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", size).await?;
        self.call("Emulation.setScrollbarsHidden", json!({"hidden": true})).await?;
        // Without motion a picture is not of something half faded.
        let features = [("prefers-color-scheme", scheme), ("prefers-reduced-motion", "reduce")];
        let features = features.map(|(name, value)| json!({"name": name, "value": value}));
        self.call("Emulation.setEmulatedMedia", json!({"features": features})).await?;
        Ok(())
    }

    /// The whole page as a PNG, when nothing lights up any more.
    async fn picture(&mut self) -> Result<Vec<u8>> {
        self.wait_for("!document.querySelector('.lit, .hurt')").await?;
        let parameters = json!({"format": "png", "captureBeyondViewport": true});
        let answer = self.call("Page.captureScreenshot", parameters).await?;
        Ok(BASE64_STANDARD.decode(answer["data"].as_str().unwrap_or_default())?)
    }

    async fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        let exchanged = timeout(PATIENCE, self.exchange(method, parameters)).await;
        exchanged.with_context(|| format!("{method} had no answer in {} s", PATIENCE.as_secs()))?
    }

    async fn exchange(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.last_id += 1;
        let mut message = json!({"id": self.last_id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).await?;
        loop {
            let mut answer = Vec::new();
            self.answers.read_until(0, &mut answer).await?;
            if answer.pop() != Some(0) {
                let stderr = tokio::fs::read_to_string(self.profile.path().join("stderr")).await?;
                bail!("Chromium has ended:\n{stderr}");
            }
            let mut answer: Value = serde_json::from_slice(&answer)?;
            if answer["id"] == self.last_id {
                ensure!(answer.get("error").is_none(), "{method}: {}", answer["error"]);
                return Ok(answer["result"].take());
            }
            let is_error = answer["params"]["entry"]["level"] == "error" || answer["params"]["type"] == "error";
            if answer["method"] == "Runtime.exceptionThrown" || is_error {
                self.complaints.push(answer["params"].take());
            }
        }
    }
}
