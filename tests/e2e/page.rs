//! The page of the sandbox, as a person uses it: in a browser, with real drills. Skipped, with a line that says so, where there is no Chromium.
//!
//! Pictures of the page are left in the target folder's `tmp`; the one in the README is of a sandbox that ran for longer.

use std::{env, path::Path, process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use sandbox::{Sandbox, Setup, drills::Drill};
use serde_json::{Value, json};
use support::{SOON, metadata, retitle, select, start};
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

/// Text whose contrast with what is behind it is below 4.5 to 1, the least that WCAG 2.2 asks for (1.4.3).
const ILLEGIBLE: &str = r#"(() => {
    const numbers = colour => colour.match(/[\d.]+/g).map(Number);
    const luminance = colour => numbers(colour).slice(0, 3).map(value => value / 255)
        .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
    const behind = element => {
        const colour = getComputedStyle(element).backgroundColor;
        return numbers(colour)[3] === 0 ? behind(element.parentElement) : colour;
    };
    const contrast = element => {
        const [dark, light] = [getComputedStyle(element).color, behind(element)].map(luminance).sort((a, b) => a - b);
        return (light + 0.05) / (dark + 0.05);
    };
    const hasText = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    const isShown = element => element.checkVisibility() && !element.closest("[aria-disabled=true]");
    const texts = [...document.body.querySelectorAll("*")].filter(element => hasText(element) && isShown(element));
    return [texts.length, texts.filter(element => contrast(element) < 4.5).map(element => element.outerHTML.slice(0, 99))];
})()"#;

/// Where each heading of the page stands.
const HEADINGS: &str = "[...document.querySelectorAll('main h2')].map(it => [it.textContent.split(' ')[0], it.getBoundingClientRect().top + scrollY])";

/// The history as it is on the page, a line an object.
const HISTORY: &str = r##"[...document.querySelectorAll("#history tbody tr")].map(row => {
    const cells = [...row.cells].filter(cell => cell.dataset.label !== "took" && cell.dataset.label !== "size");
    return cells.map(cell => cell.querySelector("button")?.title ?? cell.textContent).join(" ");
})"##;

#[tokio::test]
async fn every_drill_heals_before_the_eyes_of_a_person() -> Result<()> {
    let (sandbox, page) = with_page().await?;
    let Some(mut browser) = Browser::open(&page).await? else { return Ok(()) };
    sandbox.importer.start();
    sandbox.transformer.start();
    browser.wait_for(&format!("{} === '100' && {} === '1'", text_of("rows"), text_of("position"))).await?;
    let headings = browser.evaluate(HEADINGS).await?;

    for drill in Drill::ALL {
        browser.evaluate(&format!("document.querySelector('button[name={drill}]').click()")).await?;
        let result = "document.getElementById('result')";
        let is_over = format!("{result}.dataset.drill === '{drill}' && {result}.dataset.state.match('healed|failed')");
        browser.wait_for(&is_over).await?;
        let said = browser.evaluate(&format!("{result}.textContent")).await?;
        let position = sandbox.position().await?;
        let expected = format!("100 rows, equal to the API, position {position}, the end of the archive.");
        assert!(said.as_str().is_some_and(|said| said.contains(": healed in ") && said.ends_with(&expected)), "{said}");
        let shows = format!("{} === '100' && {} === '{position}'", text_of("rows"), text_of("position"));
        browser.wait_for(&shows).await?;
    }
    browser
        .wait_for("document.getElementById('whole').textContent === 'all is applied, both daemons are ready'")
        .await?;
    assert_eq!(browser.evaluate(HEADINGS).await?, headings, "nothing has moved");

    for (name, width, height, scheme) in [
        ("light", 1280, 900, "light"),
        ("dark", 1280, 900, "dark"),
        ("tablet", 820, 1180, "light"),
        ("phone", 360, 780, "light"),
        ("phone-dark", 360, 780, "dark"),
    ] {
        browser.look_like(width, height, scheme).await?;
        let sticks_out = browser.evaluate("document.scrollingElement.scrollWidth > innerWidth").await?;
        assert_eq!(sticks_out, false, "nothing sticks out at a width of {width}");
        let is_dark = browser.evaluate("getComputedStyle(document.body).color.match(/\\d+/)[0] > 128").await?;
        assert_eq!(is_dark, scheme == "dark", "{name}: light text is on dark ground and dark text on light");
        let legible = browser.evaluate(ILLEGIBLE).await?;
        assert!(legible[0].as_u64() > Some(100), "{name}: the page is full of text");
        assert_eq!(legible[1], json!([]), "{name}: every text stands out from what is behind it");
        let picture = browser.picture().await?;
        tokio::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("page-{name}.png")), picture).await?;
    }
    assert_eq!(browser.complaints, Vec::<Value>::new(), "the console is clean");
    Ok(())
}

