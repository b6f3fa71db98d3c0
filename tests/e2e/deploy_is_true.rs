//! `docker-compose.yml` and `deploy/` say only what is so: every setting, flag, command, port and path in them is one that the
//! programs have. The programs are asked themselves: by their help, and by the message in which they list wrong settings.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use support::programs::path_of;
use url::Url;

/// The SDK's own settings that something may give to a daemon; the help names them in prose.
const AWS_SETTINGS: [&str; 4] = ["AWS_REGION", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];

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
    for service in ["migrate", "importer", "transformer"] {
        starts.push(compose()?.start(service)?);
    }
    for daemon in ["importer", "transformer"] {
        starts.push(Unit::of(daemon)?.start()?);
    }
    Ok(starts)
}

#[test]
fn every_setting_is_one_of_the_command() -> Result<()> {
    for Start { program, arguments, settings, by } in starts()?.into_iter().chain([compose()?.start("e2e")?]) {
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
        // With one setting that is wrong the program lists all that are, and starts nothing.
        for wrong in ["--log-format=poison", "--admin-addr=poison"] {
            let output = run(&program, arguments.iter().map(String::as_str).chain([wrong]), &settings)?;
            let told = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.code() == Some(2) && told.contains(": 1 setting is wrong, nothing was started"),
                "{by}, of which only {wrong} should be wrong:\n{told}"
            );
        }
    }
    Ok(())
}

