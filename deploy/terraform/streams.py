#!/usr/bin/env python3
"""Makes the streams of this host those that Terraform wrote to the bucket.

    fetch KEY       writes an object of the bucket to standard output
    apply DAEMON    starts, restarts and removes units of DAEMON, importer or transformer, as standard input says
    watch DAEMON    fetches settings/DAEMON.json and applies it, each minute, for ever

The settings are the streams, each with its files, by what their names end with: {"posts": {"env": "QUEUE_URL=..."}}.
The bucket is ARCHIVE_BUCKET in AWS_REGION, and is read with the keys of the host's role.
"""

import hashlib, json, os, pathlib, re, subprocess, sys, time

FOLDER = pathlib.Path("/etc/posts-pipeline")
SUFFIXES = ("env", "database-url")
METADATA = "http://169.254.169.254/latest"


# ---- Fetch ----

def fetch(key):
    region, bucket = os.environ["AWS_REGION"], os.environ["ARCHIVE_BUCKET"]
    token = curl(f"{METADATA}/api/token", ("request", "PUT"), ("header", "X-aws-ec2-metadata-token-ttl-seconds: 60"))
    proof = ("header", "X-aws-ec2-metadata-token: " + token.decode())
    roles = f"{METADATA}/meta-data/iam/security-credentials/"
    keys = json.loads(curl(roles + curl(roles, proof).decode(), proof))
    return curl(
        f"https://{bucket}.s3.{region}.amazonaws.com/{key}",
        ("aws-sigv4", f"aws:amz:{region}:s3"),
        ("user", f"{keys['AccessKeyId']}:{keys['SecretAccessKey']}"),
        ("header", "x-amz-security-token: " + keys["Token"]),
        ("header", "x-amz-content-sha256: UNSIGNED-PAYLOAD"),
    )


def curl(url, *options):
    """curl signs by itself, so nothing has to be installed. All goes in by a pipe: arguments are everybody's to read."""
    config = "".join(f'{name} = "{value}"\n' for name, value in (("url", url), *options))
    return run(url, "curl", "-fsS", "--connect-timeout", "10", "--max-time", "300", "--config", "-", input=config.encode())


# ---- Apply ----

def apply(daemon, settings):
    """Starts before it removes, since a removal waits for its daemon to drain. A stream that fails keeps no other one waiting."""
    streams, failures = json.loads(settings), []
    # What is no settings at all must not remove what runs.
    if not isinstance(streams, dict) or not all(isinstance(files, dict) and files for files in streams.values()):
        raise ValueError("the settings are not streams with files")
    marked = [mark.stem.removeprefix(f"{daemon}-") for mark in FOLDER.glob(f"{daemon}-*.applied")]
    for stream in [*streams, *(stream for stream in marked if stream not in streams)]:
        try:
            if stream in streams:
                start(daemon, stream, streams[stream])
            else:
                remove(daemon, stream)
        except Exception as failure:
            failures.append(f"{stream}: {failure!r}")
    if failures:
        raise OSError("; ".join(failures))


def start(daemon, stream, files):
    """The mark is there before the files, and has their digest only when the unit was told to start: if this is killed in between,
    the next run does the rest."""
    # They become paths.
    if not re.fullmatch("[a-z0-9-]+", stream) or not set(files) <= set(SUFFIXES):
        raise ValueError(f"it is no name, or {list(files)} are no files of a stream")
    mark, digest = path(daemon, stream, "applied"), hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    if mark.exists() and mark.read_bytes() == digest.encode():
        return
    write(mark, "")
    for suffix in set(SUFFIXES) - set(files):
        path(daemon, stream, suffix).unlink(missing_ok=True)
    for suffix, text in files.items():
        write(path(daemon, stream, suffix), text)
    systemctl("enable", "--quiet", f"{daemon}@{stream}")
    # Nobody waits for one stream's daemon to drain.
    systemctl("restart", "--no-block", f"{daemon}@{stream}")
    write(mark, digest)
    tell(f"{daemon}@{stream} starts with new settings")


def remove(daemon, stream):
    """The mark is emptied first, so that a stream that comes back in the middle is started, and goes last, so that a removal that is
    cut short goes on."""
    write(path(daemon, stream, "applied"), "")
    systemctl("disable", "--quiet", "--now", f"{daemon}@{stream}")
    for suffix in (*SUFFIXES, "applied"):
        for file in (path(daemon, stream, suffix), path(daemon, stream, suffix + ".new")):
            file.unlink(missing_ok=True)
    tell(f"{daemon}@{stream} is removed")


def path(daemon, stream, suffix):
    return FOLDER / f"{daemon}-{stream}.{suffix}"


def write(path, text):
    """Whoever reads it finds the old text or the new one, also after the power failed."""
    aside = path.with_name(path.name + ".new")
    # What is left of a run that was killed, perhaps with other rights.
    aside.unlink(missing_ok=True)
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)


def systemctl(*arguments):
    run(" ".join(arguments), "systemctl", *arguments)


def run(what, *command, input=None):
    done = subprocess.run(command, input=input, capture_output=True)
    if done.returncode != 0:
        raise OSError(f"{what}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


# ---- Watch ----

def watch(daemon):
    told = None
    while True:
        try:
            apply(daemon, fetch(f"settings/{daemon}.json"))
            problem = None
        except Exception as error:
            problem = repr(error)
        # A problem that lasts is one line.
        if problem != told:
            tell(f"tried again each minute: {problem}" if problem else "the settings are read again")
        told = problem
        time.sleep(60)


def tell(text):
    print(text, flush=True)


# What is written here is for root.
os.umask(0o077)
try:
    match sys.argv[1:]:
        case ["fetch", key]:
            sys.stdout.buffer.write(fetch(key))
        case ["apply", daemon]:
            apply(daemon, sys.stdin.buffer.read())
        case ["watch", daemon]:
            watch(daemon)
        case _:
            sys.exit(__doc__)
except Exception as error:
    sys.exit(repr(error))