#[tokio::test]
async fn the_page_says_what_the_ledger_says_and_finds_an_observation() -> Result<()> {
    let (sandbox, page) = with_page().await?;
    let Some(mut browser) = Browser::open(&page).await? else { return Ok(()) };
    browser.wait_for("document.getElementById('whole').textContent === 'nothing is archived yet'").await?;
    let is_empty = "[...document.querySelectorAll('.empty')].map(it => it.checkVisibility())";
    assert_eq!(browser.evaluate(is_empty).await?, json!([true, true]), "what is empty says so");

    sandbox.importer.start();
    sandbox.transformer.start();
    sandbox.settled(SOON).await?;
    let fields = json!({"title": 7}).as_object().context("an object")?.clone();
    sandbox.api.change(|posts| posts.patch(7, fields).map(|_| ())).context("there is a post 7")?;
    sandbox.wait_until("the bad post is applied", SOON, async || Ok(sandbox.position().await? == 2)).await?;
    retitle(&sandbox, 8, "another title");
    sandbox.wait_until("the other post is applied", SOON, async || Ok(sandbox.position().await? == 3)).await?;

    browser
        .wait_for(&format!(
            "{} === '3' && document.querySelectorAll('#history tbody tr').length === 3",
            text_of("position")
        ))
        .await?;
    let ledger: Vec<String> = select(
        &sandbox,
        "SELECT array_agg(concat_ws(' ', sequence, to_char(fetched_at AT TIME ZONE 'UTC', 'HH24:MI:SS'),
            to_char(loaded_at AT TIME ZONE 'UTC', 'HH24:MI:SS'), inserted, updated,
            records - inserted - updated - quarantined, absent, quarantined, outcome, observation) ORDER BY sequence DESC)
        FROM objects",
    )
    .await?;
    assert_eq!(browser.evaluate(HISTORY).await?, json!(ledger));
    assert!(ledger[0].contains(" 0 1 98 0 1 loaded "), "{ledger:?}");

    let quarantine = "[...document.querySelectorAll('#quarantine li')].map(it => it.innerText)";
    let quarantine = browser.evaluate(quarantine).await?;
    let bad = quarantine[1].as_str().context("it was in both of the last objects")?;
    for part in ["object 2, record 6, post 7", "column `title` (text from /title): `7` is no text", "\"title\": 7"] {
        assert!(bad.contains(part), "{quarantine} has {part}");
    }
    assert_eq!(browser.evaluate(is_empty).await?, json!([false, false]));
    // Three objects were loaded within the last ten minutes: their bars stand in one step or in several.
    browser
        .wait_for("document.querySelector('#objects rect:not(.none)') && document.querySelectorAll('svg').length === 5")
        .await?;

    let object = metadata(&sandbox, 2).await?;
    let id = object.observation.to_string();
    let search = |part: &str| {
        format!("document.getElementById('part').value = '{part}'; document.querySelector('#search button').click()")
    };
    let (is_open, found) = ("document.getElementById('trace').open", "document.getElementById('found').innerText");
    browser.evaluate(&search(&id[20..])).await?;
    browser.wait_for(is_open).await?;
    let said = browser.evaluate(found).await?;
    let sha256 = object.sha256.to_string();
    let key = "raw/posts/000/000/000/002.json";
    for part in [&id, key, &sha256, "appended", "announced", "received", "applied", "loaded", "source-url"] {
        assert!(said.as_str().is_some_and(|said| said.contains(part)), "{said} has {part}");
    }
    browser.press("Escape").await?;
    browser.wait_for(&format!("!{is_open}")).await?;

    // The three ids begin alike: there is a choice, and what is chosen is found.
    browser.evaluate(&search(&id[..4])).await?;
    browser.wait_for(&format!("{is_open} && document.querySelectorAll('#found button').length === 3")).await?;
    browser.evaluate(&format!("document.querySelector('#found button[title=\"{id}\"]').click()")).await?;
    browser.wait_for(&format!("{found}.includes('{sha256}')")).await?;
    browser.press("Escape").await?;
    browser.evaluate(&search("0000-0000")).await?;
    browser.wait_for(&format!("{is_open} && {found}.startsWith('No log line')")).await?;
    browser.press("Escape").await?;

    // By the keyboard from the history and back to it.
    browser.evaluate("document.querySelector('#history tbody tr:nth-child(2) button').focus()").await?;
    browser.press("Enter").await?;
    browser.wait_for(&format!("{is_open} && {found}.includes('{sha256}')")).await?;
    browser.press("Escape").await?;
    browser.wait_for(&format!("!{is_open} && document.activeElement.title === '{id}'")).await?;
    assert_eq!(browser.complaints, Vec::<Value>::new(), "the console is clean");
    Ok(())
}

#[tokio::test]
async fn a_second_drill_is_refused_while_one_runs() -> Result<()> {
    let (sandbox, page) = with_page().await?;
    sandbox.importer.start();
    sandbox.transformer.start();
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

/// A stream whose daemons are not started yet, so that the page sees it from its beginning, and the page's address.
async fn with_page() -> Result<(Arc<Sandbox>, String)> {
    let sandbox = Arc::new(
        start(Setup { importer: false, transformer: false, settings: vec![("ABSENT", "mark")], ..Setup::default() })
            .await?,
    );
    let page = sandbox::page::serve(sandbox.clone()).await?;
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
    /// Nothing where there is no Chromium.
    async fn open(url: &str) -> Result<Option<Self>> {
        let Some(program) = PROGRAMS.iter().find(|program| is_on_path(program)) else {
            support::skipped(format!("none of {} is on the PATH (Debian: apt install chromium)", PROGRAMS.join(", ")));
            return Ok(None);
        };
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
        command.env("TZ", "UTC");
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
        Ok(Some(browser))
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

    /// Presses a key on whatever has the focus.
    async fn press(&mut self, key: &str) -> Result<()> {
        let (code, text) = if key == "Enter" { (13, "\r") } else { (27, "") };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text});
            self.call("Input.dispatchKeyEvent", event).await?;
        }
        Ok(())
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
