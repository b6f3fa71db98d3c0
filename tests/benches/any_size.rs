//! What a body costs: the peak memory of both daemons for one of 1 GiB, and how long a PUT takes around the sizes at which clients change
//! their ways (64 KiB, where a body no longer fits one write, and 1 MiB).
//!
//! `cargo bench -p tests --bench any_size`, on Linux. It needs 3 GiB of disk in the temporary folder. The PUTs are also timed on a second
//! S3 server, if it is there: `cargo install s3s-fs --version 0.14.1 --features binary --locked --root target/s3s-fs`.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use sandbox::{Progress, Sandbox, Settings, Setup, World};
use support::faulty_api::{Answer, FaultyApi};
use tokio::time::sleep;

const GIB: u64 = 1 << 30;
const KIB: usize = 1 << 10;
const PUT_BYTES: [usize; 4] = [64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 1024 * KIB];

/// What a daemon may take at most, whatever the size of the body.
const GOAL_KIB: u64 = 64 << 10;

#[tokio::main(flavor = "multi_thread")]
async fn main() -> Result<()> {
    let world = World::start(&Progress::default()).await?;
    let setup = Setup { posts: 3, importer: false, transformer: false, ..Setup::default() };
    let mut peak_kib = 0;
    for bytes in [1 << 20, GIB] {
        let answer = Answer::posts(bytes);
        peak_kib = peak_kib.max(peak_memory(&Sandbox::start(&world, setup.clone()).await?, bytes, answer, &[]).await?);
        println!("the same in an object, behind a cursor:");
        let (answer, settings) =
            (Answer::wrapped_posts(bytes), [("NEXT_PAGE", "cursor=/meta/next"), ("RECORDS_AT", "/data")]);
        let sandbox = Sandbox::start(&world, setup.clone()).await?;
        peak_kib = peak_kib.max(peak_memory(&sandbox, bytes, answer, &settings).await?);
    }
    for bytes in PUT_BYTES {
        put_times(&Sandbox::start(&world, setup.clone()).await?, bytes, "LocalStack", &[]).await?;
    }
    let other = world.place().target.join("s3s-fs/bin/s3s-fs");
    if other.is_file() {
        for bytes in PUT_BYTES {
            put_times_on(&other, &Sandbox::start(&world, setup.clone()).await?, bytes).await?;
        }
    } else {
        println!("SKIPPED: no second S3 server, {} is not there", other.display());
    }
    world.stop().await?;
    ensure!(peak_kib < GOAL_KIB, "the goal is less than {} MiB", GOAL_KIB >> 10);
    Ok(())
}

/// `s3s-fs`, with the bucket of this stream in it.
async fn put_times_on(program: &Path, sandbox: &Sandbox, bytes: usize) -> Result<()> {
    let root = sandbox.logs().join("s3s-fs");
    fs::create_dir_all(root.join(sandbox.bucket()))?;
    // Free until another process takes it in the next milliseconds.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut server = sandbox.world().program(program, &Settings::new());
    server.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--access-key", "test", "--secret-key", "test"]);
    server.arg(&root).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = tokio::process::Command::from(server).kill_on_drop(true).spawn()?;
    let endpoint = format!("http://127.0.0.1:{port}");
    put_times(sandbox, bytes, "s3s-fs", &[("AWS_ENDPOINT_URL_S3", &endpoint)]).await
}

/// Fetches and archives a response of this many bytes, then applies it. Answers with the KiB that the greedier daemon took.
async fn peak_memory(sandbox: &Sandbox, bytes: u64, answer: Answer, wrapping: &[(&'static str, &str)]) -> Result<u64> {
    let api = FaultyApi::saying([answer]).await?;
    let mut settings = sandbox.settings().clone();
    settings.set(&[("SOURCE_URL", &api.url())]);
    settings.set(wrapping);
    let programs = sandbox.world().programs();
    let importer_kib = once(sandbox, &programs.importer, &settings, bytes).await?;
    ensure!(sandbox.end().await? == 1, "it is archived");
    let transformer_kib = once(sandbox, &programs.transformer, &settings, bytes).await?;
    ensure!(sandbox.position().await? == 1, "it is applied");
    Ok(importer_kib.max(transformer_kib))
}

async fn once(sandbox: &Sandbox, program: &Path, settings: &Settings, bytes: u64) -> Result<u64> {
    let mut once = sandbox.world().program(program, settings);
    once.arg("once").stderr(Stdio::null());
    let begun = Instant::now();
    let mut child = tokio::process::Command::from(once).kill_on_drop(true).spawn()?;
    let pid = child.id().context("it runs")?;
    let mut peak_kib = 0;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        // The kernel keeps the peak, so looks may be rare.
        peak_kib = peak_kib.max(peak_of(pid).unwrap_or_default());
        sleep(Duration::from_millis(20)).await;
    };
    let name = program.file_name().unwrap_or_default().display();
    ensure!(status.success(), "{name} ended with {status}");
    let (mib, seconds) = (bytes >> 20, begun.elapsed().as_secs_f64());
    println!("{mib:>4} MiB, {name:<11}: peak memory {:>5.1} MiB, {seconds:>5.1} s in all", as_mib(peak_kib));
    Ok(peak_kib)
}

fn peak_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

fn as_mib(kib: u64) -> f64 {
    Duration::from_secs(kib).as_secs_f64() / 1024.0
}

/// Lets the daemon append twenty bodies of this many bytes, and takes its own times.
async fn put_times(sandbox: &Sandbox, bytes: usize, s3: &str, settings: &[(&'static str, &str)]) -> Result<()> {
    let mut number = 0;
    let api = FaultyApi::start(move |_| {
        number += 1;
        let begun = format!(r#"[{{"id":{number:09},"body":""#);
        Answer::ok(format!("{begun}{}\"}}]", "x".repeat(bytes - begun.len() - 3)))
    })
    .await?;
    let mut events = sandbox.events().subscribe();
    let url = api.url();
    let all = [&[("SOURCE_URL", url.as_str()), ("POLL_INTERVAL", "20ms")], settings].concat();
    sandbox.importer.restart_with(&all).await?;
    let mut times = Vec::new();
    // The first ones also pay for the connection.
    while times.len() < 23 {
        let event = events.recv().await?;
        if event.message == "appended" {
            ensure!(event.number("bytes") == Some(bytes as u64), "another size");
            times.push(event.number("append_ms").context("how long it took")?);
        }
    }
    sandbox.importer.terminate().await?;
    let mut times = times.split_off(3);
    times.sort_unstable();
    println!("a PUT of {bytes:>8} bytes to {s3:<10}: median {:>3} ms, {} to {} ms", times[10], times[0], times[19]);
    Ok(())
}
