"""Tests metrics, dashboard and alerts with a real Prometheus, which scrapes a real system under a little traffic."""

import asyncio, json, math, re, subprocess, tempfile, unittest
from pathlib import Path

import yaml

from common import BINARIES, ROOT, run
from system import Ports, System, eventually, wait_for

RULES = ROOT / "docker/prometheus/rules/kmarket.yml"
DASHBOARD = ROOT / "docker/grafana/dashboards/kmarket.json"
NAME = r"\b(?:gateway|publisher|process)_[a-z_]+"
# Alerts whose expressions have no value while the system is healthy, and why.
EMPTY = {"KMarketServiceAbsent": "it looks for absent services, and none is absent"}


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts():
    return [rule for rule in rules() if "alert" in rule]


def dashboard():
    return json.loads(DASHBOARD.read_text())


def panels():
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def exported(scrape):
    """Returns the metrics of a scrape: name to type."""
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", scrape, re.M))


def named(expression, types):
    """Yields the metrics that an expression names. An expression names a histogram's series, such as its buckets."""
    for name in re.findall(NAME, expression):
        base = re.sub("_(bucket|sum|count)$", "", name)
        yield base if types.get(base) == "histogram" else name


def documented():
    """Returns the metrics of docs/operations.md: name to (type, labels)."""
    table = re.findall(rf"^\| `({NAME})` \| (\w+) \| (.*?) \|", (ROOT / "docs/operations.md").read_text(), re.M)
    return {name: (kind, labels) for name, kind, labels in table}


class Rules(unittest.TestCase):
    def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(self):
        run("promtool", "check", "rules", RULES)
        text = (ROOT / "tests/deploy/alerts.yml").read_text()
        with tempfile.TemporaryDirectory() as directory:
            tests = Path(directory) / "alerts.yml"
            tests.write_text(text.replace("[RULES]", f"[{RULES}]"))
            run("promtool", "test", "rules", tests)
        cases = [case for test in yaml.safe_load(text)["tests"] for case in test["alert_rule_test"]]
        names = {alert["alert"] for alert in alerts()}
        self.assertEqual({case["alertname"] for case in cases if case.get("exp_alerts")}, names)
        self.assertEqual({case["alertname"] for case in cases if not case.get("exp_alerts")}, names)

    def test_every_alert_has_a_severity_a_description_and_a_runbook(self):
        for alert in alerts():
            with self.subTest(alert["alert"]):
                self.assertIn(alert["labels"]["severity"], ["page", "ticket"])
                self.assertEqual(set(alert["annotations"]), {"summary", "description", "runbook"})
                page, _, anchor = alert["annotations"]["runbook"].partition("#")
                headings = re.findall("^#+ (.*)$", (ROOT / page).read_text(), re.M)
                # GitHub and GitLab make anchors from headings in this way.
                anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-"): heading for heading in headings}
                self.assertIn(anchor, anchors)
                section = (ROOT / page).read_text().split(f"### {anchors[anchor]}\n")[1].split("\n#")[0]
                self.assertIn(f"`{alert['alert']}`", section)


class Dashboard(unittest.TestCase):
    def test_every_panel_has_a_description_and_overlaps_no_other(self):
        board = dashboard()
        self.assertEqual(board["uid"], "kmarket")
        ids = [panel["id"] for panel in board["panels"]]
        self.assertEqual(len(ids), len(set(ids)))
        taken = set()
        for panel in board["panels"]:
            with self.subTest(panel["title"]):
                self.assertTrue(panel["title"])
                area = panel["gridPos"]
                cells = {(area["x"] + x, area["y"] + y) for x in range(area["w"]) for y in range(area["h"])}
                self.assertLessEqual(area["x"] + area["w"], 24)
                self.assertFalse(cells & taken, "it overlaps another panel")
                taken |= cells
                if panel["type"] != "row":
                    self.assertGreater(len(panel["description"].split()), 2)
                    sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
                    self.assertEqual({source["uid"] for source in sources}, {"${datasource}"})

    def test_the_dashboard_uses_the_provisioned_prometheus(self):
        provisioned = yaml.safe_load((ROOT / "docker/grafana/provisioning/datasources/prometheus.yml").read_text())
        variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
        self.assertEqual(variables["datasource"]["current"]["value"], provisioned["datasources"][0]["uid"])


