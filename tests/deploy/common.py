"""What the checks of the deployment share: the built services, what they can be told, and the files as they are read."""

import functools, os, re, subprocess, sys, tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
BINARIES = Path(os.environ.get("KMARKET_BIN_DIR") or ROOT / "target/debug")
# Where the tools are that requirements.txt brings.
TOOLS = Path(sys.executable).parent
# Environment variables that a service reads beside its settings.
BESIDE_SETTINGS = {"RUST_LOG"}


def run(*command, **options):
    """What a command printed, both ways. It must end well."""
    done = subprocess.run(
        [str(part) for part in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


@functools.cache
def usage(service, *command):
    """What a service, or a command of it, says of itself."""
    return run(BINARIES / service, *command, "--help")


def settings(service, *command):
    """The names of the settings of a service, or a command of it, and their defaults; without those that are flags only."""
    return dict(re.findall(r"^  --\S+ \((\w+)\)\n(?!.*\(flag only\)).*\[(.*)\]$", usage(service, *command), re.M))


def is_setting(service, name):
    return name.removesuffix("_FILE") in settings(service) or name in BESIDE_SETTINGS


def port(service, name):
    """A listener's default port."""
    return int(settings(service)[name].rsplit(":", 1)[1])


def seconds(duration):
    """As settings, nginx and Compose write it: 15s, 1h, 30."""
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)?", str(duration)).groups()
    return int(number) * {"ms": 0.001, None: 1, "s": 1, "m": 60, "h": 3600}[unit]


def make_secrets(directory, **environment):
    run(ROOT / "docker/make-secrets", directory, env={**os.environ, **environment})
    return Path(directory)


@functools.cache
def compose():
    """docker-compose.yml as Docker Compose itself understands it, all profiles, with .env.example as it stands."""
    with tempfile.TemporaryDirectory() as secrets:
        make_secrets(secrets)
        text = run(
            TOOLS / "docker-compose", "--env-file", ".env.example", "--profile", "*", "config",
            cwd=ROOT, env={"PATH": os.environ["PATH"], "SECRETS_DIR": secrets},
        )
    return yaml.safe_load(text)
