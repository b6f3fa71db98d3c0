//! The command: the world comes up, the posts flow, a person watches. The only file that knows the order.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use shared::{archive::Archive, object::Sequence, settings::Problems};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::broadcast::{Receiver, error::RecvError},
};

use crate::{
    daemon::REFUSED,
    env_file::EnvFile,
    event::Event,
    own_api::{OwnApi, OwnApiSettings, Unusable},
    page,
    progress::Progress,
    sandbox::Sandbox,
    sandbox::Setup,
    settings::Settings,
    show::{SAMPLE, Show},
    world::World,
};

/// A hundred posts take a second; a million, well under a minute.
const LOAD_DEADLINE: Duration = Duration::from_mins(2);

/// An API elsewhere may take a page a second.
const OWN_LOAD_DEADLINE: Duration = Duration::from_mins(10);

/// How many differences are worth reading.
const SHOWN_DIFFERENCES: usize = 10;

/// How many posts there are by default.
const POSTS: u64 = 100;

/// A daemon ends with it when its settings are wrong, and would each time again.
const WRONG_SETTINGS: u8 = 2;

/// Runs the whole pipeline until Ctrl-C.
#[derive(Args, Clone, Debug)]
pub struct RunSettings {
    /// Stop after everything is loaded: exit code 0 if the rows are there and equal to the API's posts, 1 if not (after 120 s at most). With
    /// --source 0 if all of the archive is applied and nothing quarantined (after 10 min at most)
    #[arg(long)]
    pub once: bool,
    /// How many posts the API has; up to a million is sensible [default: 100]
    #[arg(long, value_name = "NUMBER")]
    pub posts: Option<u64>,
    #[command(flatten)]
    own_api: OwnApiSettings,
    /// Where to write the addresses of what was started, as NAME=value lines for `set -a; . FILE` [default: target/sandbox/env]
    #[arg(long, value_name = "PATH")]
    pub env_file: Option<PathBuf>,
}

/// Runs until it is done or told to end, and leaves nothing behind.
pub async fn run(settings: &RunSettings) -> Result<ExitCode> {
    let progress = Progress::default();
    // Before anything is installed or started: a wrong address is told at once.
    let (own_api, notes) = match own_api(settings, &progress).await? {
        Ok(own_api) => own_api.unzip(),
        Err(problems) => {
            eprintln!("{}", Problems::new("sandbox", problems));
            return Ok(ExitCode::from(WRONG_SETTINGS));
        }
    };
    let mut signals = Signals::listen()?;
    let world = tokio::select! {
        // Dropping the start kills what it has started; the guard sees to the rest.
        () = signals.next() => return Ok(ExitCode::from(130)),
        world = World::start(&progress) => world?,
    };
    let outcome = show(&world, settings, own_api, notes.unwrap_or_default(), &mut signals).await;
    let stopped = world.stop().await;
    let code = outcome?;
    stopped?;
    Ok(code)
}

/// The daemons' settings for an API that is not the posts, and what a person should know of it; or what is wrong with the settings.
async fn own_api(
    settings: &RunSettings,
    progress: &Progress,
) -> Result<Result<Option<(OwnApi, Vec<String>)>, Vec<String>>> {
    let api = match settings.own_api.resolve(settings.posts.is_some()) {
        Ok(Some(api)) => api,
        Ok(None) => return Ok(Ok(None)),
        Err(problems) => return Ok(Err(problems)),
    };
    match api.look(progress).await? {
        Ok(notes) => Ok(Ok(Some((api, notes)))),
        Err(Unusable::Settings(why)) => Ok(Err(vec![format!("--source cannot be loaded as it is\n{why}")])),
        Err(Unusable::Now(why)) => bail!("nothing was started: {why}"),
    }
}

async fn show(
    world: &Arc<World>,
    settings: &RunSettings,
    own_api: Option<OwnApi>,
    notes: Vec<String>,
    signals: &mut Signals,
) -> Result<ExitCode> {
    let posts = settings.posts.unwrap_or(POSTS);
    let stream = own_api.as_ref().map_or(Setup::default().stream, OwnApi::stream);
    let own_api = own_api.map(|api| api.settings());
    // So that a person who deletes a post sees it. What becomes of records of another API is that person's to say.
    let of_posts = if own_api.is_none() { vec![("ABSENT", "mark")] } else { Vec::new() };
    let setup = Setup { stream, posts, own_api, settings: of_posts, importer: false, transformer: false };
    let mut sandbox = Sandbox::start(world, setup).await?;
    let mut events = sandbox.events().subscribe();
    let mut show = Show::new();
    show.header(&sandbox);
    for note in &notes {
        show.warn(note);
        show.note("");
    }
    if sandbox.is_own_api()
        && sandbox.settings().get("TABLE_COLUMNS").is_none()
        && let Err(why) = propose(&mut sandbox, &show).await?
    {
        let why = format!("no table can be proposed for the records of --source\n{why}\nor set TABLE_COLUMNS yourself");
        eprintln!("{}", Problems::new("sandbox", vec![why]));
        return Ok(ExitCode::from(WRONG_SETTINGS));
    }
    let sandbox = Arc::new(sandbox);

    let page = page::serve(sandbox.clone()).await.context("cannot serve the page")?;
    let path = settings.env_file.clone().unwrap_or_else(|| world.place().env_file());
    let env_file = EnvFile::write(&path, &addresses(&sandbox, &page))?;
    if env_file.path() != path {
        show.note(&format!(
            "another sandbox runs with {}, so this one has {}",
            path.display(),
            env_file.path().display()
        ));
    }

    sandbox.importer.start();
    sandbox.transformer.start();
    let code = watch(&sandbox, settings, &mut show, &mut events, signals, &page, &env_file).await?;
    if settings.once {
        // The outcome is the last word.
        sandbox.stop().await?;
        return Ok(code);
    }
    show.note("ending");
    sandbox.stop().await?;
    show.events(&mut events);
    Ok(code)
}

