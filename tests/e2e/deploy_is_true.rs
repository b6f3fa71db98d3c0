//! `docker-compose.yml` and `deploy/` say only what is so: every setting, flag, command and path in them is one that the programs have.
//! The programs are asked themselves: by their help, and by the message in which they list wrong settings. What compose makes of
//! `docker-compose.yml` it says itself; where there is no `docker compose`, its part is skipped, and the test says so. That the services
//! come up and work, `tests/compose/run` shows on an engine.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use sandbox::Place;
use serde_json::{Value, json};
use support::programs::{help_of, path_of, run, takes, variables};

/// The SDK's own settings that something may give to a daemon; the help names them in prose.
const AWS_SETTINGS: [&str; 4] = ["AWS_REGION", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];

/// Others that the SDK and the HTTP clients read.
const NETWORK_SETTINGS: [&str; 8] = [
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "SSL_CERT_FILE",
];

/// What the images are told of the revision that they are built from.
const REVISION: &str = "0123456789ab";

/// The instance that the examples in `deploy/systemd` are for.
const STREAM: &str = "posts";

// ---- What a daemon is told ----

/// A program as something starts it.
struct Start {
    program: String,
    arguments: Vec<String>,
    settings: BTreeMap<String, String>,
    /// Who does so, for the message of a failure.
    by: String,
}

/// Everything that starts a daemon or migrates.
fn starts() -> Result<Vec<Start>> {
    let mut starts = Vec::new();
    if let Some(compose) = compose()? {
        for service in ["migrate", "importer", "transformer"] {
            starts.push(compose.start(service)?);
        }
    }
    for daemon in ["importer", "transformer"] {
        starts.push(Unit::of(daemon)?.start()?);
    }
    Ok(starts)
}

#[test]
fn every_setting_is_one_of_the_command() -> Result<()> {
    let comparison = compose()?.map(|compose| compose.start("e2e")).transpose()?;
    for Start { program, arguments, settings, by } in starts()?.into_iter().chain(comparison) {
        let help = help_of(&program, &arguments)?;
        let known = variables(&help);
        for name in settings.keys() {
            // A command that names ARCHIVE_BUCKET reaches S3, and no other is given what leads there.
            let is_for_sdk = AWS_SETTINGS.contains(&name.as_str()) && known.contains("ARCHIVE_BUCKET");
            ensure!(
                known.contains(name) || is_for_sdk,
                "{by} sets {name}, which {program} {arguments:?} does not know"
            );
        }
    }
    Ok(())
}

#[test]
fn what_is_commented_out_in_an_example_is_a_setting_too() -> Result<()> {
    for daemon in ["importer", "transformer"] {
        let file = format!("deploy/systemd/{daemon}-{STREAM}.env");
        let known = variables(&help_of(daemon, &[])?);
        let text = read(&file)?;
        let examples: Vec<_> = text.lines().filter_map(|line| line.strip_prefix('#')?.split_once('=')).collect();
        let examples: Vec<_> = examples.iter().map(|(name, _)| *name).filter(|name| is_variable(name)).collect();
        ensure!(!examples.is_empty(), "{file} shows some of the settings that have a default");
        for name in examples {
            ensure!(known.contains(name), "{file} shows {name}, which {daemon} does not know");
        }
    }
    Ok(())
}

#[test]
fn nothing_is_missing_or_wrong_in_the_settings() -> Result<()> {
    for Start { program, arguments, settings, by } in starts()? {
        takes(&program, &arguments, &settings).context(by)?;
    }
    Ok(())
}

