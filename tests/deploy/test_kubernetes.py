"""Checks k8s/, rendered by kubectl's kustomize, against the published schemas and against the services' own --help."""

import base64, functools, re, shutil, tempfile, unittest
from pathlib import Path

import kubernetes_validate
import yaml
from cloudcoil.models.prometheus_operator import v1 as prometheus_operator

from common import ROOT, TOOLS, is_setting, make_secrets, port, run, seconds, settings

# The last one is `production` with the commented lines of its file enabled.
OVERLAYS = ["dev", "production", "production with traces"]
SERVICES = ["gateway", "publisher"]
COMPONENT = "app.kubernetes.io/component"
# The oldest version that has every feature in use (a preStop sleep without a feature gate), and the newest with schemas.
VERSIONS = ["1.30", "1.34", kubernetes_validate.latest_version()]


@functools.cache
def secrets():
    """Returns the secrets with which the overlay `dev` is rendered, by file name."""
    with tempfile.TemporaryDirectory() as directory:
        return {file.name: file.read_bytes() for file in make_secrets(directory).iterdir()}


@functools.cache
def rendered(overlay):
    """Returns the objects of an overlay."""
    directory, *with_traces = overlay.split(" ", 1)
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary, "k8s")
        shutil.copytree(ROOT / "k8s", copy, ignore=shutil.ignore_patterns("secrets"))
        (copy / "overlays/dev/secrets").mkdir()
        for name, content in secrets().items():
            (copy / "overlays/dev/secrets" / name).write_bytes(content)
        if with_traces:
            file = copy / "overlays" / directory / "kustomization.yaml"
            file.write_text(re.sub(r"(?m)^# (components:|  - \.\./\.\./components/)", r"\1", file.read_text()))
        text = run(TOOLS / "kubectl", "kustomize", copy / "overlays" / directory)
    return list(yaml.safe_load_all(text))


def of_kind(overlay, kind):
    return {item["metadata"]["name"]: item for item in rendered(overlay) if item["kind"] == kind}


def pods(overlay):
    """Returns the pod template of each Deployment, by name."""
    return {name: item["spec"]["template"] for name, item in of_kind(overlay, "Deployment").items()}


def container(pod):
    """Returns a pod's only container."""
    (only,) = pod["spec"]["containers"]
    return only


def selects(selector, labels):
    """Returns whether a selector matches labels."""
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", expression
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


class Shape(unittest.TestCase):
    def test_every_object_matches_the_published_schemas(self):
        for overlay in OVERLAYS:
            for item in rendered(overlay):
                if not item["apiVersion"].startswith("monitoring.coreos.com/"):
                    for version in VERSIONS:
                        with self.subTest(overlay=overlay, kind=item["kind"], name=item["metadata"]["name"], version=version):
                            kubernetes_validate.validate(item, version, strict=True)

    def test_objects_for_prometheus_operator_match_its_models(self):
        found = 0
        for item in rendered("production"):
            if item["apiVersion"].startswith("monitoring.coreos.com/"):
                model = getattr(prometheus_operator, item["kind"]).model_validate(item)
                # The dump of a model lacks members that the model does not know.
                self.assertEqual(model.model_dump(mode="json", by_alias=True, exclude_unset=True), item)
                found += 1
        self.assertGreaterEqual(found, 1)

    def test_every_object_is_in_one_namespace_that_allows_only_restricted_pods(self):
        for overlay in OVERLAYS:
            ((name, namespace),) = of_kind(overlay, "Namespace").items()
            for mode in ["enforce", "audit", "warn"]:
                self.assertEqual(namespace["metadata"]["labels"][f"pod-security.kubernetes.io/{mode}"], "restricted")
            for item in rendered(overlay):
                if item["kind"] != "Namespace":
                    self.assertEqual(item["metadata"].get("namespace"), name, item["metadata"]["name"])

    def test_pods_are_restricted_and_have_limits(self):
        for overlay in OVERLAYS:
            for name, pod in pods(overlay).items():
                spec, only = pod["spec"], container(pod)
                self.assertIs(spec["automountServiceAccountToken"], False, name)
                self.assertIs(spec["enableServiceLinks"], False, name)
                self.assertIs(spec["securityContext"]["runAsNonRoot"], True, name)
                self.assertGreater(spec["securityContext"]["runAsUser"], 0, name)
                self.assertEqual(spec["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"}, name)
                self.assertEqual(only["securityContext"], {
                    "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}, name)
                self.assertEqual(set(only["resources"]["requests"]), {"cpu", "memory"}, name)
                self.assertIn("memory", only["resources"]["limits"], name)
                self.assertRegex(only["image"], r":\w[\w.-]*$", name)
                self.assertNotRegex(only["image"], r":latest$", name)
        for account in of_kind("production", "ServiceAccount").values():
            self.assertIs(account["automountServiceAccountToken"], False)
        self.assertEqual(set(of_kind("production", "ServiceAccount")),
                         {pod["spec"]["serviceAccountName"] for pod in pods("production").values()})

    def test_images_run_as_the_user_of_the_dockerfile(self):
        user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "docker/Dockerfile").read_text(), re.M)
        for service in SERVICES:
            context = pods("production")[service]["spec"]["securityContext"]
            self.assertEqual((context["runAsUser"], context["runAsGroup"]), tuple(map(int, user.groups())))


