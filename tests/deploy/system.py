"""The topology of docker-compose.yml as bare processes on free ports, from the same files, commands and environment."""

import asyncio, base64, fcntl, functools, glob, json, logging, os, pwd, re, secrets, shutil, signal, socket, ssl, subprocess
import tempfile, time
import urllib.error, urllib.parse, urllib.request
from pathlib import Path

import websockets

from common import BINARIES, ROOT, compose, make_secrets, run

logging.getLogger("asyncio").setLevel(logging.ERROR)  # no notes about a busy machine
DEADLINE_S = 120
# nginx' own limits are by address, so a crowd has many. All of these are this machine.
NETWORK = "127.7"
UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
           "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode()}


class System:
    """Starts all of it; `with` ends all of it. `upstreams`: nginx alone, in front of these ports."""

    def __init__(self, upstreams=None, worker_shutdown_timeout="1h"):
        self.dir = Path(tempfile.mkdtemp(prefix="kmarket-deploy-"))
        # Postgres, which refuses to be root, has a directory in it.
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
            # nginx' workers would outlive it, and Postgres' shared memory.
            process.send_signal(signal.SIGINT if name in ("nginx", "postgres") else signal.SIGKILL)
        for process in self.processes.values():
            process.wait()
        shutil.rmtree(self.dir)
        self.held.close()

    def start(self, name, command, environment=None, **options):
        self.environments[name] = environment or {}
        with open(self.dir / f"{name}.log", "a") as log:
            self.processes[name] = subprocess.Popen(
                [str(part) for part in command], env={"PATH": os.environ["PATH"], **(environment or {})},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.dir, **options,
            )

    def log(self, name):
        return (self.dir / f"{name}.log").read_text()

    def environment(self, name):
        """The container's, with its secrets where they are here."""
        environment = compose()["services"][name]["environment"]
        return {key: value.replace("/run/secrets", str(self.secrets)) for key, value in environment.items()}

    def start_redis(self, name="redis"):
        (self.dir / "data").mkdir(exist_ok=True)
        places = {"/etc/redis/redis.conf": str(ROOT / "docker/redis/redis.conf"), "/data": str(self.dir / "data"),
                  "/run/secrets/redis_users.acl": str(self.secrets / "redis_users.acl")}
        command = [places.get(part, part) for part in compose()["services"]["redis"]["command"]]
        self.start(name, [*command, "--port", self.ports["redis"], "--bind", "127.0.0.1"])
        url = (self.secrets / "redis_gateway_url").read_text()
        wait_for(lambda: "PONG" in subprocess.run(["redis-cli", "-u", url, "ping"], text=True, capture_output=True).stdout,
                 "Redis answers")

    def start_postgres(self, name="postgres"):
        """As the image's entrypoint does: a cluster, the database that the environment names, and then the server."""
        environment = self.environment(name)
        home, somebody = self.dir / "postgres", {}
        home.mkdir(mode=0o700)
        password = shutil.copy(environment["POSTGRES_PASSWORD_FILE"], home)
        if os.geteuid() == 0:
            user = next(one for one in pwd.getpwall() if one.pw_name in ("postgres", "nobody"))
            somebody = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            for path in (home, password):
                os.chown(path, user.pw_uid, user.pw_gid)
        data, options = home / "data", {"cwd": home, "env": {**os.environ, "LC_ALL": "C"}, **somebody}
        run(postgres("initdb"), "--pgdata", data, "--username", environment["POSTGRES_USER"], "--pwfile", password,
            "--no-sync", *environment["POSTGRES_INITDB_ARGS"].split(), **options)
        run(postgres("postgres"), "--single", "-F", "-D", data, "postgres",
            input=f'CREATE DATABASE {environment["POSTGRES_DB"]}\n', **options)
        given = {"port": self.ports[name], "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        self.start(name, [postgres("postgres"), "-D", data, *(f"--{key}={value}" for key, value in given.items())],
                   {"LC_ALL": "C"}, **somebody)
        wait_for(lambda: "ready to accept connections" in self.log(name), "Postgres answers", self.processes[name])

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
        """As the container's health is asked."""
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
        # As the image's entrypoint does: only what is set is put in.
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
        """With docker/prometheus, which scrapes this system's services so often."""
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
        """What Prometheus answers: (labels, value) of each series, or None while it does not answer."""
        parameters = urllib.parse.urlencode({"query": expression})
        url = f"http://127.0.0.1:{self.ports['prometheus']}/api/v1/query?{parameters}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return [(one["metric"], float(one["value"][1])) for one in json.load(answer)["data"]["result"]]
        except urllib.error.HTTPError as refused:
            if refused.code == 503:  # It has just started.
                return None
            raise AssertionError(f"{expression}: {refused.read().decode()}") from None
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
        """What a client trusts: this nginx' certificate, for the name it was made for."""
        return self.new_trust()

    def new_trust(self):
        return ssl.create_default_context(cafile=self.dir / "tls.crt")

    async def request(self, method, path, headers=None, body=b"", source="127.0.0.1", port=None, head_only=False):
        """Over TLS to nginx, or in the clear to another port. (status, headers, body)"""
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
        """A WebSocket handshake's status."""
        return (await self.request("GET", path, UPGRADE | (headers or {}), source=source, head_only=True))[0]

    async def pipelined(self, path, all_headers, source):
        """Requests on one connection, without a wait between them, so that they are many a second. Their statuses."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.ports["nginx"], local_addr=(source, 0), ssl=self.trust, server_hostname="localhost"
        )
        # The last one is for nothing but the end of the connection.
        requests = [(path, headers) for headers in all_headers] + [("/nowhere", {"Connection": "close"})]
        try:
            for target, headers in requests:
                lines = [f"GET {target} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
                writer.write("\r\n".join([*lines, "", ""]).encode())
            answers = await reader.read()
            return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answers)][:-1]
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
        """A trader's token."""
        return run(BINARIES / "publisher", "token", "--sub", "desk-1", "--role", "trader",
                   env={"ADMIN_JWT_SECRET_FILE": str(self.secrets / "admin_jwt_secret")}).strip()

    async def override(self, market, price, **headers):
        """A new price, at the publisher's own port. The market's seq."""
        body = json.dumps({"marketId": market, "payload": {"moneyline": {"home": price, "away": 2.10}}}).encode()
        status, _, answer = await self.request(
            "POST", "/admin/odds/override", {"Authorization": f"Bearer {self.desk}", **headers}, body,
            port=self.ports["publisher"],
        )
        assert status == 200, (status, answer)
        return json.loads(answer)["seq"]

    async def connect(self, token, source="127.0.0.1", **options):
        options.setdefault("uri", f"wss://localhost:{self.ports['nginx']}/ws/odds?token={token}")
        return await websockets.connect(
            options.pop("uri"), ssl=self.trust, host="127.0.0.1", local_addr=(source, 0), compression=None,
            ping_interval=None, open_timeout=20, close_timeout=1, **options,
        )

    async def sockets(self, names, expected):
        """How many each of these gateways has, once all of them together have as many as expected."""
        async def look():
            texts = [(await self.request("GET", "/metrics", port=self.ports[name + "-ops"]))[2].decode() for name in names]
            found = [int(re.search(r"^gateway_connections (\d+)$", text, re.M)[1]) for text in texts]
            return found, sum(found) == expected

        return await eventually(look, f"sockets, {expected} in all")


