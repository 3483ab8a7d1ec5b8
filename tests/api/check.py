"""Checks running services against their OpenAPI documents with Schemathesis.

Starts an embedded gateway, and Redis with a publisher and a gateway. Runs Schemathesis with the tokens of each role, and
without a token.
"""

import json, os, secrets, socket, subprocess, sys, tempfile, time, urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
BINARIES = Path(os.environ["KMARKET_BIN_DIR"])
SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"
DEADLINE_S = 60
ADMIN_JWT_SECRET, JWT_SECRET, TOKEN_API_KEY = (secrets.token_hex(24) for _ in range(3))
# Without rate limits, which other tests cover: Schemathesis would only get 429.
UNLIMITED = {"HANDSHAKE_RATE_LIMIT": "0", "TOKEN_RATE_LIMIT": "0", "WORKERS": "2"}


def main():
    with tempfile.TemporaryDirectory(prefix="kmarket-api-") as directory:
        system = System(Path(directory))
        try:
            runs = plan(system)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                results = list(pool.map(lambda run: run.go(system.directory), runs))
            broken = system.broken()
        finally:
            system.stop()
    for run, (code, output) in zip(runs, results):
        print(f"--- {run.name}: {'as documented' if code == 0 else 'NOT AS DOCUMENTED'}\n{output if code else last_lines(output)}")
    print("\n".join(broken), end="")
    sys.exit(1 if broken or any(code for code, _ in results) else 0)


def plan(system):
    embedded, publisher = system.start_gateway("embedded"), system.start_publisher()
    gateway = system.start_gateway(
        "gateway", REDIS_URL=system.redis_url, JWT_SECRET=JWT_SECRET, TOKEN_API_KEY=TOKEN_API_KEY, READ_AUTH="token",
    )
    client = {"clientToken": client_token(gateway), "clientTokenInQuery": client_token(gateway), "tokenApiKey": TOKEN_API_KEY}
    admin, viewer = ({"adminToken": admin_token(role)} for role in ("admin", "viewer"))
    return [
        Run("embedded, an admin", embedded + "/admin/openapi.json", admin),
        Run("publisher, an admin", publisher + "/admin/openapi.json", admin),
        Run("publisher, a viewer", publisher + "/admin/openapi.json", viewer, BRIEF),
        Run("publisher, no token", publisher + "/admin/openapi.json", {}, BRIEF),
        Run("embedded, a client", embedded + "/api/openapi.json", {"clientToken": client_token(embedded)}),
        Run("gateway, a client", gateway + "/api/openapi.json", client),
        Run("gateway, no token", gateway + "/api/openapi.json", {}, BRIEF),
    ]


# Fewer phases where most requests are refused before their content is read.
BRIEF = "examples,coverage"


class Run:
    """One run of Schemathesis against a document. `tokens`: by the names of its security schemes."""

    def __init__(self, name, document, tokens, phases="examples,coverage,fuzzing,stateful"):
        self.name, self.document, self.tokens, self.phases = name, document, tokens, phases

    def go(self, parent):
        directory = Path(tempfile.mkdtemp(dir=parent))
        config = (HERE / "schemathesis.toml").read_text()
        for name, token in self.tokens.items():
            key = "api_key" if name == "clientTokenInQuery" else "bearer"
            config += f'\n[auth.openapi.{name}]\n{key} = "{token}"\n'
        (directory / "schemathesis.toml").write_text(config)
        done = subprocess.run(
            [SCHEMATHESIS, "run", self.document, "--no-color", "--checks", "all", "--phases", self.phases],
            cwd=directory, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)},
        )
        return done.returncode, done.stdout


class System:
    """The running services, with their logs in `directory`."""

    def __init__(self, directory):
        self.directory, self.processes = directory, {}
        port = free_port()
        self.redis_url = f"redis://127.0.0.1:{port}"
        self.start("redis", "redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", directory)
        wait_for(lambda: "Ready to accept connections" in self.log("redis"), self.processes["redis"])

    def start_gateway(self, name, **settings):
        return self.serve(name, "gateway", {**UNLIMITED, "ADMIN_JWT_SECRET": ADMIN_JWT_SECRET, **settings})

    def start_publisher(self):
        return self.serve("publisher", "publisher", {"REDIS_URL": self.redis_url, "ADMIN_JWT_SECRET": ADMIN_JWT_SECRET})

    def serve(self, name, program, settings):
        self.start(name, BINARIES / program, LOG_FORMAT="json", LISTEN="127.0.0.1:0", OPS_LISTEN="127.0.0.1:0", **settings)
        wait_for(lambda: len(self.listeners(name)) == 2, self.processes[name])
        listeners = self.listeners(name)
        wait_for(lambda: status(f"http://{listeners['ops']}/readyz") == 200, self.processes[name])
        return f"http://{listeners['api']}"

    def start(self, name, *command, **environment):
        with open(self.directory / f"{name}.log", "w") as log:
            self.processes[name] = subprocess.Popen(
                [str(word) for word in command], env={"PATH": os.environ["PATH"], **environment}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )

    def listeners(self, name):
        lines = [json.loads(line) for line in self.log(name).splitlines() if line.startswith("{") and line.endswith("}")]
        fields = [line["fields"] for line in lines if line["fields"].get("message") == "listening"]
        return {field["listener"]: field["address"] for field in fields}

    def log(self, name):
        return (self.directory / f"{name}.log").read_text()

    def broken(self):
        """Describes each service that ended or panicked during the runs."""
        ended = [f"{name} ended\n" for name, process in self.processes.items() if process.poll() is not None]
        return ended + [f"{name} panicked:\n{self.log(name)}\n" for name in self.processes if "panicked" in self.log(name)]

    def stop(self):
        for process in self.processes.values():
            process.kill()
            process.wait()


def admin_token(role):
    command = [BINARIES / "publisher", "token", "--sub", "desk-1", "--role", role, "--ttl", "1h"]
    return subprocess.run(command, env={"ADMIN_JWT_SECRET": ADMIN_JWT_SECRET}, text=True, capture_output=True, check=True).stdout.strip()


def client_token(gateway):
    request = urllib.request.Request(
        gateway + "/api/ws/token", data=b'{"userId":"schemathesis","ttlSeconds":3600}',
        headers={"Authorization": f"Bearer {TOKEN_API_KEY}"},
    )
    return json.load(urllib.request.urlopen(request))["token"]


def status(url):
    try:
        return urllib.request.urlopen(url).status
    except urllib.error.HTTPError as error:
        return error.code


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(condition, process):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, f"{process.args} ended"
        assert time.monotonic() < deadline, f"{process.args}: not within {DEADLINE_S} s"
        time.sleep(0.01)


def last_lines(output):
    return "\n".join(output.rstrip().splitlines()[-3:])


if __name__ == "__main__":
    main()
