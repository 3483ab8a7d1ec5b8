"""Runs the services of docker-compose.yml as plain processes on free ports, with its files, commands and environment."""

import asyncio, base64, fcntl, functools, glob, json, logging, os, pwd, re, secrets, shutil, signal, socket, ssl, subprocess
import tempfile, time
import urllib.error, urllib.parse, urllib.request
from pathlib import Path

import websockets

from common import BINARIES, ROOT, compose, make_secrets, run

logging.getLogger("asyncio").setLevel(logging.ERROR)  # no warnings about slow callbacks on a busy machine
DEADLINE_S = 120
# Loopback addresses for a crowd: nginx limits each address, so one address is not enough for all clients.
NETWORK = "127.7"
UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
           "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode()}


class System:
    """Starts the system; leaving a `with` block stops it. With `upstreams` it is only nginx, in front of these ports."""

    def __init__(self, upstreams=None, worker_shutdown_timeout="1h"):
        self.dir = Path(tempfile.mkdtemp(prefix="kmarket-deploy-"))
        # Postgres runs as another user, because it refuses to run as root, and needs to reach its directory in here.
        self.dir.chmod(0o711)
        self.processes = {}
        self.environments = {}
        self.worker_shutdown_timeout = worker_shutdown_timeout
        names = ["redis", "publisher", "publisher-ops", "gateway-1", "gateway-1-ops", "gateway-2", "gateway-2-ops",
                 "nginx", "prometheus", "postgres"]
        self.held = Ports(len(names))
        self.ports = dict(zip(names, self.held.numbers))
        self.secrets = make_secrets(self.dir / "secrets", REDIS_ADDRESS=f"127.0.0.1:{self.ports['redis']}",
                                    POSTGRES_ADDRESS=f"127.0.0.1:{self.ports['postgres']}")
        try:
            if upstreams:
                self.ports["gateway-1"], self.ports["gateway-2"] = upstreams
            else:
                for name in ["redis", "postgres", "publisher", "gateway-1", "gateway-2"]:
                    getattr(self, "start_" + name.split("-")[0])(name)
                for name in ["publisher", "gateway-1", "gateway-2"]:
                    self.wait_ready(name)
            self.start_nginx()
        except BaseException:
            self.stop()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        for name, process in self.processes.items():
            # After SIGKILL nginx's workers and Postgres's shared memory would remain.
            process.send_signal(signal.SIGINT if name in ("nginx", "postgres") else signal.SIGKILL)
        for process in self.processes.values():
            process.wait()
        shutil.rmtree(self.dir)
        self.held.close()

    def start(self, name, command, environment=None, **options):
        self.environments[name] = environment or {}
        with open(self.dir / f"{name}.log", "a") as log:
            self.processes[name] = subprocess.Popen(
                [str(word) for word in command], env={"PATH": os.environ["PATH"], **(environment or {})},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.dir, **options,
            )

    def log(self, name):
        return (self.dir / f"{name}.log").read_text()

    def environment(self, name):
        """Returns the container's environment, with the paths of this system's secrets."""
        environment = compose()["services"][name]["environment"]
        return {key: value.replace("/run/secrets", str(self.secrets)) for key, value in environment.items()}

    def start_redis(self, name="redis"):
        (self.dir / "data").mkdir(exist_ok=True)
        paths = {"/etc/redis/redis.conf": str(ROOT / "docker/redis/redis.conf"), "/data": str(self.dir / "data"),
                 "/run/secrets/redis_users.acl": str(self.secrets / "redis_users.acl")}
        command = [paths.get(word, word) for word in compose()["services"]["redis"]["command"]]
        self.start(name, [*command, "--port", self.ports["redis"], "--bind", "127.0.0.1"])
        url = (self.secrets / "redis_gateway_url").read_text()
        wait_for(lambda: "PONG" in subprocess.run(["redis-cli", "-u", url, "ping"], text=True, capture_output=True).stdout,
                 "Redis replies")

    def start_postgres(self, name="postgres"):
        """Does what the image's entrypoint does: makes a cluster, makes the environment's database, starts the server."""
        environment = self.environment(name)
        home, as_user = self.dir / "postgres", {}
        home.mkdir(mode=0o700)
        password = shutil.copy(environment["POSTGRES_PASSWORD_FILE"], home)
        if os.geteuid() == 0:
            user = next(entry for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody"))
            as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            for path in (home, password):
                os.chown(path, user.pw_uid, user.pw_gid)
        data, options = home / "data", {"cwd": home, "env": {**os.environ, "LC_ALL": "C"}, **as_user}
        run(postgres("initdb"), "--pgdata", data, "--username", environment["POSTGRES_USER"], "--pwfile", password,
            "--no-sync", *environment["POSTGRES_INITDB_ARGS"].split(), **options)
        run(postgres("postgres"), "--single", "-F", "-D", data, "postgres",
            input=f'CREATE DATABASE {environment["POSTGRES_DB"]}\n', **options)
        settings = {"port": self.ports[name], "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        self.start(name, [postgres("postgres"), "-D", data, *(f"--{key}={value}" for key, value in settings.items())],
                   {"LC_ALL": "C"}, **as_user)
        wait_for(lambda: "ready to accept connections" in self.log(name), "Postgres is ready", self.processes[name])

    def start_publisher(self, name):
        self.start_service(name, "publisher")

    def start_gateway(self, name):
        self.start_service(name, "gateway", TRUSTED_PROXIES="127.0.0.1")

    def start_service(self, name, kind, **more):
        self.start(name, [BINARIES / kind], {
            **self.environment(name), "LISTEN": f"127.0.0.1:{self.ports[name]}",
            "OPS_LISTEN": f"127.0.0.1:{self.ports[name + '-ops']}", "LOG_FORMAT": "json", **more,
        })

    def probe(self, name):
        """Runs the container's health check."""
        return subprocess.run([BINARIES / name.split("-")[0], "probe"], env=self.environments[name],
                              text=True, capture_output=True)

    def wait_ready(self, name):
        wait_for(lambda: self.probe(name).returncode == 0, f"{name} is ready", self.processes[name])

    def start_nginx(self):
        etc = self.dir / "nginx"
        (etc / "conf.d").mkdir(parents=True)
        for file in ["nginx.conf", "routes.conf"]:
            shutil.copy(ROOT / "docker/nginx" / file, etc)
        environment = {
            **compose()["services"]["nginx"]["environment"], "LISTEN_HTTPS": f"127.0.0.1:{self.ports['nginx']}",
            "TEMPORARY": str(self.dir), "TLS_CERTIFICATE": str(self.dir / "tls.crt"), "TLS_KEY": str(self.dir / "tls.key"),
            **{f"GATEWAY_{n}": f"127.0.0.1:{self.ports[f'gateway-{n}']}" for n in (1, 2)},
        }
        run("sh", ROOT / "docker/nginx/make-certificate", env={**os.environ, **environment})
        # The image's entrypoint also replaces only the variables that are set.
        template = (ROOT / "docker/nginx/host.conf.template").read_text()
        rendered = re.sub(r"\$\{(\w+)\}", lambda match: environment.get(match[1], match[0]), template)
        (etc / "conf.d/host.conf").write_text(rendered)
        command = list(compose()["services"]["nginx"]["command"])
        command[-1] = command[-1].replace("/tmp/nginx.pid", str(self.dir / "nginx.pid"))
        command[-1] = command[-1].replace("worker_shutdown_timeout 1h", f"worker_shutdown_timeout {self.worker_shutdown_timeout}")
        common = ["-e", "stderr", "-p", etc, "-c", etc / "nginx.conf"]
        run("nginx", "-t", *common, "-g", command[-1])
        self.start("nginx", [command[0], *common, *command[1:]])
        wait_for(lambda: listens(self.ports["nginx"]), "nginx listens", self.processes["nginx"])

    def start_prometheus(self, interval="15s"):
        """Starts Prometheus with docker/prometheus. It scrapes this system's services at the given interval."""
        etc = self.dir / "prometheus"
        shutil.copytree(ROOT / "docker/prometheus", etc)
        for service, names in [("gateway", ["gateway-1", "gateway-2"]), ("publisher", ["publisher"])]:
            targets = [f"127.0.0.1:{self.ports[name + '-ops']}" for name in names]
            (etc / f"targets/{service}.yml").write_text(json.dumps([{"targets": targets}]))
        config = etc / "prometheus.yml"
        config.write_text(re.sub(r"_interval: \w+", f"_interval: {interval}", config.read_text()))
        run("promtool", "check", "config", config)
        self.start("prometheus", ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={etc}/data",
                                  f"--web.listen-address=127.0.0.1:{self.ports['prometheus']}"])

    def query(self, expression):
        """Returns (labels, value) of each series of an expression, or None while Prometheus is not ready."""
        parameters = urllib.parse.urlencode({"query": expression})
        url = f"http://127.0.0.1:{self.ports['prometheus']}/api/v1/query?{parameters}"
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return [(series["metric"], float(series["value"][1])) for series in json.load(response)["data"]["result"]]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # It has just started.
                return None
            raise AssertionError(f"{expression}: {error.read().decode()}") from None
        except OSError:
            return None

    def workers(self):
        children = f"/proc/{self.processes['nginx'].pid}/task/{self.processes['nginx'].pid}/children"
        return set(Path(children).read_text().split())

    def access_log(self):
        return [json.loads(line) for line in self.log("nginx").splitlines() if line.startswith("{")]

    def secret(self, name):
        return (self.secrets / name).read_text()

    @functools.cached_property
    def trust(self):
        """A TLS context that trusts this nginx's certificate."""
        return self.new_trust()

    def new_trust(self):
        return ssl.create_default_context(cafile=self.dir / "tls.crt")

    async def request(self, method, path, headers=None, body=b"", source="127.0.0.1", port=None, head_only=False):
        """Sends a request over TLS to nginx, or over plain HTTP to another port. Returns (status, headers, body)."""
        options = {} if port else {"ssl": self.trust, "server_hostname": "localhost"}
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port or self.ports["nginx"], local_addr=(source, 0), **options
        )
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in ({"Connection": "close"} | (headers or {})).items()]
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            status = int(head[0].split()[1])
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
            return status, fields, b"" if head_only else await reader.read()
        finally:
            writer.transport.abort()

    async def handshake(self, source, headers=None, path="/ws/odds"):
        """Returns the status of a WebSocket handshake."""
        return (await self.request("GET", path, UPGRADE | (headers or {}), source=source, head_only=True))[0]

    async def pipelined(self, path, all_headers, source):
        """Sends requests on one connection without waiting for responses, to reach a high rate. Returns their statuses."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.ports["nginx"], local_addr=(source, 0), ssl=self.trust, server_hostname="localhost"
        )
        # The last request only makes nginx close the connection.
        requests = [(path, headers) for headers in all_headers] + [("/nowhere", {"Connection": "close"})]
        try:
            for target, headers in requests:
                lines = [f"GET {target} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
                writer.write("\r\n".join([*lines, "", ""]).encode())
            responses = await reader.read()
            return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", responses)][:-1]
        finally:
            writer.transport.abort()

    async def token(self, user, **request):
        key = {"Authorization": f"Bearer {self.secret('token_api_key')}"}
        status, _, body = await self.request(
            "POST", "/api/ws/token", key, json.dumps({"userId": user, "ttlSeconds": 3600}).encode(), **request
        )
        assert status == 200, (status, body)
        return json.loads(body)["token"]

    @functools.cached_property
    def desk(self):
        """An admin token with the role trader."""
        return run(BINARIES / "publisher", "token", "--sub", "desk-1", "--role", "trader",
                   env={"ADMIN_JWT_SECRET_FILE": str(self.secrets / "admin_jwt_secret")}).strip()

    async def override(self, market, price, **headers):
        """Publishes a price at the publisher's own port. Returns the market's seq."""
        body = json.dumps({"marketId": market, "payload": {"moneyline": {"home": price, "away": 2.10}}}).encode()
        status, _, response = await self.request(
            "POST", "/admin/odds/override", {"Authorization": f"Bearer {self.desk}", **headers}, body,
            port=self.ports["publisher"],
        )
        assert status == 200, (status, response)
        return json.loads(response)["seq"]

    async def connect(self, token, source="127.0.0.1", **options):
        options.setdefault("uri", f"wss://localhost:{self.ports['nginx']}/ws/odds?token={token}")
        return await websockets.connect(
            options.pop("uri"), ssl=self.trust, host="127.0.0.1", local_addr=(source, 0), compression=None,
            ping_interval=None, open_timeout=20, close_timeout=1, **options,
        )

    async def sockets(self, names, expected):
        """Waits until these gateways together have `expected` sockets. Returns the number of each."""
        async def look():
            texts = [(await self.request("GET", "/metrics", port=self.ports[name + "-ops"]))[2].decode() for name in names]
            found = [int(re.search(r"^gateway_connections (\d+)$", text, re.M)[1]) for text in texts]
            return found, sum(found) == expected

        return await eventually(look, f"{expected} sockets in all")


class Crowd:
    """Clients of one market that reconnect and resume as docs/protocol.md says. Each checks every seq that it gets."""

    def __init__(self, system, market, size):
        self.system, self.market = system, market
        self.clients = [Client(self, number) for number in range(size)]
        self.problems = []
        self.tasks = []
        # More handshakes at once would time out on a busy machine.
        self.handshakes = asyncio.Semaphore(50)

    async def __aenter__(self):
        # Four sockets per user, which is fewer than a gateway allows.
        users = range((len(self.clients) + 3) // 4)
        self.tokens = await gather_some([self.system.token(f"user-{user}", source=address(user)) for user in users])
        self.tasks = [asyncio.create_task(client.live()) for client in self.clients]
        await self.until(lambda client: client.connected, "all clients are connected")
        return self

    async def __aexit__(self, *_):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def until(self, holds, what):
        """Waits until `holds(client)` is true for every client. Fails if a client has found a problem."""
        end = time.monotonic() + DEADLINE_S
        while not all(holds(client) for client in self.clients):
            assert not self.problems, self.problems[:5]
            missing = sum(not holds(client) for client in self.clients)
            assert time.monotonic() < end, f"timed out until {what}: not true for {missing} of {len(self.clients)}"
            await asyncio.sleep(0.05)
        assert not self.problems, self.problems[:5]


class Client:
    def __init__(self, crowd, number):
        self.crowd, self.number = crowd, number
        self.last, self.connects, self.connected = 0, 0, False

    async def live(self):
        system, market = self.crowd.system, self.crowd.market
        wait = 0.5
        while True:
            try:
                async with self.crowd.handshakes:
                    socket = await system.connect(self.crowd.tokens[self.number // 4], address(self.number))
                async with socket:
                    await socket.send(json.dumps({"type": "resume", "offsets": {str(market): self.last}}))
                    async for text in socket:
                        wait = 0.5
                        self.take(json.loads(text))
            except (OSError, websockets.WebSocketException, TimeoutError, EOFError):
                pass
            self.connected = False
            await asyncio.sleep(wait * (0.5 + secrets.randbelow(1000) / 1000))
            wait = min(2 * wait, 4)

    def take(self, message):
        if message["type"] == "ack":
            if not message["ok"] or not message["positions"][str(self.crowd.market)]["recovered"]:
                self.crowd.problems.append(f"client {self.number}: {message}")
            self.connected, self.connects = True, self.connects + 1
        elif message["type"] == "odds_update":
            if message["seq"] != self.last + 1:
                self.crowd.problems.append(f"client {self.number}: seq {message['seq']} after {self.last}")
            self.last = message["seq"]
        elif message["type"] not in ("ping", "bye"):
            self.crowd.problems.append(f"client {self.number}: {message}")


def address(number):
    """Returns a client's address, which 4 clients share."""
    return f"{NETWORK}.{number // 4 // 250}.{number // 4 % 250 + 1}"


