"""Checks that the settings, routes and ports named in documents and configuration exist. (Metrics: test_watching.py.)"""

import re, unittest

from common import ROOT, port, settings
from system import System

DOCUMENTS = [ROOT.glob("*.md"), ROOT.glob("docs/**/*.md"), ROOT.glob("k8s/*.md"), ROOT.glob("sdk/*.md")]
CONFIGURATION = [ROOT.glob("docker-compose.yml"), ROOT.glob("docker/**/*"), ROOT.glob("k8s/**/*.yaml"), ROOT.glob("k8s/**/*.env")]
SECRETS = ("docker/secrets", "docker/tls", "k8s/overlays/dev/secrets")
# Names that are not settings of the services, and the file that uses each. None: of Linux, Rust, glibc or another image.
OTHER_NAMES = {
    "RUST_LOG": "shared/service/src/telemetry.rs", "KMARKET_COMMIT": "shared/service/src/telemetry.rs",
    "FAULT_SEED": "tests/it/faults/fault_sequences.rs", "FAULT_SEEDS": "tests/it/faults/fault_sequences.rs",
    "FAULT_SOAK": "tests/it/faults/fault_sequences.rs", "UPDATE_OPENAPI": "tests/it/operate/openapi.rs",
    "UPDATE_RECORDING": "tests/it/recorded/recording.rs",
    "GATEWAY_1": "docker/nginx/host.conf.template", "GATEWAY_2": "docker/nginx/host.conf.template",
    "LISTEN_HTTPS": "docker/nginx/host.conf.template", "TLS_CERTIFICATE": "docker/nginx/host.conf.template",
    "TLS_KEY": "docker/nginx/host.conf.template", "REDIS_ADDRESS": "docker/make-secrets",
    "POSTGRES_ADDRESS": "docker/make-secrets", "GATEWAY_PASSWORD": "docs/operations.md",
    "PUBLISHER_PASSWORD": "docs/operations.md", "GATEWAY_URL": "docs/tutorial.zh-CN.md",
    "RENDER_EVERY_MS": "docs/tutorial.zh-CN.md", "ADMIN_TOKEN": "shared/commands/src/override_command.rs",
    "ADMIN_TOKEN_FILE": "shared/commands/src/override_command.rs",
    "RUSTC_BOOTSTRAP": None, "MALLOC_ARENA_MAX": None, "SSL_CERT_FILE": None, "TCP_NOTSENT_LOWAT": None,
    "NGINX_ENVSUBST_OUTPUT_DIR": None,
}
OF_OTHER_IMAGES = r"(GF|POSTGRES)_\w+"
COMMANDS = {
    "gateway": ["check", "token", "inspect", "tail", "probe"],
    "publisher": ["check", "token", "inspect", "override", "replay", "probe"],
}
# Ports of Redis, Sentinel, Postgres, a trace collector, and other services of docker-compose.yml.
OTHER_PORTS = {6379, 26379, 5432, 4318, 8443, 9090, 3000}
# Ports that the examples of one document use.
OWN_PORTS = {
    "README.md": {6390, 7000, 7001, 8082, 9182}, "README.zh-CN.md": {6390, 7000, 7001, 8082, 9182},
    "docs/tutorial.zh-CN.md": {8088}, "docs/operations.md": {7000, 7001},
}


def texts(*patterns):
    """Returns the text of every file, by path."""
    found = {}
    for pattern in patterns:
        for file in pattern:
            path = str(file.relative_to(ROOT))
            if file.is_file() and not path.startswith(SECRETS):
                found[path] = file.read_text()
    return found


class Names(unittest.IsolatedAsyncioTestCase):
    @classmethod
    def setUpClass(cls):
        cls.texts = texts(*DOCUMENTS, *CONFIGURATION)
        assert len(cls.texts) > 30, cls.texts.keys()

    def test_settings(self):
        known = set()
        for service, commands in COMMANDS.items():
            known |= set(settings(service)).union(*(settings(service, command) for command in commands))
        known |= {f"{name}_FILE" for name in known}
        known |= set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.M))
        for code in [*(ROOT / "shared/protocol/src").glob("*.rs"), ROOT / "shared/service/src/http/ops.rs"]:
            known |= set(re.findall(r'"([A-Z_0-9]+)"', code.read_text()))
        for name, file in OTHER_NAMES.items():
            self.assertTrue(file is None or name in (ROOT / file).read_text(), f"{name} is not in {file}")
        for path, text in self.texts.items():
            for name in re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", text):
                if name not in OTHER_NAMES and not re.fullmatch(OF_OTHER_IMAGES, name):
                    self.assertIn(name, known, path)

    async def test_routes(self):
        found = {}
        for path, text in self.texts.items():
            for method, route in re.findall(
                r"(?:\b(GET|POST|PUT|PATCH|DELETE) )?(?<![\w.:/~*}])(/(?:api|admin|ws|console|livez|readyz|metrics)\b[\w/{}.-]*)", text
            ):
                found.setdefault((method or None, route.rstrip(".")), path)
        self.assertGreater(len(found), 20)
        with System() as system:
            ports = [system.ports[name] for name in ["gateway-1", "gateway-1-ops", "publisher", "publisher-ops"]]
            for (method, route), path in found.items():
                # `/admin` alone is only in nginx's rules, for everything below it.
                target = "/admin/markets" if route in ("/admin", "/admin/") else route.replace("{id}", "1")
                statuses = [
                    (await system.request(each, target, port=number))[0]
                    for number in ports for each in ([method] if method else ["GET", "POST"])
                ]
                self.assertTrue(set(statuses) - {404, 405}, f"{path}: no service has {method or ''} {route}")

    def test_ports(self):
        known = {port(service, name) for service in COMMANDS for name in ["LISTEN", "OPS_LISTEN"]} | OTHER_PORTS
        for path, text in self.texts.items():
            for number in re.findall(r"(?:localhost|\b[a-z][\w.-]*|\d\.\d+|\]):(\d{4,5})\b(?![:.])", text):
                self.assertIn(int(number), known | OWN_PORTS.get(path, set()), path)


if __name__ == "__main__":
    unittest.main()