#[test]
fn every_command_and_flag_is_one_of_the_program() -> Result<()> {
    let others = match compose()? {
        Some(compose) => vec![compose.start("posts-api")?, compose.start("e2e")?],
        None => Vec::new(),
    };
    let started = starts()?.into_iter().chain(others);
    let mut lines: Vec<_> = started.map(|start| (start.by, start.program, start.arguments)).collect();
    let without_readme = lines.len();
    // The README's lines that a shell runs with a daemon's settings end with the quote around the script.
    let readme = read("deploy/README.md")?;
    for line in readme.split("exec ").skip(1).filter_map(|rest| rest.split_once('\'')).map(|(line, _)| words(line)) {
        if let [program, arguments @ ..] = &line[..]
            && ["importer", "transformer"].contains(&program.as_str())
        {
            lines.push(("deploy/README.md".into(), program.clone(), arguments.to_vec()));
        }
    }
    ensure!(lines.len() == without_readme + 3, "the README migrates and checks both daemons");

    for (by, program, arguments) in lines {
        let flags = flags(&help_of(&program, &arguments)?);
        let mut is_value = false;
        let is_command = |word: &String| !word.starts_with('-');
        for word in arguments.iter().skip(arguments.first().is_some_and(is_command).into()) {
            let is_flag = word.starts_with('-');
            ensure!(is_flag || is_value, "{by}: {program} does not expect `{word}`");
            ensure!(!is_flag || flags.contains(word), "{by}: {program} has no flag {word}");
            is_value = is_flag;
        }
    }
    Ok(())
}

// ---- docker-compose.yml ----

#[test]
fn no_service_is_open_to_the_network() -> Result<()> {
    let Some(compose) = compose()? else { return Ok(()) };
    let mut published = 0;
    for (service, definition) in compose.services()? {
        for port in definition["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{service}");
            published += 1;
        }
    }
    assert_eq!(published, 5);
    Ok(())
}

#[test]
fn each_of_our_services_is_shut_in_and_has_the_image_of_its_program() -> Result<()> {
    let Some(compose) = compose()? else { return Ok(()) };
    let dockerfile = Dockerfile::read()?;
    for service in ["posts-api", "migrate", "importer", "transformer", "e2e"] {
        let definition = compose.service(service)?;
        assert_eq!(definition["read_only"], true, "{service}");
        assert_eq!(definition["cap_drop"], json!(["ALL"]), "{service}");
        assert_eq!(definition["security_opt"], json!(["no-new-privileges:true"]), "{service}");
        let build = &definition["build"];
        assert_eq!(build["dockerfile"], "deploy/docker/Dockerfile", "{service}");
        assert_eq!(build["args"]["GIT_REVISION"], REVISION, "{service}: compose passes on its own environment's");
        let program = build["target"].as_str().with_context(|| format!("{service} has no target"))?;
        dockerfile.stage(program)?;
        assert_eq!(definition["image"], format!("posts-pipeline/{program}"), "{service}");
    }
    Ok(())
}

#[test]
fn the_health_check_knows_a_200_from_anything_else() -> Result<()> {
    let script = root().join("deploy/docker/is-healthy");
    for (answer, is_healthy) in
        [("HTTP/1.0 200 OK\r\n\r\n", true), ("HTTP/1.1 503 Service Unavailable\r\n\r\n", false), ("", false)]
    {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port().to_string();
        let server = thread::spawn(move || -> Result<String> {
            let (mut connection, _) = listener.accept()?;
            let mut request = String::new();
            BufReader::new(&connection).read_line(&mut request)?;
            connection.write_all(answer.as_bytes())?;
            Ok(request)
        });
        let status = Command::new(&script).args([&port, "/readyz"]).status()?;
        assert_eq!(status.success(), is_healthy, "{answer:?}");
        assert_eq!(server.join().expect("the server does not panic")?, "GET /readyz HTTP/1.0\r\n");
    }
    Ok(())
}

// ---- The images ----

#[test]
fn each_image_holds_the_program_that_it_is_named_after() -> Result<()> {
    let dockerfile = Dockerfile::read()?;
    let build = dockerfile.stage("build")?.join(" ");
    for program in ["importer", "transformer", "sandbox"] {
        let stage = dockerfile.stage(program)?;
        for line in [
            format!("COPY --from=build /programs/{program} /usr/local/bin/{program}"),
            format!("ENTRYPOINT [\"{program}\"]"),
        ] {
            ensure!(stage.contains(&line), "{program}: {line}");
        }
        ensure!(build.contains(&format!("--bin {program} ")), "{program} is not built");
        ensure!(build.contains(&format!("target/release/{program}")), "{program} is not kept");
        help_of(program, &[]).with_context(|| format!("{program} is no program of the workspace"))?;
    }
    let base = dockerfile.stage("base")?;
    ensure!(base.contains(&"COPY --chmod=755 deploy/docker/is-healthy /usr/local/bin/is-healthy".to_owned()));
    let user = base.iter().find_map(|line| line.strip_prefix("USER ")).context("no USER: it would be root")?;
    ensure!(user.split(':').all(|id| id.parse::<u32>().is_ok_and(|id| id > 0)), "{user} may be root");
    Ok(())
}

