"""Checks the Dockerfile and docker-compose.yml, without a container engine."""

import fnmatch, os, re, shutil, subprocess, tempfile, unittest
from pathlib import Path

import yaml
from dockerfile_parse import DockerfileParser

from common import ROOT, TOOLS, compose, is_setting, make_secrets, port, run, seconds, settings, usage

SERVICES = ["gateway", "publisher"]
# The services that other machines may reach. The others listen on loopback or not at all.
PUBLIC = {"nginx"}


def instructions():
    """Returns the Dockerfile's instructions by stage, as (instruction, value), and the base image of each stage."""
    parser = DockerfileParser(path=str(ROOT / "docker"))
    stages, images = {}, {}
    for line in parser.structure:
        if line["instruction"] == "FROM":
            image, name = re.fullmatch(r"(\S+) AS (\S+)", line["value"]).groups()
            stages[name], images[name] = [], image
        elif line["instruction"] != "COMMENT":
            stages[name].append((line["instruction"], line["value"]))
    return stages, images


def ignored(path, patterns):
    """Returns whether .dockerignore excludes a path. A pattern that matches a directory excludes everything in it."""
    parts = Path(path).parts
    prefixes = ["/".join(parts[: length + 1]) for length in range(len(parts))]
    return any(
        fnmatch.fnmatch(prefix, pattern) or fnmatch.fnmatch("/" + prefix, pattern.replace("**", "*"))
        for prefix in prefixes
        for pattern in patterns
        if pattern.startswith("**") or pattern.count("/") == prefix.count("/")
    )