class Watched(unittest.IsolatedAsyncioTestCase):
    @classmethod
    def setUpClass(cls):
        cls.system = System()
        cls.addClassCleanup(cls.system.stop)
        # Scrapes from before any traffic.
        cls.fresh = {name: asyncio.run(cls.scrape(name)) for name in ["gateway-1", "publisher"]}
        cls.system.start_prometheus("1s")

    @classmethod
    async def scrape(cls, name):
        _, _, text = await cls.system.request("GET", "/metrics", port=cls.system.ports[name + "-ops"])
        return text.decode()

    async def asyncSetUp(self):
        self.traffic = asyncio.create_task(self.live())

    async def asyncTearDown(self):
        self.assertFalse(self.traffic.done() and self.traffic.exception())
        self.traffic.cancel()

    async def live(self):
        """Runs clients that connect, resume, get updates and disconnect, until the test ends."""
        market = 4001
        token = await self.system.token("watched")
        seq = await self.system.override(market, 1.85)
        while True:
            # nginx usually sends one to each gateway.
            for _ in range(2):
                async with await self.system.connect(token) as socket:
                    await socket.send(json.dumps({"type": "resume", "offsets": {str(market): seq}}))
                    await socket.recv()
                    seq = await self.system.override(market, 1.90)
                    while json.loads(await socket.recv()).get("seq") != seq:
                        pass
            await self.system.request("GET", f"/api/markets/{market}/odds/snapshot")
            await asyncio.sleep(0.5)

    async def expect_data(self, what, expression):
        has_data = lambda: any(not math.isnan(value) for _, value in self.system.query(expression) or [])
        await asyncio.to_thread(wait_for, has_data, f"{what} has data: {expression}", self.system.processes["prometheus"])

    async def test_every_panel_has_data(self):
        for panel in panels():
            for target in panel["targets"]:
                expression = target["expr"].replace("$__rate_interval", "30s").replace("$instance", ".*")
                self.assertNotIn("$", expression)
                await self.expect_data(panel["title"], expression)
        variable = next(variable for variable in dashboard()["templating"]["list"] if variable["name"] == "instance")
        await self.expect_data("instance", re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"])[1])

    async def test_every_rule_has_data_and_no_alert_fires(self):
        for rule in rules():
            name = rule.get("alert") or rule["record"]
            if name in EMPTY:
                self.assertEqual(await asyncio.to_thread(self.system.query, rule["expr"]), [], EMPTY[name])
            elif "alert" in rule:
                # With `bool` a comparison that is false has a value too.
                await self.expect_data(name, re.sub(r"(==|>)", r"\1 bool", rule["expr"]))
            else:
                await self.expect_data(name, rule["expr"])
                await self.expect_data(name, name)
        self.assertEqual(await asyncio.to_thread(self.system.query, "ALERTS"), [])

    async def test_metrics_follow_the_naming_rules_of_prometheus(self):
        for name in ["gateway-1", "publisher"]:
            run("promtool", "check", "metrics", input=await self.scrape(name))
        held = Ports(2)
        self.addCleanup(held.close)
        clients, operators = held.numbers
        self.system.ports["embedded-ops"] = operators
        environment = {"LISTEN": f"127.0.0.1:{clients}", "OPS_LISTEN": f"127.0.0.1:{operators}"}
        self.system.start("embedded", [BINARIES / "gateway"], environment)
        probe = lambda: subprocess.run([BINARIES / "gateway", "probe"], env=environment, capture_output=True).returncode == 0
        await asyncio.to_thread(wait_for, probe, "the embedded gateway is ready", self.system.processes["embedded"])
        embedded = await self.scrape("embedded")
        run("promtool", "check", "metrics", input=embedded)
        self.assertLessEqual({"gateway_build_info", "publisher_build_info"}, set(exported(embedded)))

    async def test_the_documented_metrics_are_those_that_exist(self):
        # Some metrics appear only after traffic.
        async def look():
            types = exported(await self.scrape("gateway-1") + await self.scrape("publisher"))
            return types, set(documented()) <= set(types)

        types = await eventually(look, "every documented metric")
        self.assertEqual({name: kind for name, (kind, _) in documented().items() if name in types}, types)
        for source, text in {
            "rules": RULES.read_text(), "dashboard": DASHBOARD.read_text(), "docs": (ROOT / "docs/operations.md").read_text(),
        }.items():
            self.assertLessEqual(set(named(text, types)), set(types), source)

    async def test_counters_with_known_labels_exist_before_any_traffic(self):
        fresh = "".join(self.fresh.values())
        for name, (_, labels) in documented().items():
            for label, values in re.findall(r"`(\w+)`: ([\w, ]+)", labels):
                if " " not in values.replace(", ", ""):
                    for value in values.split(", "):
                        self.assertRegex(fresh, rf'(?m)^{name}\{{{label}="{value}"\}} \d+$')
        # Prometheus sees an increase only of a series that existed before.
        for alert in alerts():
            for name, matcher in re.findall(rf"increase\(({NAME})(\{{.*?\}})?\[", alert["expr"]):
                label, values = re.fullmatch(r'\{(\w+)=~?"(.*)"\}', matcher).groups() if matcher else (None, "")
                for value in values.split("|"):
                    self.assertIn(f'{name}{{{label}="{value}"}} ' if label else f"\n{name}", fresh)


if __name__ == "__main__":
    unittest.main()