#[test]
fn what_an_image_copies_gets_into_the_builder() -> Result<()> {
    let ignore = read(".dockerignore")?;
    let allowed: BTreeSet<String> =
        ignore.lines().filter_map(|line| line.strip_prefix('!')).map(str::to_owned).collect();
    ensure!(ignore.lines().any(|line| line == "*"), "everything else stays out");
    assert_eq!(Dockerfile::read()?.copied(), allowed);
    Ok(())
}

#[test]
fn what_an_image_copies_is_a_workspace_with_all_that_its_programs_are_made_of() -> Result<()> {
    let copied = Dockerfile::read()?.copied();
    let folder = tempfile::tempdir()?;
    for path in &copied {
        copy(&root().join(path), &folder.path().join(path))?;
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--offline", "--locked", "--no-deps", "--format-version", "1", "--manifest-path"]);
    let output = cargo.arg(folder.path().join("Cargo.toml")).output()?;
    ensure!(output.status.success(), "cargo cannot read it: {}", String::from_utf8_lossy(&output.stderr));

    // What the compiler read, as it wrote it down beside each program.
    let (root, target) = (fs::canonicalize(root())?, fs::canonicalize(Place::find()?.target)?);
    for program in ["importer", "transformer", "sandbox"] {
        let list = fs::read_to_string(path_of(program)?.with_extension("d"))?;
        let (_, sources) = list.split_once(": ").context("PROGRAM: FILE FILE …")?;
        let sources = sources.trim().split(' ').map(Path::new).filter(|source| !source.starts_with(&target));
        let sources: Vec<_> = sources.filter_map(|source| source.strip_prefix(&root).ok()).collect();
        ensure!(sources.len() > 20, "of this folder {program} is made of {sources:?}");
        for path in sources {
            ensure!(
                copied.iter().any(|copied| path.starts_with(copied)),
                "{program}: {} is not copied",
                path.display()
            );
        }
    }
    Ok(())
}

#[test]
fn an_image_is_built_by_a_compiler_that_is_new_enough_and_says_its_revision() -> Result<()> {
    let dockerfile = Dockerfile::read()?;
    let from = dockerfile.stage("build")?[0].clone();
    let image = words(&from)[1].clone();
    let (version, distribution) =
        image.strip_prefix("rust:").and_then(|tag| tag.split_once('-')).context("rust:V-D")?;
    let manifest = read("Cargo.toml")?;
    let least = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).context("rust-version")?;
    // Only 1.95, so that a new patch release comes by itself.
    let number = |text: &str| -> Vec<u32> { text.trim_matches('"').split('.').take(2).flat_map(str::parse).collect() };
    ensure!(number(version) >= number(least), "{image} is older than {least}");
    // The programs are linked to the C library of the one, and run on the other's.
    let base = words(&dockerfile.stage("base")?[0])[1].clone();
    let codename = base.strip_prefix("debian:").and_then(|tag| tag.strip_suffix("-slim")).context("debian:D-slim")?;
    ensure!(distribution == codename || distribution == format!("slim-{codename}"), "{image} is not of {base}");
    // The package and the tarball are to run where the images do.
    let released = format!("    container: rust:{version}-{codename}\n");
    ensure!(read(".github/workflows/release.yml")?.contains(&released), "a release is not built as {image} does");
    let tested = format!("      image: rust:{version}-{codename}\n");
    ensure!(read(".github/workflows/ci.yml")?.contains(&tested), "what is tested is not built as {image} does");

    ensure!(dockerfile.stage("build")?.contains(&"ARG GIT_REVISION".to_owned()));
    ensure!(read("crates/shared/build.rs")?.contains("\"GIT_REVISION\""), "nobody reads the revision");
    Ok(())
}

