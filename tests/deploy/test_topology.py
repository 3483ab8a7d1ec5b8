"""Tests the whole system through nginx: real nginx, gateways, publisher, Redis, Postgres and Prometheus, with the files
that docker-compose.yml uses."""

import asyncio, json, re, signal, ssl, unittest, warnings

from common import ROOT, run, seconds, settings
from system import UPGRADE, Crowd, Ports, System, eventually, gather_some, wait_for


class Test(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        # The debug mode that unittest turns on is several times slower, and the crowds are large.
        asyncio.get_running_loop().set_debug(False)


class ThroughNginx(Test):
    """Tests that share one system, because they do not change it. Each has markets and client addresses of its own."""

    @classmethod
    def setUpClass(cls):
        cls.system = System()
        cls.addClassCleanup(cls.system.stop)

    async def test_an_override_reaches_a_socket_and_a_read(self):
        token = await self.system.token(1)
        async with await self.system.connect(token) as by_query:
            await by_query.send('{"type":"subscribe","markets":["2001"]}')
            self.assertEqual(json.loads(await by_query.recv())["subscribed"], [2001])
            uri = f"wss://localhost:{self.system.ports['nginx']}/ws/odds"
            protocols = ["kmarket.v1", f"token.{token}"]
            async with await self.system.connect("", uri=uri, subprotocols=protocols) as by_protocol:
                self.assertEqual(by_protocol.subprotocol, "kmarket.v1")
            self.assertEqual(await self.system.override(2001, 1.85), 1)
            update = json.loads(await by_query.recv())
            self.assertEqual((update["type"], update["marketId"], update["seq"]), ("odds_update", 2001, 1))
        status, headers, body = await self.system.request("GET", "/api/markets/2001/odds/snapshot")
        self.assertEqual((status, json.loads(body)["seq"]), (200, 1))
        self.assertIn("max-age=31536000", headers["strict-transport-security"])
        self.assertEqual(headers["server"], "nginx")
        status, _, body = await self.system.request("GET", "/api/markets/2001/odds/updates?since_seq=0&limit=1")
        self.assertEqual((status, len(json.loads(body)["updates"])), (200, 1))
        status, _, _ = await self.system.request("GET", "/api/ws/health")
        self.assertEqual(status, 200)

    async def test_the_audit_entry_of_an_override_is_in_postgres(self):
        market = 2003
        await self.system.override(market, 1.85)
        desk = {"Authorization": f"Bearer {self.system.desk}"}

        async def look():
            status, headers, response = await self.system.request(
                "GET", f"/admin/audit?marketId={market}", desk, port=self.system.ports["publisher"])
            self.assertEqual(status, 200)
            # The source is Redis until the publisher has made its tables.
            return response, headers["x-audit-source"] == "postgres"

        (entry,) = json.loads(await eventually(look, "a response from Postgres"))["entries"]
        self.assertEqual((entry["actor"], entry["after"]["moneyline"]["home"]), ("desk-1", 1.85))

    async def test_a_token_requires_the_api_key(self):
        for headers in [{}, {"Authorization": "Bearer nonsense"}]:
            status, _, _ = await self.system.request("POST", "/api/ws/token", headers, b'{"userId":1}')
            self.assertEqual(status, 401)

    async def test_routes_that_are_not_for_clients_are_404(self):
        paths = ["/metrics", "/readyz", "/livez", "/admin", "/admin/odds/override", "/admin/audit?marketId=1", "/console",
                 "/console/", "/", "//admin/audit", "/%61dmin/audit", "/api/../admin/audit", "/api/markets/../../metrics",
                 "/api/markets/%2e%2e/%2e%2e/readyz", "/ws/odds/", "/ws", "/api/ws/tokens"]
        for path in paths:
            for method in ["GET", "POST"]:
                status, _, _ = await self.system.request(method, path)
                self.assertEqual(status, 404, f"{method} {path}")
        # The 404 is nginx's own: it forwarded no request to a gateway.
        refused = [line for line in self.system.access_log() if line["status"] == 404]
        self.assertGreaterEqual(len(refused), 2 * len(paths))
        self.assertEqual({line["upstream"] for line in refused}, {""})

    async def test_bodies_and_request_lines_have_limits(self):
        key = {"Authorization": f"Bearer {self.system.secret('token_api_key')}"}
        status, _, _ = await self.system.request("POST", "/api/ws/token", key, b" " * (64 * 1024 + 1))
        self.assertEqual(status, 413)
        # A token of 16 KiB fits, one of 40 KiB does not.
        self.assertEqual(await self.system.handshake("127.8.0.1", path="/ws/odds?token=" + "a" * 16384), 401)
        self.assertEqual(await self.system.handshake("127.8.0.1", path="/ws/odds?token=" + "a" * 40960), 414)

    async def test_only_tls_1_2_and_1_3_are_accepted(self):
        warnings.simplefilter("ignore", DeprecationWarning)  # for the name of TLS 1.1
        for version, accepted in [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)]:
            context = self.system.new_trust()
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.system.ports["nginx"], ssl=context,
                                                          server_hostname="localhost")
                writer.close()
                self.assertTrue(accepted, version)
            except (ssl.SSLError, ConnectionError):
                self.assertFalse(accepted, version)

    async def test_forwarding_headers_of_a_client_do_not_evade_the_handshake_rate_limit(self):
        # Without a token an allowed handshake gets 401, and one above the limit 429. nginx's own limit allows 80 at once.
        honest = [self.system.handshake(f"127.8.1.{n}", {"X-Forwarded-For": "192.0.2.1"}) for n in range(1, 76)]
        self.assertEqual(await gather_some(honest, 20), [401] * 75)
        spoofs = [f"192.0.2.{n}" for n in range(1, 76)]
        headers = [UPGRADE | {"X-Forwarded-For": ip, "X-Real-IP": ip, "Forwarded": f"for={ip}"} for ip in spoofs]
        # The two gateways each allow 20 at once and 20 per second. A busy machine may need several attempts to exceed that.
        seen = set()
        for source in (f"127.8.2.{n}" for n in range(1, 21)):
            statuses = await self.system.pipelined("/ws/odds", headers, source)
            self.assertEqual(len(statuses), 75)
            seen |= set(statuses)
            if 429 in seen:
                break
        self.assertEqual(seen, {401, 429})

    async def test_connections_to_gateways_are_reused_for_rest(self):
        await gather_some([self.system.request("GET", "/api/ws/health", source="127.8.4.1") for _ in range(20)], 1)
        ports = [self.system.ports["gateway-1"], self.system.ports["gateway-2"]]
        lines = run("ss", "-Htn", "state", "established", f"( dport = {ports[0]} or dport = {ports[1]} )").splitlines()
        self.assertTrue(lines)
        self.assertLess(len(lines), 20)

    async def test_prometheus_scrapes_both_services(self):
        self.system.start_prometheus()
        jobs = lambda expression: sorted((one["job"], value) for one, value in self.system.query(expression) or [])
        up = [("gateway", 1), ("gateway", 1), ("publisher", 1)]
        await asyncio.to_thread(wait_for, lambda: jobs("up") == up, "every target is up", self.system.processes["prometheus"])
        self.assertEqual([job for job, _ in jobs("gateway_max_connections")], ["gateway", "gateway"])

    async def test_redis_requires_a_password(self):
        for user in [[], ["--user", "default", "--pass", ""], ["--user", "default", "--pass", "default"]]:
            reply = run("redis-cli", "-p", self.system.ports["redis"], *user, "ping")
            self.assertRegex(reply, "NOAUTH|WRONGPASS")
            self.assertNotIn("PONG", reply)

    async def test_timeouts_of_nginx_fit_the_services_defaults(self):
        routes = (ROOT / "docker/nginx/routes.conf").read_text()
        host = (ROOT / "docker/nginx/host.conf.template").read_text()
        gateway = settings("gateway")
        socket = re.search(r"location = /ws/odds \{(.*?)\n\}", routes, re.S)[1]
        for directive in ["proxy_read_timeout", "proxy_send_timeout", "send_timeout"]:
            value = seconds(re.search(rf"\b{directive} (\w+);", socket)[1])
            self.assertGreater(value, seconds(gateway["HEARTBEAT_TIMEOUT"]), directive)
            self.assertGreater(value, seconds(gateway["SLOW_AFTER"]), directive)
        kept = seconds(re.search(r"keepalive_timeout (\w+);", host)[1])
        self.assertLess(kept, seconds(gateway["HANDSHAKE_TIMEOUT"]))
        self.assertEqual(host.count("least_conn;"), host.count("upstream "))
        for file in ["nginx.conf", "routes.conf"]:
            # Only the template has addresses and paths, so the other files are the same everywhere.
            self.assertNotRegex((ROOT / "docker/nginx" / file).read_text(), r"\d+\.\d+\.\d+\.\d+|:\d{4}|/etc/|\$\{")

    async def test_directives_routes_and_settings_named_in_the_documentation_exist(self):
        text = (ROOT / "docs/operations.md").read_text()
        files = "".join((ROOT / "docker/nginx" / file).read_text() for file in ["nginx.conf", "routes.conf", "host.conf.template"])
        nginx = re.search(r"^## Behind nginx\n(.*?)^## ", text, re.M | re.S)[1]
        for cell in re.findall(r"^\| (`.*?) \|", nginx, re.M):
            for directive in re.findall(r"`([\w-]+)`", cell):
                self.assertRegex(files, rf"(?m)^\s*(proxy_set_header )?{directive}\b|\b{directive}=", directive)
        for path in re.findall(r"`(/\S+)`", re.search(r"Clients reach (.*?);", nginx, re.S)[1]):
            self.assertRegex(files, rf"location (= )?{path} {{")
        everywhere = set(settings("gateway")) | set(settings("publisher"))
        variables = set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.M))
        for section in ["With Docker Compose", "On Kubernetes", "Behind nginx"]:
            section = re.search(rf"^## {section}\n(.*?)^## ", text, re.M | re.S)[1]
            for name in re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", section):
                self.assertIn(name, everywhere | variables)