#[test]
fn every_command_and_flag_is_one_of_the_program() -> Result<()> {
    let mut lines = Vec::new();
    for service in ["posts-api", "migrate", "importer", "transformer", "e2e"] {
        let Start { program, arguments, by, .. } = compose()?.start(service)?;
        lines.push((by, program, arguments));
    }
    for daemon in ["importer", "transformer"] {
        let Start { program, arguments, by, .. } = Unit::of(daemon)?.start()?;
        lines.push((by, program, arguments));
    }
    // The README's lines that a shell runs with a daemon's settings end with the quote around the script.
    let readme = read("deploy/README.md")?;
    for line in readme.split("exec ").skip(1).filter_map(|rest| rest.split_once('\'')).map(|(line, _)| words(line)) {
        if let [program, arguments @ ..] = &line[..]
            && ["importer", "transformer"].contains(&program.as_str())
        {
            lines.push(("deploy/README.md".into(), program.clone(), arguments.to_vec()));
        }
    }
    ensure!(lines.len() == 10, "the README migrates and checks both daemons");

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
fn ports_are_those_that_the_services_listen_at_and_bound_to_loopback() -> Result<()> {
    let compose = compose()?;
    for (service, definition) in compose.services()? {
        for published in strings(&definition["ports"])? {
            let [host, outer, inner] = published.split(':').collect::<Vec<_>>()[..] else {
                bail!("{service}: {published} is not address:port:port")
            };
            ensure!(host == "127.0.0.1", "{service}: {published} is open to the network");
            outer.parse::<u16>()?;
            let listens = compose.port_of(service)?;
            ensure!(inner == listens.to_string(), "{service} publishes {inner} and listens at {listens}");
        }
    }
    // Inside a container loopback is nobody else's.
    for service in ["posts-api", "importer", "transformer"] {
        let address = compose.listens_at(service)?;
        ensure!(address.ip().is_unspecified(), "{service} listens at {address}, which nobody can reach");
    }
    Ok(())
}

#[test]
fn addresses_lead_to_the_services_that_they_name() -> Result<()> {
    let compose = compose()?;
    for service in ["importer", "transformer", "migrate", "e2e"] {
        let Start { program, settings, .. } = compose.start(service)?;
        let leads_to = |name: &str| -> Result<Option<(Url, String)>> {
            let Some(value) = settings.get(name) else { return Ok(None) };
            let url: Url = value.parse()?;
            let host = url.host_str().context("a host")?.to_owned();
            let port = url.port().context("a port")?;
            ensure!(port == compose.port_of(&host)?, "{service}: {name} is {value}, and {host} listens elsewhere");
            Ok(Some((url, host)))
        };
        if let Some((url, host)) = leads_to("SOURCE_URL")? {
            ensure!(host == "posts-api" && url.path() == "/posts", "{url} is not the collection of the posts API");
        }
        if let Some((url, host)) = leads_to("AWS_ENDPOINT_URL")? {
            ensure!(host == "localstack" && url.path() == "/", "{url} is not LocalStack");
            let (queue, _) = leads_to("QUEUE_URL")?.context("who has an archive has a queue")?;
            ensure!(queue.origin() == url.origin(), "{queue} is a queue of another server");
            let region = &settings["AWS_REGION"];
            // The form of SQS_ENDPOINT_STRATEGY=path; the account is LocalStack's only one.
            let begins = format!("/queue/{region}/000000000000/");
            ensure!(queue.path().starts_with(&begins), "{queue} is no queue of {region}");
        }
        if let Some((url, host)) = leads_to("DATABASE_URL")? {
            ensure!(host == "postgres", "{url} is not the database");
            // From another host the transformer wants a certificate that it can check, and the image's server has none.
            let takes_plaintext = settings.get("ALLOW_PLAINTEXT").is_some_and(|value| value == "true");
            ensure!(takes_plaintext || program != "transformer", "{service} insists on TLS");
            let postgres = &compose.service("postgres")?["environment"];
            let asked = (url.username(), url.password(), url.path());
            let made = ["POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"].map(|name| postgres[name].as_str());
            let database = format!("/{}", made[2].context("POSTGRES_DB")?);
            ensure!(
                asked == (made[0].context("POSTGRES_USER")?, made[1], &database),
                "{url} is not the one that is made"
            );
        }
    }
    Ok(())
}

#[test]
fn localstack_gives_the_queue_the_address_that_the_daemons_have() -> Result<()> {
    let compose = compose()?;
    let localstack = &compose.service("localstack")?["environment"];
    ensure!(localstack["SQS_ENDPOINT_STRATEGY"] == "path" && localstack["SERVICES"] == "s3,sqs");
    for daemon in ["importer", "transformer"] {
        let settings = compose.start(daemon)?.settings;
        let authority = format!("http://{}/", localstack["LOCALSTACK_HOST"].as_str().context("LOCALSTACK_HOST")?);
        ensure!(settings["QUEUE_URL"].starts_with(&authority), "{daemon} has the queue at another host");
        for name in ["ARCHIVE_BUCKET", "QUEUE_URL", "AWS_REGION"] {
            ensure!(localstack[name] == settings[name].as_str(), "{daemon} and the hook do not agree on {name}");
        }
    }
    Ok(())
}

#[test]
fn the_hook_makes_the_bucket_and_the_queue_of_the_daemons() -> Result<()> {
    let compose = compose()?;
    let mounted = strings(&compose.service("localstack")?["volumes"])?;
    let [mount] = &mounted[..] else { bail!("LocalStack gets one file: {mounted:?}") };
    let [hook, target, "ro"] = mount.split(':').collect::<Vec<_>>()[..] else { bail!("{mount} is not a:b:ro") };
    // LocalStack runs only what ends in .sh or .py there, and only what is executable.
    let is_script = |path: &str| Path::new(path).extension().is_some_and(|extension| extension == "sh");
    ensure!(target.starts_with("/etc/localstack/init/ready.d/") && is_script(hook) && is_script(target), "{mount}");
    ensure!(is_executable(&root().join(hook))?, "{hook} is not executable");

    // In the place of LocalStack's own tool, one that writes down what it is asked to do.
    let folder = tempfile::tempdir()?;
    let tool = folder.path().join("awslocal");
    fs::write(&tool, "#!/bin/sh\necho \"$@\" >> \"$0.log\"\n")?;
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755))?;
    let path = format!("{}:{}", folder.path().display(), env::var("PATH")?);
    let settings = settings(&compose.service("localstack")?["environment"])?;
    let status = Command::new(root().join(hook)).env_clear().envs(settings).env("PATH", path).status()?;
    ensure!(status.success(), "{hook} ended with {status}");
    let asked = fs::read_to_string(tool.with_extension("log"))?;

    let daemon = compose.start("importer")?.settings;
    let (bucket, region) = (&daemon["ARCHIVE_BUCKET"], &daemon["AWS_REGION"]);
    let queue = daemon["QUEUE_URL"].rsplit('/').next().context("a queue has a name")?;
    let expected = format!(
        "--region {region} s3api create-bucket --bucket {bucket}\n\
         --region {region} s3api put-bucket-versioning --bucket {bucket} --versioning-configuration Status=Enabled\n\
         --region {region} sqs create-queue --queue-name {queue} --attributes FifoQueue=true\n"
    );
    assert_eq!(asked, expected);
    Ok(())
}

#[test]
fn a_service_starts_after_those_that_it_needs() -> Result<()> {
    let compose = compose()?;
    let mut found = BTreeSet::new();
    for (service, definition) in compose.services()? {
        for (needed, how) in definition["depends_on"].as_object().into_iter().flatten() {
            let condition = how["condition"].as_str().unwrap_or_default();
            let can_be_healthy = !compose.service(needed)?["healthcheck"].is_null();
            ensure!(condition != "service_healthy" || can_be_healthy, "{needed} has no health check");
            found.insert(format!("{service} after {needed}: {condition}"));
        }
    }
    let expected = [
        "e2e after importer: service_healthy",
        "e2e after transformer: service_healthy",
        "importer after localstack: service_healthy",
        "importer after posts-api: service_healthy",
        "migrate after postgres: service_healthy",
        "transformer after localstack: service_healthy",
        "transformer after migrate: service_completed_successfully",
    ];
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    for daemon in ["importer", "transformer"] {
        assert_eq!(compose.service(daemon)?["restart"], "unless-stopped", "{daemon}");
    }
    Ok(())
}