// ---- The units ----

#[test]
fn a_unit_starts_a_program_of_the_workspace_where_the_package_puts_it() -> Result<()> {
    let readme = read("deploy/README.md")?;
    for daemon in ["importer", "transformer"] {
        let program = Unit::of(daemon)?.start()?.program;
        assert_eq!(program, daemon);
        let path = words(&Unit::of(daemon)?.one("ExecStart")?)[0].clone();
        assert_eq!(path, format!("/usr/bin/{daemon}"));
        let asset = format!("[\"target/release/{daemon}\", \"usr/bin/\", \"755\"]");
        ensure!(read("crates/importer/Cargo.toml")?.contains(&asset), "the package does not bring {path}");
        for told in [
            "cargo build --release --locked --bin importer --bin transformer\n".to_owned(),
            "the two programs in `/usr/bin`".to_owned(),
            format!("enable --now importer@{STREAM} transformer@{STREAM}\n"),
            Unit::of(daemon)?.one("EnvironmentFile")?,
        ] {
            ensure!(readme.contains(&told), "the README does not say {told}");
        }
    }
    let (_, credential) = Unit::of("transformer")?.credential()?;
    ensure!(readme.contains(&credential), "the README does not say where {credential} is");
    Ok(())
}

#[test]
fn a_units_folders_and_credentials_are_those_of_its_settings() -> Result<()> {
    let importer = Unit::of("importer")?;
    let folder = format!("/var/cache/{}", importer.one("CacheDirectory")?);
    assert_eq!(importer.start()?.settings["SPOOL_DIR"], folder);
    let transformer = Unit::of("transformer")?;
    let (name, _) = transformer.credential()?;
    assert_eq!(transformer.start()?.settings["DATABASE_URL_FILE"], format!("/credentials/{name}"));
    Ok(())
}

#[test]
fn whoever_ends_a_daemon_waits_longer_than_it_drains() -> Result<()> {
    let compose = compose()?;
    for daemon in ["importer", "transformer"] {
        let help = words(&help_of(daemon, &[])?).join(" ");
        let (_, drains) = help.split_once("within ").context("the help says how long it drains")?;
        ensure!(words(drains)[1].starts_with("second"), "{drains}");
        let drains: u64 = words(drains)[0].parse()?;
        let unit = Unit::of(daemon)?;
        let stops: u64 = unit.one("TimeoutStopSec")?.strip_suffix('s').context("seconds")?.parse()?;
        ensure!(stops > drains, "{daemon}: systemd kills after {stops} s, and it drains for {drains} s");
        ensure!(help.contains("SIGTERM") && unit.one("KillSignal")? == "SIGTERM");
        // Docker's own patience, unless the file says another.
        ensure!(10 > drains, "Docker kills {daemon} before it has drained");
        if let Some(compose) = &compose {
            ensure!(compose.service(daemon)?["stop_grace_period"].is_null(), "{daemon}");
        }
        ensure!(help.contains("2 wrong settings") && unit.one("RestartPreventExitStatus")? == "2");
    }
    Ok(())
}

#[test]
fn both_units_are_shut_in_alike() -> Result<()> {
    let own = ["EnvironmentFile", "Environment", "ExecStart", "CacheDirectory", "CacheDirectoryMode", "LoadCredential"];
    let common = |daemon| -> Result<Vec<(String, String)>> {
        let lines = Unit::of(daemon)?.lines;
        Ok(lines.into_iter().filter(|(key, _)| key != "Description" && !own.contains(&key.as_str())).collect())
    };
    assert_eq!(common("importer")?, common("transformer")?);
    Ok(())
}

// ---- The README ----

#[test]
fn the_readme_knows_every_file_and_no_other() -> Result<()> {
    let readme = read("deploy/README.md")?;
    for folder in ["debian", "docker", "systemd"] {
        for entry in fs::read_dir(root().join("deploy").join(folder))? {
            let path = format!("{folder}/{}", entry?.file_name().to_string_lossy());
            ensure!(readme.contains(&format!("`{path}`")), "the README does not know {path}");
        }
    }
    let (table, _) = readme.split_once("\n## ").context("the table of files comes first")?;
    for path in quoted(table).filter(|path| path.contains('/')) {
        ensure!(root().join("deploy").join(path).is_file(), "there is no {path}");
    }
    for path in words(&readme).iter().filter(|word| word.starts_with("deploy/")) {
        ensure!(root().join(path).is_file(), "there is no {path}");
    }
    Ok(())
}

