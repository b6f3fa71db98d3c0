//! The sandbox on a terminal: what was started, what happens, what came out, what to try. Goes to stdout.

use std::{
    env,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use tokio::sync::broadcast::Receiver;

use crate::{
    compare::Row,
    event::Event,
    sandbox::Sandbox,
    say::{Tone, say},
};

/// Rows of the sample.
pub(crate) const SAMPLE: usize = 5;

/// Characters of a title and of a body in the sample.
const TITLE_WIDTH: usize = 34;
const BODY_WIDTH: usize = 44;

/// Characters of an id and of a document there.
const ID_WIDTH: usize = 24;
const DOC_WIDTH: usize = 68;

/// Writes to stdout, in colour where that is a terminal and `NO_COLOR` is not set.
#[derive(Debug)]
pub(crate) struct Show {
    is_coloured: bool,
    /// Whether the last poll found nothing new either: then there is nothing to say about the next one.
    is_quiet: bool,
}

#[derive(Clone, Copy)]
enum Colour {
    Bold,
    Dim,
    Green,
    Yellow,
    Red,
    Blue,
    Magenta,
    Cyan,
}

impl Show {
    pub(crate) fn new() -> Self {
        let is_plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { is_coloured: io::stdout().is_terminal() && !is_plain, is_quiet: false }
    }

    /// What was started, where it is and how long it took.
    pub(crate) fn header(&self, sandbox: &Sandbox) {
        let world = sandbox.world();
        let times = world.started_in();
        let profile = world.place().profile.as_deref().unwrap_or("installed");
        let host = world.localstack().endpoint().trim_start_matches("http://");
        let queue = sandbox.queue_url().rsplit('/').next().unwrap_or_default();
        self.line("");
        self.line(&format!("{}  the pipeline on loopback, with real parts", self.paint(Colour::Bold, "sandbox")));
        self.line("");
        if sandbox.is_own_api() {
            let every = sandbox.settings().get("POLL_INTERVAL").unwrap_or_default();
            self.part("your API", &sandbox.source_url(), &format!("asked every {every}"), None);
        } else {
            self.part("posts API", &sandbox.api.url(), &format!("{} posts", sandbox.api.len()), None);
        }
        self.part(
            "archive",
            &format!("s3://{}", sandbox.bucket()),
            &format!("LocalStack, {host}"),
            Some(times.localstack),
        );
        self.part("queue", queue, &format!("LocalStack, {host}"), None);
        let postgres = world.postgres();
        self.part("database", &postgres.address(), postgres.version(), Some(times.postgres));
        self.part("daemons", "importer, transformer", profile, Some(times.programs));
        self.line("");
    }

    /// One line, if the event is worth one.
    pub(crate) fn event(&mut self, event: &Event) {
        let Some((tone, sentence)) = say(event) else { return };
        let is_repeated = tone == Tone::Quiet && self.is_quiet;
        if event.who == "importer" {
            self.is_quiet = tone == Tone::Quiet;
        }
        if is_repeated {
            return;
        }
        let sentence = match tone {
            Tone::Quiet => self.paint(Colour::Dim, &format!("{sentence}, and polls on")),
            Tone::Plain => sentence,
            Tone::Good => self.paint(Colour::Green, &sentence),
            Tone::Warning => self.paint(Colour::Yellow, &sentence),
            Tone::Bad => self.paint(Colour::Red, &sentence),
        };
        let colour = match event.who {
            "importer" => Colour::Cyan,
            "transformer" => Colour::Magenta,
            "posts API" => Colour::Blue,
            _ => Colour::Dim,
        };
        let elapsed = self.paint(Colour::Dim, &format!("{:>9}", seconds(Duration::from_millis(event.elapsed_ms))));
        self.line(&format!("{elapsed}  {}  {sentence}", self.paint(colour, &format!("{:<11}", event.who))));
    }

    /// All the events that wait.
    pub(crate) fn events(&mut self, events: &mut Receiver<Event>) {
        while let Ok(event) = events.try_recv() {
            self.event(&event);
        }
    }

    /// The first rows of the table.
    pub(crate) fn sample(&self, rows: &[Row]) {
        self.line("");
        let heading = format!("{:>6}  {:>7}  {:<TITLE_WIDTH$}  {:<BODY_WIDTH$}", "id", "user_id", "title", "body");
        self.line(&self.paint(Colour::Bold, heading.trim_end()));
        for row in rows.iter().take(SAMPLE) {
            let (title, body) = (cut(&row.title, TITLE_WIDTH), cut(&row.body, BODY_WIDTH));
            let line = format!("{:>6}  {:>7}  {title:<TITLE_WIDTH$}  {body}", row.id, row.user_id);
            self.line(&line);
        }
        if rows.len() > SAMPLE {
            self.line(&self.paint(Colour::Dim, &format!("{:>6}  and {} more", "…", rows.len() - SAMPLE)));
        }
        self.line("");
    }

    /// The first rows of the table, each by its key and its other columns. `count` is how many the table has.
    pub(crate) fn rows(&self, key: &str, rows: &[(String, String)], count: u64) {
        self.line("");
        self.line(&self.paint(Colour::Bold, &format!("  {key:<ID_WIDTH$}  the other columns")));
        for (key, others) in rows {
            self.line(format!("  {:<ID_WIDTH$}  {}", cut(key, ID_WIDTH), cut(others, DOC_WIDTH)).trim_end());
        }
        let more = count.saturating_sub(rows.len() as u64);
        if more > 0 {
            self.line(&self.paint(Colour::Dim, &format!("  {:<ID_WIDTH$}  and {more} more", "…")));
        }
        self.line("");
    }

    /// Where to look and what to try.
    pub(crate) fn hints(&self, sandbox: &Sandbox, page: &str, env_file: &str) {
        self.line(&format!("  {}  {}", self.paint(Colour::Bold, "page       "), self.paint(Colour::Cyan, page)));
        self.part(if sandbox.is_own_api() { "your API" } else { "posts API" }, &sandbox.source_url(), "", None);
        self.part("settings", &format!("set -a; . {env_file}"), "", None);
        self.line("");
        self.line("  Things to try, in another shell, after the line above:");
        if sandbox.is_own_api() {
            self.line(&format!("    psql $DATABASE_URL -c 'SELECT * FROM {} LIMIT 5'", sandbox.table()));
            let settings = "'^(SOURCE|NEXT_PAGE|TOTALS|SINCE|FULL_REFRESH|ABSENT|RECORDS|TABLE|POLL)'";
            let meaning = self.paint(Colour::Dim, "# for a deployment: see deploy/README.md");
            self.line(&format!("    grep -E {settings} {env_file}    {meaning}"));
        } else {
            self.line(
                "    curl -X PATCH $SOURCE_URL/7 -H 'Content-Type: application/json' -d '{\"title\": \"changed\"}'",
            );
            self.line("    psql $DATABASE_URL -c 'SELECT id, title, sequence FROM posts WHERE id = 7'");
        }
        for daemon in [&sandbox.importer, &sandbox.transformer] {
            if let Some(pid) = daemon.pid() {
                self.line(&format!(
                    "    kill -9 {pid:<8} {}",
                    self.paint(Colour::Dim, &format!("# the {}; it is started again", daemon.name()))
                ));
            }
        }
        self.line("  or press the buttons on the page. Ctrl-C ends everything.");
        self.line("");
    }

    /// A sentence of the sandbox itself.
    pub(crate) fn note(&self, text: &str) {
        self.line(format!("  {text}").trim_end());
    }

    /// What went as it should.
    pub(crate) fn good(&self, text: &str) {
        self.line(&format!("  {}", self.paint(Colour::Green, text)));
    }

    /// What may not be as it was meant.
    pub(crate) fn warn(&self, text: &str) {
        self.line(&format!("  {}", self.paint(Colour::Yellow, text)));
    }

    /// What did not.
    pub(crate) fn bad(&self, text: &str) {
        for line in text.lines() {
            self.line(&format!("  {}", self.paint(Colour::Red, line)));
        }
    }

    fn part(&self, name: &str, address: &str, detail: &str, took: Option<Duration>) {
        let took = took.map(|took| format!("  {}", seconds(took))).unwrap_or_default();
        let detail = self.paint(Colour::Dim, &format!("{detail}{took}"));
        let line = format!("  {}  {address:<36}  {detail}", self.paint(Colour::Bold, &format!("{name:<11}")));
        self.line(line.trim_end());
    }

    fn paint(&self, colour: Colour, text: &str) -> String {
        if !self.is_coloured || text.is_empty() {
            return text.to_owned();
        }
        let code = match colour {
            Colour::Bold => 1,
            Colour::Dim => 2,
            Colour::Red => 31,
            Colour::Green => 32,
            Colour::Yellow => 33,
            Colour::Blue => 34,
            Colour::Magenta => 35,
            Colour::Cyan => 36,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// `println!` panics when stdout is closed, as behind `| head`; the sandbox goes on until it is told to end.
    #[allow(clippy::unused_self, reason = "every line goes through the show")]
    fn line(&self, text: &str) {
        let _ = writeln!(io::stdout(), "{text}");
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.3} s", duration.as_secs_f64())
}

/// One line of at most this many characters; what is left out is an ellipsis.
fn cut(text: &str, width: usize) -> String {
    // What a terminal would take for an order is no text.
    let text = text.replace(char::is_control, " ");
    if text.chars().count() <= width {
        return text;
    }
    text.chars().take(width - 1).chain(['…']).collect()
}