class Crowd:
    """Clients on one market that come back and resume, as docs/protocol.md says; each checks every seq it gets."""

    def __init__(self, system, market, size):
        self.system, self.market = system, market
        self.clients = [Client(self, number) for number in range(size)]
        self.problems = []
        self.tasks = []
        # As many handshakes at a time as this machine can bring to an end while it does other things.
        self.door = asyncio.Semaphore(50)

    async def __aenter__(self):
        # Four sockets a user: fewer than one gateway allows.
        users = range((len(self.clients) + 3) // 4)
        self.tokens = await gather_some([self.system.token(f"user-{user}", source=address(user)) for user in users])
        self.tasks = [asyncio.create_task(client.live()) for client in self.clients]
        await self.until(lambda client: client.connected, "everybody is connected")
        return self

    async def __aexit__(self, *_):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def until(self, holds, what):
        """Waits until it holds for every client, and nobody has met a problem."""
        end = time.monotonic() + DEADLINE_S
        while not all(holds(client) for client in self.clients):
            assert not self.problems, self.problems[:5]
            missing = sum(not holds(client) for client in self.clients)
            assert time.monotonic() < end, f"{what}: not so for {missing} of {len(self.clients)}"
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
                async with self.crowd.door:
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
    """One address for 4 clients."""
    return f"{NETWORK}.{number // 4 // 250}.{number // 4 % 250 + 1}"


async def gather_some(coroutines, at_once=50):
    """Their results in order; only so many at a time."""
    gate = asyncio.Semaphore(at_once)

    async def one(coroutine):
        async with gate:
            return await coroutine

    return await asyncio.gather(*map(one, coroutines))


def postgres(program):
    """Where Debian has it, beside the path; else in the path."""
    return max(glob.glob(f"/usr/lib/postgresql/*/bin/{program}"), default=program)


class Ports:
    """Free ports of 127.0.0.1 that nobody else takes, also not when their server is restarted: below those of outgoing
    connections, and with the same locks as tests/src/ports.rs."""

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
    """Looks again and again, until what `look` finds is what was waited for: it answers (found, whether it is)."""
    end = time.monotonic() + DEADLINE_S
    while True:
        found, is_it = await look()
        if is_it:
            return found
        assert time.monotonic() < end, f"{what}: {found}"
        await asyncio.sleep(0.1)


def wait_for(holds, what, process=None):
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert process is None or process.poll() is None, f"{what}: it has ended"
        assert time.monotonic() < end, what
        time.sleep(0.05)