#[test]
fn the_readme_names_settings_that_are_there_and_all_that_are_required() -> Result<()> {
    let readme = read("deploy/README.md")?;
    let mut known: BTreeSet<String> = AWS_SETTINGS.map(str::to_owned).into();
    for daemon in ["importer", "transformer"] {
        known.extend(variables(&help_of(daemon, &[])?));
    }
    // Privileges look the same.
    known.extend(["SELECT", "INSERT", "UPDATE"].map(str::to_owned));
    known.extend(NETWORK_SETTINGS.map(str::to_owned));
    let named: BTreeSet<&str> = quoted(&readme).filter(|word| is_variable(word)).collect();
    for name in &named {
        ensure!(known.contains(*name), "the README names {name}, which is no setting");
    }
    for daemon in ["importer", "transformer"] {
        let told = run(daemon, [], &BTreeMap::new())?.stderr;
        let told = String::from_utf8_lossy(&told).into_owned();
        let required: Vec<&str> = told.lines().filter_map(|line| line.trim().strip_suffix(") is missing")).collect();
        ensure!(!required.is_empty(), "{daemon} needs no settings:\n{told}");
        for name in required.iter().filter_map(|line| line.split_once(' ')).map(|(name, _)| name) {
            let is_named = named.contains(name) || named.contains(format!("{name}_FILE").as_str());
            ensure!(is_named, "the README does not say that {daemon} needs {name}");
        }
    }
    Ok(())
}

/// The flags in a help.
fn flags(help: &str) -> BTreeSet<String> {
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    lines.flat_map(words).filter(|word| word.starts_with("--")).collect()
}