class Names(unittest.TestCase):
    """Names that refer to settings, secrets, ports and other objects."""

    def test_every_environment_variable_is_a_setting(self):
        for overlay in OVERLAYS:
            for service in SERVICES:
                only = container(pods(overlay)[service])
                names = [variable["name"] for variable in only["env"]]
                for source in only.get("envFrom", []):
                    names += of_kind(overlay, "ConfigMap")[source["configMapRef"]["name"]]["data"]
                for name in names:
                    self.assertTrue(is_setting(service, name), f"{overlay}: {service} has no setting {name}")
                # No secret, and no URL with a password, is outside an object of kind Secret.
                for name in names:
                    self.assertNotRegex(name, r"^(REDIS_URL|DATABASE_URL|.*SECRET|.*API_KEY)$")

    def test_every_secret_that_a_pod_reads_exists(self):
        readme = (ROOT / "k8s/README.md").read_text()
        for overlay in OVERLAYS:
            for name, pod in pods(overlay).items():
                (volume,) = [volume for volume in pod["spec"]["volumes"] if "secret" in volume]
                (mount,) = [mount for mount in container(pod)["volumeMounts"] if mount["name"] == volume["name"]]
                self.assertIs(mount["readOnly"], True)
                secret = volume["secret"]["secretName"]
                # Each key has the content of the file of its name. The files for Redis also have the service in their names.
                file_of = lambda key: {"redis_url": f"redis_{name}_url", "users.acl": "redis_users.acl"}.get(key, key)
                if overlay == "dev":
                    data = of_kind(overlay, "Secret")[secret]["data"]
                    for key, value in data.items():
                        self.assertEqual(base64.b64decode(value), secrets()[file_of(key)], f"{secret}: {key}")
                    keys = set(data)
                else:
                    # Operators make these Secrets with the commands of k8s/README.md.
                    command = re.search(rf"create secret generic {secret} .*?(?=\n\S)", readme, re.S)[0]
                    files = re.findall(r"--from-file=(?:([\w.]+)=)?secrets/(\S+)", command)
                    for key, file in files:
                        self.assertEqual(file, file_of(key or file), secret)
                        self.assertIn(file, secrets())
                    keys = {key or file for key, file in files}
                values = [variable["value"] for variable in container(pod).get("env", [])] + container(pod).get("args", [])
                read = {value.rsplit("/", 1)[1] for value in values if value.startswith("/run/secrets/")}
                self.assertTrue(all(value.startswith(mount["mountPath"] + "/") for value in values if "/run/secrets/" in value))
                self.assertEqual(read, keys, f"{overlay}: {name}")

    def test_selectors_match_exactly_the_intended_pods(self):
        for overlay in OVERLAYS:
            labels = {name: pod["metadata"]["labels"] for name, pod in pods(overlay).items()}
            for kind in ["Deployment", "Service", "PodDisruptionBudget", "PodMonitor", "NetworkPolicy"]:
                for name, item in of_kind(overlay, kind).items():
                    spec = item["spec"]
                    selector = spec.get("podSelector") if kind == "NetworkPolicy" else spec["selector"]
                    if kind == "Service":
                        selector = {"matchLabels": selector}
                    chosen = {pod for pod in labels if selects(selector, labels[pod])}
                    expected = {
                        "kmarket": set(SERVICES), "traces": set(SERVICES), "default-deny": set(labels), "names": set(labels),
                    }.get(name, {name})
                    self.assertEqual(chosen, expected, f"{overlay}: {kind} {name}")
            for name, pod in pods(overlay).items():
                for spread in pod["spec"].get("topologySpreadConstraints", []):
                    self.assertTrue(selects(spread["labelSelector"], labels[name]))

    def test_named_ports_exist_and_are_the_services_defaults(self):
        for overlay in OVERLAYS:
            ports = {name: {item["name"]: item["containerPort"] for item in container(pod)["ports"]} for name, pod in pods(overlay).items()}
            self.assertEqual(ports["gateway"], {"clients": port("gateway", "LISTEN"), "operators": port("gateway", "OPS_LISTEN")})
            self.assertEqual(ports["publisher"], {"admin": port("publisher", "LISTEN"), "operators": port("publisher", "OPS_LISTEN")})
            for name, service in of_kind(overlay, "Service").items():
                for item in service["spec"]["ports"]:
                    self.assertIn(item["targetPort"], ports[name])
            for name, pod in pods(overlay).items():
                for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
                    for how in container(pod).get(probe, {}).values():
                        if isinstance(how, dict):
                            self.assertIn(how["port"], ports[name])
            for name, policy in of_kind(overlay, "NetworkPolicy").items():
                for rule in policy["spec"].get("ingress", []):
                    for item in rule["ports"]:
                        self.assertIn(item["port"], ports[name])
            for ingress in of_kind(overlay, "Ingress").values():
                for path in ingress["spec"]["rules"][0]["http"]["paths"]:
                    backend = path["backend"]["service"]
                    service = of_kind(overlay, "Service")[backend["name"]]
                    self.assertIn(backend["port"]["name"], [item["name"] for item in service["spec"]["ports"]])
        for endpoint in of_kind("production", "PodMonitor")["kmarket"]["spec"]["podMetricsEndpoints"]:
            self.assertEqual((endpoint["port"], endpoint["path"]), ("operators", "/metrics"))

    def test_the_autoscaler_counts_connections_and_leaves_headroom(self):
        (scaler,) = of_kind("production", "HorizontalPodAutoscaler").values()
        target = scaler["spec"]["scaleTargetRef"]
        self.assertIn(target["name"], of_kind("production", target["kind"]))
        self.assertNotIn("replicas", of_kind("production", "Deployment")[target["name"]]["spec"])
        (metric,) = scaler["spec"]["metrics"]
        names = (ROOT / "gateway/src/metrics.rs").read_text()
        self.assertIn(f'"{metric["pods"]["metric"]["name"]}"', names)
        most = int(self.gateway_settings("production")["MAX_CONNECTIONS"])
        average = int(metric["pods"]["target"]["averageValue"])
        # With the fewest pods, the clients of a lost pod must fit into the others.
        fewest = scaler["spec"]["minReplicas"]
        self.assertLessEqual(average * fewest / (fewest - 1), most)
        down, up = scaler["spec"]["behavior"]["scaleDown"], scaler["spec"]["behavior"]["scaleUp"]
        self.assertGreaterEqual(down["stabilizationWindowSeconds"], 600)
        self.assertLess(up["stabilizationWindowSeconds"], 60)
        drain = seconds(settings("gateway")["DRAIN_SECONDS"])
        self.assertTrue(all(policy["type"] == "Pods" and policy["periodSeconds"] > 2 * drain for policy in down["policies"]))

    def gateway_settings(self, overlay):
        (source,) = container(pods(overlay)["gateway"])["envFrom"]
        return of_kind(overlay, "ConfigMap")[source["configMapRef"]["name"]]["data"]

    def test_behind_an_ingress_gateways_trust_the_proxy_for_client_addresses(self):
        environment = self.gateway_settings("production")
        self.assertIn("TRUSTED_PROXIES", environment)
        self.assertNotIn("*", environment["ALLOWED_ORIGINS"])

    def test_alert_rules_are_those_of_docker_prometheus(self):
        files = {f"kmarket-{file.stem}": yaml.safe_load(file.read_text()) for file in (ROOT / "docker/prometheus/rules").glob("*.yml")}
        objects = {name: item["spec"] for name, item in of_kind("production", "PrometheusRule").items()}
        self.assertEqual(objects, files, "run k8s/make-rules")