async def gather_some(coroutines, at_once=50):
    """Runs coroutines, only `at_once` at a time. Returns their results in order."""
    permits = asyncio.Semaphore(at_once)

    async def limited(coroutine):
        async with permits:
            return await coroutine

    return await asyncio.gather(*map(limited, coroutines))


def postgres(program):
    """Returns the path of a program of Postgres: Debian keeps them outside PATH."""
    return max(glob.glob(f"/usr/lib/postgresql/*/bin/{program}"), default=program)


class Ports:
    """Free ports of 127.0.0.1 that stay reserved, even while their server restarts.

    They are below the ports of outgoing connections, and locked in the same way as in tests/src/ports.rs.
    """

    def __init__(self, count):
        directory = Path(tempfile.gettempdir(), "kmarket-test-ports")
        directory.mkdir(exist_ok=True)
        self.numbers, self.locks = [], []
        while len(self.numbers) < count:
            number = 10_000 + secrets.randbelow(10_000)
            lock = open(directory / str(number), "a")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
            except OSError:
                lock.close()
                continue
            self.numbers.append(number)
            self.locks.append(lock)

    def close(self):
        for lock in self.locks:
            lock.close()


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def eventually(look, what):
    """Calls `look`, which returns (result, whether the result is as expected), until it is. Returns the result."""
    end = time.monotonic() + DEADLINE_S
    while True:
        found, is_expected = await look()
        if is_expected:
            return found
        assert time.monotonic() < end, f"timed out waiting for {what}: {found}"
        await asyncio.sleep(0.1)


def wait_for(holds, what, process=None):
    """Waits until `holds()` is true. Fails at once if `process` ends."""
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert process is None or process.poll() is None, f"the process ended before {what}"
        assert time.monotonic() < end, f"timed out until {what}"
        time.sleep(0.05)