class Images(unittest.TestCase):
    def setUp(self):
        self.stages, self.images = instructions()

    def values(self, stage, instruction):
        return [value for name, value in self.stages[stage] if name == instruction]

    def test_hadolint_finds_nothing(self):
        run(TOOLS / "hadolint", ROOT / "docker/Dockerfile")

    def test_the_compiler_is_the_workspaces_rust_version(self):
        version = re.search(r'rust-version = "(.*)"', (ROOT / "Cargo.toml").read_text())[1]
        self.assertRegex(self.images["build"], rf"^rust:{re.escape(version)}(\.\d+)?-trixie$")
        # The glibc of the same Debian.
        self.assertRegex(self.images["runtime"], r"^gcr\.io/distroless/cc-debian13:nonroot$")

    def test_a_service_runs_as_a_number_that_is_not_root(self):
        self.assertEqual([self.images[service] for service in SERVICES], ["runtime", "runtime"])
        for stage in ["runtime", *SERVICES]:
            for user in self.values(stage, "USER"):
                self.assertRegex(user, r"^[1-9]\d*:[1-9]\d*$")
        self.assertEqual(len(self.values("runtime", "USER")), 1)

    def test_environment_variables_are_settings_and_ports_are_the_services_defaults(self):
        for service in SERVICES:
            pairs = [pair.split("=", 1) for value in self.values(service, "ENV") for pair in value.split()]
            for name, value in pairs:
                self.assertTrue(is_setting(service, name), f"{service} has no setting {name}")
            environment = dict(pairs)
            exposed = {int(number) for value in self.values(service, "EXPOSE") for number in value.split()}
            for name in ["LISTEN", "OPS_LISTEN"]:
                self.assertEqual(environment[name], f"0.0.0.0:{port(service, name)}")
                self.assertIn(port(service, name), exposed)
            self.assertEqual(len(exposed), 2)

    def test_commands_need_no_shell_and_name_copied_binaries(self):
        for service in SERVICES:
            self.assertEqual(self.values(service, "ENTRYPOINT"), [f'["/{service}"]'])
            self.assertEqual(self.values(service, "COPY"), [f"--from=build /out/{service} /{service}"])
            (health,) = self.values(service, "HEALTHCHECK")
            self.assertRegex(health, rf'CMD \["/{service}", "probe"\]$')
            self.assertIn(f"  {service} probe", usage(service))

    def test_labels_have_the_workspaces_version_and_licence(self):
        manifest = (ROOT / "Cargo.toml").read_text()
        labels = " ".join(self.values("runtime", "LABEL"))
        for label, key in [("version", "version"), ("licenses", "license")]:
            value = re.search(rf'^{key} = "(.*)"', manifest, re.M)[1]
            self.assertRegex(labels, rf'org\.opencontainers\.image\.{label}="?{re.escape(value)}"?')

    def test_the_build_context_has_every_file_that_cargo_reads_and_no_secret(self):
        patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
        for secret in [".env", "docker/secrets/jwt_secret", "docker/tls/tls.key", ".git/config", "target/debug/gateway"]:
            self.assertTrue(ignored(secret, patterns), secret)
        tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
        sent = [path for path in tracked if not ignored(path, patterns)]
        with tempfile.TemporaryDirectory() as context:
            for path in sent:
                if (ROOT / path).is_file():
                    target = Path(context, path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(ROOT / path, target)
            run("cargo", "metadata", "--locked", "--no-deps", "--format-version", "1", cwd=context)
            self.assertTrue(Path(context, ".cargo/config.toml").exists(), "jemalloc's settings")
            for source in Path(context).glob("*/src/**/*.rs"):
                for included in re.findall(r'include_(?:str|bytes)!\("(.*?)"\)', source.read_text()):
                    self.assertTrue((source.parent / included).exists(), f"{source} includes {included}")


class Compose(unittest.TestCase):
    def setUp(self):
        self.services = compose()["services"]

    def test_nothing_starts_without_env_and_secrets(self):
        def up(env_file, secrets):
            return subprocess.run(
                [TOOLS / "docker-compose", "--env-file", env_file, "config"], cwd=ROOT, text=True,
                env={"PATH": os.environ["PATH"], **secrets}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )

        refused = up("/dev/null", {})
        self.assertNotEqual(refused.returncode, 0)
        self.assertIn("see .env.example", refused.stdout)
        # Each variable of .env.example is required, and docker-compose.yml uses no others.
        example = (ROOT / ".env.example").read_text()
        named = set(re.findall(r"^(\w+)=", example, re.M))
        used = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
        required = set(re.findall(r"\$\{(\w+):\?see \.env\.example\}", (ROOT / "docker-compose.yml").read_text()))
        self.assertEqual(named, used)
        self.assertEqual(used, required)
        # No file contains the value of a secret.
        for name, secret in compose()["secrets"].items():
            self.assertEqual(Path(secret["file"]).name, name)
        self.assertNotRegex(example, r"(?i)(password|secret|key)=")

    def test_secrets_are_made_once_and_differ(self):
        with tempfile.TemporaryDirectory() as directory:
            secrets = make_secrets(directory)
            first = {path.name: path.read_text() for path in secrets.iterdir()}
            self.assertEqual(set(first), set(compose()["secrets"]))
            self.assertEqual(len(set(first.values())), len(first))
            for name, secret in first.items():
                self.assertRegex(secret, "[0-9a-f]{64}", name)
            self.assertEqual(os.stat(directory).st_mode & 0o077, 0)
            make_secrets(directory)
            self.assertEqual(first, {path.name: path.read_text() for path in secrets.iterdir()})
            for name in ["redis_gateway_url", "redis_publisher_url"]:
                password = re.search(r":([0-9a-f]{64})@redis:6379$", first[name])[1]
                self.assertNotIn(password, first["redis_users.acl"])

    def test_every_environment_variable_is_a_setting(self):
        for name, service in self.services.items():
            kind = name.split("-")[0]
            if kind in SERVICES:
                for variable in service["environment"]:
                    self.assertTrue(is_setting(kind, variable), f"{name}: {variable}")

    def test_secrets_are_mounted_files(self):
        for name, service in self.services.items():
            mounted = {"/run/secrets/" + secret["source"] for secret in service.get("secrets", [])}
            words = [*map(str, (service.get("environment") or {}).values()), *(service.get("command") or []),
                     *service.get("healthcheck", {}).get("test", [])]
            used = set(re.findall(r"/run/secrets/[\w.]+", " ".join(words)))
            self.assertEqual(mounted, used, name)
            for variable, value in (service.get("environment") or {}).items():
                if re.search(r"PASSWORD|SECRET|_KEY\b|(REDIS|DATABASE)_URL", variable) and variable != "TLS_KEY":
                    self.assertRegex(variable, r"_FILE$", name)
                    self.assertTrue(value.startswith("/run/secrets/"), name)

    def test_only_nginx_can_be_reached_from_other_machines(self):
        for name, service in self.services.items():
            for published in service.get("ports", []):
                if name not in PUBLIC:
                    self.assertEqual(published.get("host_ip"), "127.0.0.1", name)
            outside = [net for net in service.get("networks", {}) if not compose()["networks"][net].get("internal")]
            self.assertEqual(bool(outside), bool(service.get("ports")) or name == "grafana", name)
        self.assertTrue(PUBLIC <= set(self.services))
        # Only the services that use Redis share its network.
        users = {name for name, service in self.services.items() if "data" in (service.get("networks") or {})}
        self.assertEqual(users, {"redis", "postgres", "publisher", "gateway-1", "gateway-2"})

    def test_every_service_is_hardened_and_has_limits(self):
        for name, service in self.services.items():
            self.assertIs(service.get("read_only"), True, name)
            self.assertEqual(service.get("cap_drop"), ["ALL"], name)
            self.assertNotIn("cap_add", service, name)
            self.assertNotIn("privileged", service, name)
            self.assertEqual(service.get("security_opt"), ["no-new-privileges:true"], name)
            limits = service["deploy"]["resources"]["limits"]
            self.assertTrue(limits["cpus"] and int(limits["memory"]), name)
            if "build" not in service and name != "certificate":
                self.assertRegex(service["user"], r"^[1-9]\d*:\d+$", name)

    def test_every_image_has_a_version(self):
        for name, service in self.services.items():
            if "build" in service:
                self.assertEqual(service["build"]["target"], name.split("-")[0])
                self.assertIn(service["build"]["target"], instructions()[0])
                self.assertTrue(Path(service["build"]["context"], service["build"]["dockerfile"]).exists())
            else:
                self.assertRegex(service["image"], r":v?\d+[.\d]*(-\w+)?$", name)

    def test_every_service_waits_for_the_services_it_needs(self):
        for name, service in self.services.items():
            for needed, how in service.get("depends_on", {}).items():
                has_health = "healthcheck" in self.services[needed] or "build" in self.services[needed]
                expected = "service_healthy" if has_health else "service_completed_successfully"
                self.assertEqual(how["condition"], expected, f"{name} on {needed}")
        order = {name: set(service.get("depends_on", {})) for name, service in self.services.items()}
        self.assertEqual(order["gateway-1"], {"redis"})
        self.assertEqual(order["publisher"], {"redis", "postgres"})
        self.assertLessEqual({"gateway-1", "gateway-2", "certificate"}, order["nginx"])
        self.assertLessEqual({"gateway-1", "gateway-2", "publisher"}, order["prometheus"])
        for name, service in self.services.items():
            if name != "certificate" and "build" not in service:
                self.assertIn("healthcheck", service, name)

    def test_mounted_files_exist(self):
        for name, service in self.services.items():
            for volume in service.get("volumes", []):
                if volume["type"] == "bind" and not volume["source"].endswith("/docker/tls"):
                    self.assertTrue(Path(volume["source"]).exists(), f"{name}: {volume['source']}")
                    self.assertIs(volume.get("read_only"), True, f"{name}: {volume['source']}")

    def test_the_grace_period_is_longer_than_the_drain(self):
        drain = seconds(settings("gateway")["DRAIN_SECONDS"])
        for name in ["gateway-1", "gateway-2"]:
            self.assertGreaterEqual(seconds(self.services[name]["stop_grace_period"]), drain + 5)
        self.assertGreaterEqual(seconds(self.services["publisher"]["stop_grace_period"]), 25)

    def test_gateways_trust_only_nginx_as_a_proxy(self):
        nginx = self.services["nginx"]
        for name, variable in [("gateway-1", "GATEWAY_1"), ("gateway-2", "GATEWAY_2")]:
            gateway = self.services[name]
            self.assertEqual(gateway["environment"]["TRUSTED_PROXIES"], nginx["networks"]["front"]["ipv4_address"])
            address = f"{gateway['networks']['front']['ipv4_address']}:{port('gateway', 'LISTEN')}"
            self.assertEqual(nginx["environment"][variable], address)

    def test_limits_of_files_and_ports_allow_every_socket(self):
        nginx_conf = (ROOT / "docker/nginx/nginx.conf").read_text()
        gateways = [self.services[name] for name in self.services if name.startswith("gateway-")]
        sockets = sum(int(gateway["environment"]["MAX_CONNECTIONS"]) for gateway in gateways)
        connections = int(re.search(r"worker_connections (\d+);", nginx_conf)[1])
        files = int(re.search(r"worker_rlimit_nofile (\d+);", nginx_conf)[1])
        self.assertGreaterEqual(connections, 2 * sockets + 4096)
        self.assertGreaterEqual(files, connections + 4096)
        self.assertGreaterEqual(self.services["nginx"]["ulimits"]["nofile"], files)
        for gateway in gateways:
            ulimit, most = gateway["ulimits"]["nofile"], int(gateway["environment"]["MAX_CONNECTIONS"])
            # A gateway keeps a fifth of its files, at most 4416, for everything else.
            self.assertGreaterEqual(ulimit - min(ulimit // 5, 4416), most)
        low, high = map(int, self.services["nginx"]["sysctls"]["net.ipv4.ip_local_port_range"].split())
        self.assertGreater(high - low, max(int(gateway["environment"]["MAX_CONNECTIONS"]) for gateway in gateways))

    def test_prometheus_scrapes_every_instance_at_its_operators_port(self):
        for service in SERVICES:
            targets = yaml.safe_load((ROOT / f"docker/prometheus/targets/{service}.yml").read_text())
            expected = {f"{name}:{port(service, 'OPS_LISTEN')}" for name in self.services if name.split("-")[0] == service}
            self.assertEqual({target for group in targets for target in group["targets"]}, expected)
            for target in expected:
                self.assertIn("operators", self.services[target.split(":")[0]]["networks"])

    def test_grafana_finds_prometheus_and_its_dashboards(self):
        provisioning = ROOT / "docker/grafana/provisioning"
        (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
        self.assertEqual(source["url"], "http://prometheus:9090")
        self.assertEqual((source["uid"], source["type"]), ("prometheus", "prometheus"))
        self.assertIn("monitoring", self.services["prometheus"]["networks"])
        (provider,) = yaml.safe_load((provisioning / "dashboards/kmarket.yml").read_text())["providers"]
        mounted = {volume["target"] for volume in self.services["grafana"]["volumes"]}
        self.assertIn(provider["options"]["path"], mounted)


if __name__ == "__main__":
    unittest.main()
