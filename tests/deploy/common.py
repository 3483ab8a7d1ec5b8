"""What the deployment tests share: the built services, their settings, and docker-compose.yml as Compose reads it."""

import functools, os, re, subprocess, sys, tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
BINARIES = Path(os.environ.get("KMARKET_BIN_DIR") or ROOT / "target/debug")
# The tools of requirements.txt.
TOOLS = Path(sys.executable).parent
# Environment variables that a service reads beside its settings.
BESIDE_SETTINGS = {"RUST_LOG"}


def run(*command, **options):
    """Returns what a command printed on standard output and standard error. It must exit with 0."""
    done = subprocess.run(
        [str(word) for word in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


@functools.cache
def usage(service, *command):
    """Returns the --help of a service or of one of its commands."""
    return run(BINARIES / service, *command, "--help")


def settings(service, *command):
    """Returns the settings of a service, or of one of its commands: name to default. Skips settings that are only flags."""
    return dict(re.findall(r"^  --\S+ \((\w+)\)\n(?!.*\(flag only\)).*\[(.*)\]$", usage(service, *command), re.M))


def is_setting(service, name):
    return name.removesuffix("_FILE") in settings(service) or name in BESIDE_SETTINGS


def port(service, name):
    """Returns the default port of a listener."""
    return int(settings(service)[name].rsplit(":", 1)[1])


def seconds(duration):
    """Parses a duration as settings, nginx and Compose write it: 15s, 1h, 30."""
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)?", str(duration)).groups()
    return int(number) * {"ms": 0.001, None: 1, "s": 1, "m": 60, "h": 3600}[unit]


def make_secrets(directory, **environment):
    run(ROOT / "docker/make-secrets", directory, env={**os.environ, **environment})
    return Path(directory)


@functools.cache
def compose():
    """Returns docker-compose.yml as Docker Compose reads it: with all profiles, and with the values of .env.example."""
    with tempfile.TemporaryDirectory() as secrets:
        make_secrets(secrets)
        text = run(
            TOOLS / "docker-compose", "--env-file", ".env.example", "--profile", "*", "config",
            cwd=ROOT, env={"PATH": os.environ["PATH"], "SECRETS_DIR": secrets},
        )
    return yaml.safe_load(text)