class WhenProcessesEnd(Test):
    """Tests that change the system. Each starts a system of its own."""

    async def test_a_thousand_clients_survive_the_death_of_a_gateway(self):
        with System() as system:
            async with Crowd(system, 3001, 1000) as crowd:
                on_each = await system.sockets(["gateway-1", "gateway-2"], 1000)
                self.assertGreater(min(on_each), 400, "least_conn spreads them")
                for _ in range(3):
                    last = await system.override(3001, 1.85)
                connects = {client: client.connects for client in crowd.clients}
                system.processes["gateway-2"].kill()
                for _ in range(5):
                    last = await system.override(3001, 1.90)
                    await asyncio.sleep(0.2)
                await crowd.until(lambda client: client.connected and client.last == last, "every client has every update")
                await system.sockets(["gateway-1"], 1000)
                moved = sum(client.connects - connects[client] for client in crowd.clients)
                self.assertEqual(moved, on_each[1], "clients of the other gateway did not reconnect")

    async def test_a_reload_of_nginx_loses_no_update(self):
        with System(worker_shutdown_timeout="1s") as system:
            async with Crowd(system, 3002, 200) as crowd:
                before = system.workers()
                for round in range(6):
                    last = await system.override(3002, 1.85)
                    if round == 2:
                        system.processes["nginx"].send_signal(signal.SIGHUP)
                    await asyncio.sleep(0.2)
                await asyncio.to_thread(wait_for, lambda: not before & system.workers(), "the old workers have ended")
                last = await system.override(3002, 1.90)
                await crowd.until(lambda client: client.connected and client.last == last, "every client has every update")
                self.assertTrue(all(client.connects == 2 for client in crowd.clients), "every client reconnected once")

    async def test_no_handshake_fails_while_a_gateway_drains(self):
        with System() as system:
            async with Crowd(system, 3003, 40) as crowd:
                system.processes["gateway-1"].send_signal(signal.SIGTERM)
                await asyncio.to_thread(wait_for, lambda: system.probe("gateway-1").returncode == 1, "the gateway drains")
                self.assertIn("DRAINING", system.probe("gateway-1").stderr)
                token = await system.token("another")
                uri = f"/ws/odds?token={token}"
                statuses = await asyncio.gather(*(system.handshake(f"127.8.5.{n}", path=uri) for n in range(1, 9)))
                self.assertEqual(statuses, [101] * 8)
                await asyncio.to_thread(system.processes["gateway-1"].wait, 30)
                self.assertEqual(system.processes["gateway-1"].returncode, 0)
                self.assertEqual(system.probe("gateway-1").returncode, 1)
                last = await system.override(3003, 1.85)
                await crowd.until(lambda client: client.connected and client.last == last, "every client has every update")

    async def test_no_token_is_in_the_log_of_nginx(self):
        with System() as system:
            tokens = [await system.token(user) for user in range(3)]

            async def send_tokens(source):
                statuses = set()
                for token in tokens:
                    for path, headers in [
                        (f"/ws/odds?token={token}", {}), ("/ws/odds", {"Authorization": f"Bearer {token}"}),
                        ("/ws/odds", {"Sec-WebSocket-Protocol": f"kmarket.v1, token.{token}"}),
                        (f"/api/markets/1/odds/snapshot?token={token}", {}), (f"/nowhere?token={token}", {}),
                        ("/nowhere", {"Referer": f"https://localhost/?token={token}", "Cookie": f"token={token}"}),
                        (f"/api/markets/1/odds/snapshot?token={token}&{'x' * 40000}", {}),
                    ]:
                        statuses.add(await system.handshake(source, headers, path))
                return statuses

            self.assertLessEqual({101, 404, 414}, await send_tokens("127.8.6.1"))
            for name in ["gateway-1", "gateway-2"]:
                system.processes[name].kill()
                system.processes[name].wait()
            self.assertLessEqual({502}, await send_tokens("127.8.6.3"))
            # Some of these are above nginx's own limit.
            limited = await system.pipelined(f"/api/markets/1/odds/snapshot?token={tokens[0]}", [{}] * 900, "127.8.6.2")
            self.assertEqual(set(limited), {429, 502})
            system.processes["nginx"].terminate()
            system.processes["nginx"].wait()
            log = system.log("nginx")
            self.assertIn('"upstreamStatus":"502', log)
            secrets = [*(token.split(".")[2] for token in tokens), system.secret("token_api_key")]
            for secret in secrets:
                self.assertNotIn(secret, log)

    async def test_a_redis_that_dies_has_every_update_after_its_restart(self):
        with System() as system:
            last = await system.override(3004, 1.85)
            files = system.dir / "data/appendonlydir"
            written = lambda: any(b"odds:log:{3004}" in file.read_bytes() for file in files.glob("*.aof"))
            await asyncio.to_thread(wait_for, written, "the update is in the file of Redis")
            system.processes["redis"].kill()
            system.processes["redis"].wait()
            await asyncio.to_thread(wait_for, lambda: "BACKBONE_UNREACHABLE" in system.probe("publisher").stderr, "the publisher misses Redis")
            await asyncio.to_thread(system.start_redis)
            await asyncio.to_thread(system.wait_ready, "publisher")
            # The first override may use a connection to the dead Redis. Its outcome is unknown, so it is sent again.
            seqs = set()
            while not seqs:
                try:
                    seqs.add(await system.override(3004, 1.90, **{"Idempotency-Key": "k"}))
                except AssertionError as refused:
                    self.assertIn("outcome unknown", str(refused))
            self.assertEqual(seqs, {last + 1})
            status, _, body = await system.request("GET", "/api/markets/3004/odds/updates?since_seq=0")
            self.assertEqual((status, [update["seq"] for update in json.loads(body)["updates"]]), (200, [last, last + 1]))