#[test]
fn health_checks_ask_what_is_served() -> Result<()> {
    let compose = compose()?;
    for (service, path) in [("posts-api", "/posts/1"), ("importer", "/readyz"), ("transformer", "/readyz")] {
        let check = strings(&compose.service(service)?["healthcheck"]["test"])?;
        assert_eq!(check, ["CMD", "is-healthy", &compose.port_of(service)?.to_string(), path], "{service}");
        if service != "posts-api" {
            ensure!(help_of(service, &[])?.contains(path), "{service} does not serve {path}");
        }
    }
    let postgres = compose.service("postgres")?;
    let check = strings(&postgres["healthcheck"]["test"])?.join(" ");
    let of = |name: &str| postgres["environment"][name].as_str().unwrap_or_default();
    assert_eq!(check, format!("CMD pg_isready -h 127.0.0.1 -U {} -d {}", of("POSTGRES_USER"), of("POSTGRES_DB")));
    let check = strings(&compose.service("localstack")?["healthcheck"]["test"])?.join(" ");
    let address = format!("http://localhost:{}/", compose.port_of("localstack")?);
    ensure!(check.contains(&address), "{check} does not ask at {address}");
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

#[test]
fn the_database_is_new_enough() -> Result<()> {
    let image = compose()?.service("postgres")?["image"].as_str().context("an image")?.to_owned();
    let version: u32 = image.strip_prefix("postgres:").context("Postgres itself")?.parse()?;
    let help = help_of("transformer", &[])?;
    let versions = help.split("Postgres ").filter_map(|rest| rest.split(' ').next()?.parse::<u32>().ok());
    let least = versions.max().context("the help says which Postgres it needs")?;
    ensure!(version >= least, "{image} is older than {least}");
    // From 18 on the image keeps its data elsewhere, and the tmpfs would hold nothing.
    assert_eq!(compose()?.service("postgres")?["tmpfs"], "/var/lib/postgresql/data");
    ensure!(version < 18, "{image} keeps its data elsewhere");
    Ok(())
}

// ---- The images ----

#[test]
fn each_image_holds_the_program_that_it_is_named_after() -> Result<()> {
    let dockerfile = Dockerfile::read()?;
    let build = dockerfile.stage("build")?.join(" ");
    for program in ["importer", "transformer", "sandbox"] {
        let stage = dockerfile.stage(program)?;
        assert_eq!(stage[1], format!("COPY --from=build /programs/{program} /usr/local/bin/{program}"));
        assert_eq!(stage[2], format!("ENTRYPOINT [\"{program}\"]"));
        ensure!(build.contains(&format!("--bin {program} ")), "{program} is not built");
        ensure!(build.contains(&format!("target/release/{program}")), "{program} is not kept");
        help_of(program, &[]).with_context(|| format!("{program} is no program of the workspace"))?;
    }
    let base = dockerfile.stage("base")?;
    ensure!(base.contains(&"COPY --chmod=755 deploy/docker/is-healthy /usr/local/bin/is-healthy".to_owned()));
    let user = base.iter().find_map(|line| line.strip_prefix("USER ")).context("no USER: it would be root")?;
    ensure!(user.split(':').all(|id| id.parse::<u32>().is_ok_and(|id| id > 0)), "{user} may be root");

    let compose = compose()?;
    for service in ["posts-api", "migrate", "importer", "transformer", "e2e"] {
        let build = &compose.service(service)?["build"];
        ensure!(build["dockerfile"] == "deploy/docker/Dockerfile" && build["context"] == ".", "{service}: {build}");
        dockerfile.stage(build["target"].as_str().with_context(|| format!("{service} has no target"))?)?;
    }
    Ok(())
}

#[test]
fn what_an_image_copies_is_there_and_gets_into_the_builder() -> Result<()> {
    let ignore = read(".dockerignore")?;
    let allowed: BTreeSet<&str> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    ensure!(ignore.lines().any(|line| line == "*"), "everything else stays out");
    let mut copied = BTreeSet::new();
    for line in Dockerfile::read()?.lines.iter().filter(|line| line.starts_with("COPY ") && !line.contains("--from=")) {
        let words: Vec<&str> = line.split(' ').skip(1).filter(|word| !word.starts_with("--")).collect();
        copied.extend(words[..words.len() - 1].iter().map(|&source| source.to_owned()));
    }
    ensure!(copied.iter().map(String::as_str).eq(allowed.iter().copied()), "{copied:?} is copied, {allowed:?} let in");
    for source in copied {
        ensure!(root().join(&source).exists(), "{source} is copied and not there");
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
    let compose = compose()?;
    let arguments = &compose.service("importer")?["build"]["args"];
    ensure!(arguments.get("GIT_REVISION").is_some_and(Value::is_null), "compose passes on its own environment's");
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
        let service = compose.service(daemon)?;
        ensure!(service["stop_grace_period"].is_null() && 10 > drains, "Docker kills {daemon} before it has drained");
        ensure!(service["stop_signal"].is_null());
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

#[test]
fn the_readme_asks_at_ports_and_in_services_that_are_there() -> Result<()> {
    let (readme, compose) = (read("deploy/README.md")?, compose()?);
    let mut published = BTreeSet::new();
    for (_, definition) in compose.services()? {
        published.extend(
            strings(&definition["ports"])?
                .into_iter()
                .filter_map(|port| port.rsplit_once(':').map(|(outer, _)| format!("http://{outer}"))),
        );
    }
    let asked: Vec<_> = words(&readme).into_iter().filter(|word| word.starts_with("http://127.")).collect();
    ensure!(asked.len() == 3, "{asked:?}");
    for url in asked {
        ensure!(published.iter().any(|address| url.starts_with(&format!("{address}/"))), "nobody publishes {url}");
    }
    let bucket = compose.start("importer")?.settings["ARCHIVE_BUCKET"].clone();
    ensure!(readme.contains(&format!("s3 ls --recursive s3://{bucket}\n")));
    for asked in ["docker compose exec ", "docker compose run --rm "] {
        for line in readme.lines().filter_map(|line| line.trim().strip_prefix(asked)) {
            compose.service(&words(line)[0])?;
        }
    }
    // `up` starts everything else, and a check that ends would be a failure to it.
    assert_eq!(strings(&compose.service("e2e")?["profiles"])?, ["e2e"]);
    Ok(())
}

// ---- Asking the programs ----

/// Runs a program with these settings and none of this process'.
fn run<'a>(
    program: &str,
    arguments: impl IntoIterator<Item = &'a str>,
    settings: &BTreeMap<String, String>,
) -> Result<Output> {
    let output = Command::new(path_of(program)?).args(arguments).env_clear().envs(settings).output();
    output.with_context(|| format!("cannot start {program}"))
}

/// The help of the command that the arguments begin with.
fn help_of(program: &str, arguments: &[String]) -> Result<String> {
    let command = arguments.first().map(String::as_str).filter(|word| !word.starts_with('-'));
    let output = run(program, command.into_iter().chain(["--help"]), &BTreeMap::new())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "`{program} {}` is no command", command.unwrap_or_default());
    Ok(said)
}

/// The environment variables in a help: `[env: NAME=]`, or `[env: NAME]` where the value is a secret.
fn variables(help: &str) -> BTreeSet<String> {
    let marks = help.split("[env: ").skip(1);
    marks.filter_map(|rest| rest.split(['=', ']']).next()).map(str::to_owned).collect()
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

fn is_executable(path: &Path) -> Result<bool> {
    Ok(fs::metadata(path).with_context(|| format!("no {}", path.display()))?.permissions().mode() & 0o111 == 0o111)
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

fn strings(list: &Value) -> Result<Vec<String>> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().map(|item| item.as_str().map(str::to_owned).context("a list of strings")).collect()
}

fn settings(environment: &Value) -> Result<BTreeMap<String, String>> {
    let pairs = environment.as_object().into_iter().flatten();
    pairs.map(|(name, value)| Ok((name.clone(), value.as_str().context("a string")?.to_owned()))).collect()
}

/// `docker-compose.yml`, its anchors resolved.
struct Compose(Value);

fn compose() -> Result<Compose> {
    Ok(Compose(serde_saphyr::from_str(&read("docker-compose.yml")?)?))
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
        Ok(Start {
            // The image of a target starts the program of that name.
            program: definition["build"]["target"].as_str().context("a target")?.to_owned(),
            arguments: strings(&definition["command"])?,
            settings: settings(&definition["environment"])?,
            by: format!("the service {service}"),
        })
    }

    /// Where one of our own services listens.
    fn listens_at(&self, service: &str) -> Result<SocketAddr> {
        let Start { arguments, settings, .. } = self.start(service)?;
        let flag = arguments.iter().position(|word| word == "--listen").and_then(|at| arguments.get(at + 1));
        let address = flag.or(settings.get("ADMIN_ADDR")).with_context(|| format!("{service} listens nowhere"))?;
        Ok(address.parse()?)
    }

    fn port_of(&self, service: &str) -> Result<u16> {
        match service {
            // The ports of the images.
            "localstack" => Ok(4566),
            "postgres" => Ok(5432),
            ours => Ok(self.listens_at(ours)?.port()),
        }
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