class Lifecycle(unittest.TestCase):
    def test_the_grace_period_covers_the_drain(self):
        drain = {"gateway": seconds(settings("gateway")["DRAIN_SECONDS"]), "publisher": 20}
        for overlay in OVERLAYS:
            for service in SERVICES:
                pod = pods(overlay)[service]
                pause = container(pod)["lifecycle"]["preStop"]["sleep"]["seconds"]
                self.assertGreater(pause, 0)
                self.assertGreaterEqual(pod["spec"]["terminationGracePeriodSeconds"], pause + drain[service] + 5, service)

    def test_probes_use_the_right_routes(self):
        for service in SERVICES:
            only = container(pods("production")[service])
            paths = {probe: only[probe]["httpGet"]["path"] for probe in ["startupProbe", "livenessProbe", "readinessProbe"]}
            self.assertEqual(paths, {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"})
            # /readyz may take about one second.
            self.assertGreater(only["readinessProbe"]["timeoutSeconds"], 1)

    def test_an_update_removes_no_pod_before_its_replacement_is_ready(self):
        for service in SERVICES:
            rolling = of_kind("production", "Deployment")[service]["spec"]["strategy"]["rollingUpdate"]
            self.assertEqual(rolling, {"maxSurge": 1, "maxUnavailable": 0})
            self.assertEqual(of_kind("production", "PodDisruptionBudget")[service]["spec"]["maxUnavailable"], 1)


class Network(unittest.TestCase):
    def test_everything_is_closed_except_named_peers_and_ports(self):
        for overlay in OVERLAYS:
            policies = of_kind(overlay, "NetworkPolicy")
            deny = policies["default-deny"]["spec"]
            self.assertEqual((deny["podSelector"], deny["policyTypes"]), ({}, ["Ingress", "Egress"]))
            self.assertTrue({"ingress", "egress"}.isdisjoint(deny))
            for name, policy in policies.items():
                for direction, peers in [("ingress", "from"), ("egress", "to")]:
                    for rule in policy["spec"].get(direction, []):
                        self.assertTrue(rule[peers], name)
                        self.assertTrue(rule["ports"], name)
                        for peer in rule[peers]:
                            selectors = [peer.get("podSelector"), peer.get("namespaceSelector")]
                            self.assertTrue(any(selectors), name)

    def open_ports(self, overlay, name, direction):
        """Returns a policy's ports, each with the labels of its peers."""
        peers = {"ingress": "from", "egress": "to"}[direction]
        found = {}
        for rule in of_kind(overlay, "NetworkPolicy")[name]["spec"].get(direction, []):
            labels = [{**peer.get("namespaceSelector", {}).get("matchLabels", {}), **peer.get("podSelector", {}).get("matchLabels", {})}
                      for peer in rule[peers]]
            for item in rule["ports"]:
                found[item["port"]] = labels
        return found

    def test_exactly_the_needed_ports_are_open(self):
        prometheus = [{"kubernetes.io/metadata.name": "monitoring", "app.kubernetes.io/name": "prometheus"}]
        controller = [{"kubernetes.io/metadata.name": "ingress-nginx", "app.kubernetes.io/name": "ingress-nginx"}]
        redis = [{"app.kubernetes.io/name": "redis"}]
        for overlay in OVERLAYS:
            self.assertEqual(self.open_ports(overlay, "gateway", "ingress"), {"clients": controller, "operators": prometheus})
            self.assertEqual(self.open_ports(overlay, "publisher", "ingress"), {"admin": [{"kmarket/publishes": "true"}], "operators": prometheus})
            for service in SERVICES:
                has_postgres = overlay != "dev" and service == "publisher"
                postgres = {5432: [{"app.kubernetes.io/name": "postgresql"}]} if has_postgres else {}
                self.assertEqual(self.open_ports(overlay, service, "egress"), {6379: redis, 26379: redis, **postgres})
            self.assertEqual(set(self.open_ports(overlay, "names", "egress")), {53})
            self.assertEqual("traces" in of_kind(overlay, "NetworkPolicy"), overlay == "production with traces")
        self.assertTrue(selects({"matchLabels": redis[0]}, pods("dev")["redis"]["metadata"]["labels"]))

    def test_traces_may_reach_the_collector(self):
        overlay = "production with traces"
        ((number, (collector,)),) = self.open_ports(overlay, "traces", "egress").items()
        name, namespace = collector["app.kubernetes.io/name"], collector["kubernetes.io/metadata.name"]
        for service in SERVICES:
            (endpoint,) = [item["value"] for item in container(pods(overlay)[service])["env"] if item["name"] == "OTLP_ENDPOINT"]
            self.assertEqual(endpoint, f"http://{name}.{namespace}:{number}")

    def test_the_ingress_has_the_routes_of_nginx(self):
        routes = (ROOT / "docker/nginx/routes.conf").read_text()
        nginx = {(path, "Exact" if exact else "Prefix") for exact, path in re.findall(r"^location (= )?(/\S+) \{", routes, re.M)}
        (ingress,) = of_kind("production", "Ingress").values()
        (rule,) = ingress["spec"]["rules"]
        self.assertEqual({(path["path"], path["pathType"]) for path in rule["http"]["paths"]}, nginx)
        self.assertEqual(ingress["spec"]["tls"][0]["hosts"], [rule["host"]])
        notes = {name.split("/")[1]: value for name, value in ingress["metadata"]["annotations"].items()}
        for directive in ["proxy-read-timeout", "proxy-send-timeout"]:
            self.assertGreater(seconds(notes[directive]), seconds(settings("gateway")["HEARTBEAT_TIMEOUT"]))
        self.assertNotIn("non_idempotent", notes["proxy-next-upstream"])


if __name__ == "__main__":
    unittest.main()