class BetweenNginxAndAGateway(Test):
    """nginx in front of fake gateways that break off a request as a dying gateway does."""

    async def asyncSetUp(self):
        await super().asyncSetUp()
        self.requests = []

        async def die(reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if length:
                await reader.readexactly(int(length[1]))
            self.requests.append(head.split(b" ")[0].decode())
            writer.transport.abort()

        self.dying = [await asyncio.start_server(die, "127.0.0.1", 0) for _ in range(2)]
        self.ports = [server.sockets[0].getsockname()[1] for server in self.dying]

    async def asyncTearDown(self):
        for server in self.dying:
            server.close()

    async def test_a_post_that_reached_a_gateway_is_never_repeated(self):
        with await asyncio.to_thread(System, self.ports) as system:
            status, _, _ = await system.request("POST", "/api/ws/token", {}, b'{"userId":1}')
            self.assertEqual((status, self.requests), (502, ["POST"]))

    async def test_a_get_is_repeated_at_the_other_gateway(self):
        with await asyncio.to_thread(System, self.ports) as system:
            status, _, _ = await system.request("GET", "/api/ws/health")
            self.assertEqual((status, self.requests), (502, ["GET", "GET"]))

    async def test_a_request_that_reached_no_gateway_goes_to_the_other(self):
        async def respond(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            await writer.drain()
            writer.close()

        alive = await asyncio.start_server(respond, "127.0.0.1", 0)
        closed = Ports(1)
        self.addCleanup(closed.close)
        with await asyncio.to_thread(System, [*closed.numbers, alive.sockets[0].getsockname()[1]]) as system:
            for _ in range(6):
                status, _, body = await system.request("POST", "/api/ws/token", {}, b"{}")
                self.assertEqual((status, body), (200, b"ok"))
        alive.close()

    async def test_rate_limits_are_per_address(self):
        closed = Ports(2)
        self.addCleanup(closed.close)
        # A request that nginx forwards gets 502 at once, because no gateway listens.
        with await asyncio.to_thread(System, closed.numbers) as system:
            for path in ["/ws/odds", "/api/ws/token", "/api/ws/health", "/api/markets/1/odds/snapshot"]:
                self.assertEqual(set(await system.pipelined(path, [{}] * 900, "127.8.3.1")), {429, 502}, path)
                self.assertEqual(set(await system.pipelined(path, [{}] * 50, "127.8.3.2")), {502}, path)


if __name__ == "__main__":
    unittest.main()