// ---- Reading the files ----

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| format!("cannot read {path}"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        fs::create_dir_all(to.parent().context("a file lies in a folder")?)?;
        return fs::copy(from, to).map(|_| ()).with_context(|| format!("cannot copy {}", from.display()));
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// What stands in backticks.
fn quoted(markdown: &str) -> impl Iterator<Item = &str> {
    markdown.split('`').skip(1).step_by(2)
}

fn is_variable(word: &str) -> bool {
    word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

/// What compose makes of `docker-compose.yml`.
struct Compose(Value);

/// `None` where there is no compose.
fn compose() -> Result<Option<Compose>> {
    let docker = |arguments: &[&str]| {
        Command::new("docker").arg("compose").args(arguments).current_dir(root()).env("GIT_REVISION", REVISION).output()
    };
    if !docker(&["version"]).is_ok_and(|output| output.status.success()) {
        support::skipped("there is no `docker compose` on this machine to read docker-compose.yml with");
        return Ok(None);
    }
    let output = docker(&["--file", "docker-compose.yml", "--profile", "e2e", "config", "--format", "json"])?;
    ensure!(output.status.success(), "docker-compose.yml: {}", String::from_utf8_lossy(&output.stderr));
    Ok(Some(Compose(serde_json::from_slice(&output.stdout)?)))
}

impl Compose {
    fn services(&self) -> Result<impl Iterator<Item = (&String, &Value)>> {
        Ok(self.0["services"].as_object().context("services")?.iter())
    }

    fn service(&self, name: &str) -> Result<&Value> {
        self.0["services"].get(name).with_context(|| format!("there is no service {name}"))
    }

    fn start(&self, service: &str) -> Result<Start> {
        let definition = self.service(service)?;
        let environment = definition["environment"].as_object().into_iter().flatten();
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a string");
        Ok(Start {
            // The image of a target starts the program of that name.
            program: text(&definition["build"]["target"])?,
            arguments: definition["command"].as_array().into_iter().flatten().map(text).collect::<Result<_>>()?,
            settings: environment.map(|(name, value)| Ok((name.clone(), text(value)?))).collect::<Result<_>>()?,
            by: format!("the service {service}"),
        })
    }
}

/// The Dockerfile's instructions, each in one line.
struct Dockerfile {
    lines: Vec<String>,
}

impl Dockerfile {
    fn read() -> Result<Self> {
        let text = read("deploy/docker/Dockerfile")?.replace("\\\n", " ");
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Ok(Self { lines: lines.map(|line| words(line).join(" ")).collect() })
    }

    /// From its FROM to the next.
    fn stage(&self, name: &str) -> Result<Vec<String>> {
        let is_named = |line: &&String| line.starts_with("FROM ") && line.ends_with(&format!(" AS {name}"));
        let begin = self.lines.iter().position(|line| is_named(&line)).with_context(|| format!("no stage {name}"))?;
        let rest = self.lines[begin + 1..].iter().take_while(|line| !line.starts_with("FROM "));
        Ok(self.lines[begin..=begin].iter().chain(rest).cloned().collect())
    }

    /// The paths of the repository that are copied into the builder.
    fn copied(&self) -> BTreeSet<String> {
        let copies = self.lines.iter().filter(|line| line.starts_with("COPY ") && !line.contains("--from="));
        let sources = copies.flat_map(|line| {
            let words: Vec<_> = line.split(' ').skip(1).filter(|word| !word.starts_with("--")).collect();
            words[..words.len() - 1].iter().map(|&source| source.to_owned()).collect::<Vec<_>>()
        });
        sources.collect()
    }
}

/// A unit of the instance `STREAM`, its specifiers resolved.
struct Unit {
    daemon: &'static str,
    lines: Vec<(String, String)>,
}

impl Unit {
    fn of(daemon: &'static str) -> Result<Self> {
        let text = read(&format!("deploy/systemd/{daemon}@.service"))?;
        let resolved = |value: &str| {
            let specifiers = [("%p", daemon), ("%i", STREAM), ("%C", "/var/cache"), ("%d", "/credentials")];
            specifiers.iter().fold(value.to_owned(), |value, (specifier, meaning)| value.replace(specifier, meaning))
        };
        let lines = text.lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty());
        let pairs = lines.map(|line| line.split_once('=').with_context(|| format!("{line} is no setting of systemd")));
        let lines =
            pairs.map(|pair| pair.map(|(key, value)| (key.to_owned(), resolved(value)))).collect::<Result<_>>()?;
        Ok(Self { daemon, lines })
    }

    fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.lines.iter().filter(move |(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    fn one(&self, key: &str) -> Result<String> {
        let found: Vec<_> = self.all(key).collect();
        let [value] = found[..] else { bail!("{}: {key} is there {} times", self.daemon, found.len()) };
        ensure!(!value.contains('%'), "{}: {key}={value} has a specifier that is not known here", self.daemon);
        Ok(value.to_owned())
    }

    /// The name of the credential and the file that it comes from.
    fn credential(&self) -> Result<(String, String)> {
        let credential = self.one("LoadCredential")?;
        let (name, file) = credential.split_once(':').context("name:file")?;
        Ok((name.to_owned(), file.to_owned()))
    }

    fn start(&self) -> Result<Start> {
        let mut command = words(&self.one("ExecStart")?).into_iter();
        let program = PathBuf::from(command.next().context("a program")?);
        let mut settings: BTreeMap<String, String> = BTreeMap::new();
        // The file comes last, because systemd lets it win.
        let file = self.one("EnvironmentFile")?;
        let example = Path::new(&file).file_name().context("a file")?.to_string_lossy().into_owned();
        let example = read(&format!("deploy/systemd/{example}"))?;
        let lines = example.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        for line in self.all("Environment").chain(lines) {
            let (name, value) = line.split_once('=').with_context(|| format!("{line} is no setting"))?;
            ensure!(!settings.contains_key(name), "{}: {name} is set twice", self.daemon);
            settings.insert(name.to_owned(), value.to_owned());
        }
        Ok(Start {
            program: program.file_name().context("a program")?.to_string_lossy().into_owned(),
            arguments: command.collect(),
            settings,
            by: format!("{}@.service", self.daemon),
        })
    }
}