/// Archives the API's answer, and makes the table that fits it. What is in the way, if something is.
async fn propose(sandbox: &mut Sandbox, show: &Show) -> Result<Result<(), String>> {
    show.note("the importer archives what your API says, and then the transformer proposes a table for it");
    show.note("");
    sandbox.importer.start();
    let is_archived = async || {
        let Ok(end) = Sequence::try_from(sandbox.end().await?) else { return Ok(false) };
        Ok(sandbox.archive().head(end).await?.is_some_and(|head| head.metadata.last_page))
    };
    sandbox.wait_until("the importer has archived what the API says", OWN_LOAD_DEADLINE, is_archived).await?;
    let said = match sandbox.propose().await? {
        Ok(said) => said,
        Err(why) => return Ok(Err(why)),
    };
    for line in said {
        show.note(&line);
    }
    show.note("");
    Ok(Ok(()))
}

/// Shows events until the end: a signal, or with `--once` that everything is loaded.
async fn watch(
    sandbox: &Sandbox,
    settings: &RunSettings,
    show: &mut Show,
    events: &mut Receiver<Event>,
    signals: &mut Signals,
    page: &str,
    env_file: &EnvFile,
) -> Result<ExitCode> {
    let begun = Instant::now();
    let settled = sandbox.settled(if sandbox.is_own_api() { OWN_LOAD_DEADLINE } else { LOAD_DEADLINE });
    tokio::pin!(settled);
    let loaded = loop {
        tokio::select! {
            // An event that waits is shown before the news that all is loaded, which it led to.
            biased;
            // Nothing is lost when one of these is dropped: the events stay in the channel, and a look at the table is only a look.
            event = events.recv() => {
                let is_refused = event.as_ref().is_ok_and(|event| event.text("how").as_deref() == Some(REFUSED));
                show_event(show, event);
                if is_refused {
                    return Ok(ExitCode::from(WRONG_SETTINGS));
                }
            }
            () = signals.next() => return Ok(ExitCode::from(130)),
            loaded = &mut settled => break loaded,
        }
    };
    // The last lines of the daemons are on their way while the table is already full.
    show.events(events);
    let mut is_whole = loaded.is_ok();
    match &loaded {
        Ok(()) => {
            let after = format!("{:.1} s after the daemons were started", begun.elapsed().as_secs_f32());
            if sandbox.is_own_api() {
                is_whole = show_rows(sandbox, show, &after).await?;
            } else {
                let rows = sandbox.rows().await?;
                show.sample(&rows);
                show.good(&format!("{} rows, equal to the API's posts field by field, {after}", rows.len()));
            }
        }
        Err(error) => {
            show.bad(&format!("{error:#}"));
            let differences = sandbox.unsettled().await.unwrap_or_default();
            show.bad(&differences[..differences.len().min(SHOWN_DIFFERENCES)].join("\n"));
        }
    }
    if settings.once {
        return Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    show.note("");
    show.hints(sandbox, page, &shown_path(env_file));
    show.good("ready");
    show.note("");
    loop {
        tokio::select! {
            // As above.
            event = events.recv() => show_event(show, event),
            () = signals.next() => return Ok(ExitCode::from(0)),
        }
    }
}

/// What became of an API that is not ours; whether all of it is among the rows.
async fn show_rows(sandbox: &Sandbox, show: &Show, after: &str) -> Result<bool> {
    let (count, position) = (sandbox.count().await?, sandbox.position().await?);
    let (key, first) = sandbox.first_rows(SAMPLE).await?;
    show.rows(&key, &first, count);
    let rows = if count == 1 { "row" } else { "rows" };
    show.good(&format!("{count} {rows}; position {position} is the end of the archive, {after}"));
    let quarantined = sandbox.quarantined(SHOWN_DIFFERENCES).await?;
    if !quarantined.is_empty() {
        show.bad("what is not among them, as `transformer quarantine list` says it:");
        show.bad(&quarantined.join("\n"));
    }
    Ok(quarantined.is_empty())
}

fn show_event(show: &mut Show, event: Result<Event, RecvError>) {
    match event {
        Ok(event) => show.event(&event),
        Err(RecvError::Lagged(count)) => show.note(&format!("… {count} events came faster than they can be shown")),
        Err(RecvError::Closed) => unreachable!("the sandbox holds a sender"),
    }
}

/// What the env file says: the daemons' settings, and where to look at them.
fn addresses(sandbox: &Sandbox, page: &str) -> Settings {
    let mut settings = sandbox.settings().clone();
    settings.set(&[
        ("IMPORTER_ADMIN_URL", &sandbox.importer.admin_url()),
        ("TRANSFORMER_ADMIN_URL", &sandbox.transformer.admin_url()),
        ("SANDBOX_URL", page),
    ]);
    settings
}

/// As a person in this folder would type it.
fn shown_path(env_file: &EnvFile) -> String {
    let path = env_file.path();
    let here = std::env::current_dir().unwrap_or_default();
    let short = path.strip_prefix(here).unwrap_or(path);
    // `.` looks for a name without a slash on PATH.
    if short.components().count() == 1 { format!("./{}", short.display()) } else { short.display().to_string() }
}

/// The signals that mean: end in order.
pub(crate) struct Signals([Signal; 3]);

impl Signals {
    pub(crate) fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen to signals");
        Ok(Self([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?]))
    }

    pub(crate) async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            // All only watch.
            _ = interrupt.recv() => (),
            _ = terminate.recv() => (),
            _ = hangup.recv() => (),
        }
    }
}
