"""The chart: every scenario of ci/ renders, is valid for Kubernetes, and keeps its promises; wrong values are refused.

Runs in .venv-ops (`make check`): Helm's own code without a cluster, and Kubernetes' schemas, strictly.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, HelmError

CHART = Path(__file__).resolve().parent.parent / "beholder"
SCENARIOS = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}
EXTENSIONS = {"HTTPRoute", "PodMonitor", "PrometheusRule", "ScaledObject"}
"""Kinds that Kubernetes itself has no schema of."""
PVC = {"model": {"pvc": {"claimName": "c"}}}
Objects = dict[str, Any]


def rendered(values: dict[str, Any], name: str = "rewards") -> dict[str, str]:
    """The text of every template, by its path."""
    with Chart.load(CHART) as chart:
        chart.validate_schema(values)
        texts: dict[str, str] = chart.render(values, name=name, namespace="scoring")
    return texts


def render(values: dict[str, Any], name: str = "rewards") -> Objects:
    """The release's objects by kind; the test's pod under Pod."""
    texts = rendered(values, name)
    documents = [item for path, text in texts.items() if path.endswith(".yaml") for item in yaml.safe_load_all(text)]
    return {
        f"{item['kind']}/dashboards" if item["metadata"]["name"].endswith("-dashboards") else item["kind"]: item
        for item in documents
        if item
    }


def scenario(name: str) -> Objects:
    values: dict[str, Any] = yaml.safe_load(SCENARIOS[name].read_text())
    return render(values)


def pod(objects: Objects) -> Any:
    return objects["Deployment"]["spec"]["template"]["spec"]


def container(objects: Objects) -> Any:
    return pod(objects)["containers"][0]


def settings(objects: Objects) -> Any:
    return yaml.safe_load(objects["ConfigMap"]["data"]["beholder.yaml"])


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_lints_without_a_word(name: str) -> None:
    report = helm_python.lint(CHART, yaml.safe_load(SCENARIOS[name].read_text()), strict=True)
    assert [message for message in report["messages"] if message["severity"] > 1] == []
    assert not report["errors"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_is_valid_for_kubernetes(name: str) -> None:
    known = 0
    for item in scenario(name).values():
        if item["kind"] in EXTENSIONS:
            continue
        kubernetes_validate.validate(item, "1.37", strict=True)
        known += 1
    assert known >= 4


def test_strings_that_look_like_something_else_stay_strings() -> None:
    values = {
        "image": {"repository": "1", "pullPolicy": "Always"},
        "model": {"path": "/my, models: #1", "pvc": {"claimName": "123", "subPath": "2026"}},
        "auth": {"existingSecret": "7", "key": "1e3"},
        "imageStore": {"existingClaim": "8", "subPath": "a: b"},
        "shm": {"sizeLimit": "1"},
        "cache": {"sizeLimit": "1"},
        "ingress": {"enabled": True, "host": "1", "className": "1", "tlsSecret": "true"},
        "podDisruptionBudget": {"maxUnavailable": "50%"},
        "autoscaling": {"kind": "hpa", "hpa": {"metric": "1"}},
        "metrics": {"podMonitor": {"enabled": True}, "dashboard": {"enabled": True}},
        "serviceAccount": {"name": "1"},
        "runtimeClassName": "true",
        "priorityClassName": "1",
        "nameOverride": "5",
        "fullnameOverride": "123",
    }
    objects = render(values, "2026")
    for item in objects.values():
        assert (
            item["metadata"]["labels"].items()
            >= {
                "app.kubernetes.io/name": "5",
                "app.kubernetes.io/instance": "2026",
            }.items()
        )
        if item["kind"] not in EXTENSIONS:
            kubernetes_validate.validate(item, "1.37", strict=True)
    spec = pod(objects)
    assert [spec[name] for name in ("serviceAccountName", "runtimeClassName", "priorityClassName")] == [
        "1",
        "true",
        "1",
    ]
    assert container(objects)["args"][:2] == ["serve", "/my, models: #1"]
    mounts = {mount["name"]: mount for mount in container(objects)["volumeMounts"]}
    assert (mounts["checkpoint"]["mountPath"], mounts["checkpoint"]["subPath"]) == ("/my, models: #1", "2026")
    assert mounts["images"]["subPath"] == "a: b"
    assert objects["PodDisruptionBudget"]["spec"]["maxUnavailable"] == "50%"


@pytest.mark.parametrize(
    "model",
    [{"oci": {"reference": "12", "allowOlderKubernetes": True}}, {"download": {"image": "12", "sizeLimit": "1"}}],
)
def test_sources_of_the_checkpoint_stay_strings(model: dict[str, Any]) -> None:
    kubernetes_validate.validate(render({"model": model})["Deployment"], "1.37", strict=True)


@pytest.mark.parametrize("name", SCENARIOS)
def test_pods_are_restricted(name: str) -> None:
    objects = scenario(name)
    for spec in (pod(objects), objects["Pod"]["spec"]):
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        own = [item for item in spec.get("initContainers", []) + spec["containers"] if "securityContext" in item]
        assert own
        for item in own:
            assert item["securityContext"]["readOnlyRootFilesystem"] is True
            assert item["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert item["securityContext"]["allowPrivilegeEscalation"] is False


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_grace_period_covers_the_drain(name: str) -> None:
    objects = scenario(name)
    waits = settings(objects)
    pre_stop = container(objects).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    needed = pre_stop + waits["drain_delay_s"] + waits["drain_timeout_s"] + 30
    assert pod(objects)["terminationGracePeriodSeconds"] >= needed


@pytest.mark.parametrize("name", SCENARIOS)
def test_selectors_find_the_serving_pods_and_not_the_test(name: str) -> None:
    objects = scenario(name)
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [objects["Service"]["spec"]["selector"], objects["Deployment"]["spec"]["selector"]["matchLabels"]]
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        if kind in objects:
            selectors.append(objects[kind]["spec"]["selector"]["matchLabels"])
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not selector.items() <= objects["Pod"]["metadata"]["labels"].items()


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_service_knows_every_setting_that_it_is_given(name: str) -> None:
    known = json.loads((CHART / "values.schema.json").read_text())["properties"]["config"]["properties"]
    assert settings(scenario(name)).keys() <= known.keys() | {"drain_delay_s", "drain_timeout_s"}


def test_probes_ask_the_right_questions() -> None:
    item = container(scenario("cpu"))
    assert item["startupProbe"]["httpGet"]["path"] == "/livez"
    assert item["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert item["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert item["startupProbe"]["periodSeconds"] * item["startupProbe"]["failureThreshold"] == 120


def test_everything_off_leaves_four_objects() -> None:
    objects = scenario("everything-off")
    assert set(objects) == {"ConfigMap", "Deployment", "Pod", "Service"}
    assert "lifecycle" not in container(objects)
    assert "replicas" in objects["Deployment"]["spec"]


@pytest.mark.parametrize("name", ["keda", "download"])
def test_an_autoscaled_deployment_has_no_replicas(name: str) -> None:
    assert "replicas" not in scenario(name)["Deployment"]["spec"]


def test_keda_scales_on_samples_in_flight() -> None:
    spec = scenario("keda")["ScaledObject"]["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 8)
    (trigger,) = spec["triggers"]
    query = 'sum(beholder_samples_in_flight{namespace="scoring",pod=~"rewards-beholder-[a-z0-9]+-[a-z0-9]+"})'
    assert trigger["metadata"] == {
        "serverAddress": "http://prometheus-operated.monitoring:9090",
        "query": query,
        "threshold": "64",
        "ignoreNullValues": "false",
    }


def test_keda_takes_more_for_its_trigger() -> None:
    keda = {
        "serverAddress": "https://thanos",
        "metadata": {"authModes": "bearer", "ignoreNullValues": "true"},
        "authenticationRef": {"name": "thanos"},
    }
    (trigger,) = render({**PVC, "autoscaling": {"kind": "keda", "keda": keda}})["ScaledObject"]["spec"]["triggers"]
    assert trigger["authenticationRef"] == {"name": "thanos"}
    assert trigger["metadata"]["serverAddress"] == "https://thanos"
    assert (trigger["metadata"]["authModes"], trigger["metadata"]["ignoreNullValues"]) == ("bearer", "true")


@pytest.mark.parametrize("seconds", [1800, 600])
def test_replicas_that_a_burst_started_stay_until_the_next(seconds: int) -> None:
    given = {} if seconds == 1800 else {"scaleDownSeconds": seconds}
    keda = {"kind": "keda", "keda": {"serverAddress": "http://p"}, **given}
    advanced = render({**PVC, "autoscaling": keda})["ScaledObject"]["spec"]["advanced"]
    hpa = render({**PVC, "autoscaling": {"kind": "hpa", **given}})["HorizontalPodAutoscaler"]["spec"]
    for behavior in (advanced["horizontalPodAutoscalerConfig"]["behavior"], hpa["behavior"]):
        assert behavior == {"scaleDown": {"stabilizationWindowSeconds": seconds}}


@pytest.mark.parametrize(
    ("release", "pods", "others"),
    [
        (
            "beholder",
            ["beholder-5d4f8b9c7-x2x9k"],
            ["beholder-2-5d4f8b9c7-x2x9k", "beholder-old-beholder-5d4f8b9c7-x2x9k", "my-beholder-5d4f8b9c7-x2x9k"],
        ),
        # Kubernetes cuts NAME-HASH- to 58 characters and appends five.
        ("l" * 38, [f"{'l' * 38}-beholder-5d4f8b9c7xx2x9k"], ["beholder-5d4f8b9c7-x2x9k"]),
        ("l" * 53, [f"{'l' * 53}-behox2x9k"], ["beholder-5d4f8b9c7-x2x9k"]),
    ],
)
def test_keda_counts_the_pods_of_its_release_alone(release: str, pods: list[str], others: list[str]) -> None:
    values = {**PVC, "autoscaling": {"kind": "keda", "keda": {"serverAddress": "http://p"}}}
    (trigger,) = render(values, release)["ScaledObject"]["spec"]["triggers"]
    found = re.search(r'pod=~"(.*)"', trigger["metadata"]["query"])
    assert found
    assert [name for name in pods + others if re.fullmatch(found[1], name)] == pods


def test_gpus_keys_and_monitoring() -> None:
    objects = scenario("gpu")
    item = container(objects)
    assert item["image"].startswith("registry.example.com/beholder:0.1.0-cuda@sha256:")
    assert item["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": 2}
    assert pod(objects)["runtimeClassName"] == "nvidia"
    volumes = {volume["name"]: volume for volume in pod(objects)["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert volumes["keys"]["secret"]["secretName"] == "beholder-keys"
    assert not [mount for mount in item["volumeMounts"] if mount["name"] == "keys" and "subPath" in mount]
    rules = [rule for group in objects["PrometheusRule"]["spec"]["groups"] for rule in group["rules"]]
    assert any("alert" in rule for rule in rules)
    assert "beholder.json" in objects["ConfigMap/dashboards"]["data"]
    assert objects["PodMonitor"]["metadata"]["labels"]["release"] == "prometheus"
    (endpoint,) = objects["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert endpoint["authorization"]["credentials"]["name"] == "beholder-scrape-key"


def test_pods_that_do_not_run_yet_are_no_targets() -> None:
    (endpoint,) = scenario("keda")["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert endpoint["relabelings"] == [
        {"sourceLabels": ["__meta_kubernetes_pod_phase"], "regex": "Pending", "action": "drop"}
    ]


def test_claimed_devices() -> None:
    claims = [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]
    objects = render({**PVC, "resourceClaims": claims, "resources": {"claims": [{"name": "gpu"}]}})
    kubernetes_validate.validate(objects["Deployment"], "1.37", strict=True)
    assert pod(objects)["resourceClaims"] == claims
    assert container(objects)["resources"]["claims"] == [{"name": "gpu"}]


def test_the_address_to_listen_on() -> None:
    def host(values: dict[str, Any]) -> Any:
        return {each["name"]: each.get("value") for each in container(render(values))["env"]}["BEHOLDER_HOST"]

    assert host(PVC) == "0.0.0.0"
    assert host({**PVC, "listenAddress": "::"}) == "::"


def test_the_test_runs_where_the_service_does() -> None:
    objects = scenario("gpu")
    test = objects["Pod"]["spec"]
    assert test["nodeSelector"] == pod(objects)["nodeSelector"]
    assert test["tolerations"] == pod(objects)["tolerations"]


def test_the_test_sends_a_key_that_the_service_accepts(tmp_path: Path) -> None:
    """Its script, with a Secret that begins as the service allows."""
    asked = []

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"scores": [1.5]}')

    (tmp_path / "keys").write_text("# of training\n\n  first-key \nsecond-key\n")
    (script,) = render({**PVC, "auth": {"existingSecret": "s"}})["Pod"]["spec"]["containers"][0]["args"]
    with HTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.handle_request).start()
        here = f"http://127.0.0.1:{server.server_port}"
        script = script.replace("http://rewards-beholder:8000", here).replace("/etc/beholder/keys", str(tmp_path))
        subprocess.run([sys.executable, "-c", script], check=True)
    assert asked == [("/score", "Bearer first-key")]


def notes(values: dict[str, Any]) -> str:
    (text,) = [text for path, text in rendered(values).items() if path.endswith("NOTES.txt")]
    return text


def test_the_notes_ask_with_a_key_where_one_is_needed() -> None:
    assert "curl http://127.0.0.1:8000/models" in notes(PVC)
    keyed = notes({**PVC, "auth": {"existingSecret": "s"}})
    assert 'curl --header "Authorization: Bearer $KEY" http://127.0.0.1:8000/models' in keyed


@pytest.mark.parametrize("way", [{"ingress": {"enabled": True, "host": "h"}}, {"httpRoute": {"enabled": True}}])
def test_the_notes_warn_of_a_way_in_without_keys(way: dict[str, Any]) -> None:
    assert "WARNING" in notes({**PVC, **way})
    assert "WARNING" not in notes({**PVC, **way, "auth": {"existingSecret": "s"}})
    assert "WARNING" not in notes(PVC)


def test_what_is_open_to_the_outside_has_keys() -> None:
    """The scenarios are copied."""
    for path in SCENARIOS.values():
        values = yaml.safe_load(path.read_text())
        if "ingress" in values or "httpRoute" in values:
            assert values["auth"]["existingSecret"]
            assert values["config"]["metrics_need_key"]


def test_restricted_callers_still_admit_the_test() -> None:
    objects = scenario("gpu")
    (rule,) = objects["NetworkPolicy"]["spec"]["ingress"]
    own = rule["from"][-1]["podSelector"]["matchLabels"]
    assert own.items() <= objects["Pod"]["metadata"]["labels"].items()


def test_replicas_call_nobody_unless_told() -> None:
    assert scenario("cpu")["NetworkPolicy"]["spec"]["egress"] == []
    ports = scenario("download")["NetworkPolicy"]["spec"]["egress"][0]["ports"]
    assert [port["port"] for port in ports] == [53, 53, 443]


@pytest.mark.parametrize(
    ("name", "volume"),
    [
        ("pvc-model", {"persistentVolumeClaim": {"claimName": "training-runs", "readOnly": True}}),
        (
            "oci-model",
            {"image": {"reference": "registry.example.com/checkpoints/fruit:1", "pullPolicy": "IfNotPresent"}},
        ),
        ("download", {"emptyDir": {"sizeLimit": "50Gi"}}),
    ],
)
def test_the_checkpoint_is_mounted_read_only(name: str, volume: dict[str, Any]) -> None:
    objects = scenario(name)
    assert pod(objects)["volumes"][0] == {"name": "checkpoint", **volume}
    (mount,) = [mount for mount in container(objects)["volumeMounts"] if mount["name"] == "checkpoint"]
    assert mount["readOnly"] is True
    assert container(objects)["args"][1] == mount["mountPath"]


def test_replicas_share_images() -> None:
    objects = scenario("shared-images")
    (mount,) = [mount for mount in container(objects)["volumeMounts"] if mount["name"] == "images"]
    assert mount["mountPath"] == settings(objects)["image_store"]


def test_the_release_changes_when_its_settings_do() -> None:
    def checksum(limit: int) -> Any:
        objects = render({**PVC, "config": {"max_in_flight": limit}})
        assert settings(objects)["max_in_flight"] == limit
        return objects["Deployment"]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    assert checksum(1) != checksum(2)


def test_two_releases_of_one_namespace_do_not_meet() -> None:
    first, second = render(PVC, "blue"), render(PVC, "green")
    assert first["Service"]["metadata"]["name"] != second["Service"]["metadata"]["name"]
    selector = first["Service"]["spec"]["selector"].items()
    assert not selector <= second["Deployment"]["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replicas": "two"}, "replicas"),
        ({"replica": 2}, "replica"),
        ({"image": {"tag": "latest"}}, "tag"),
        ({"image": {"digest": "sha256:1"}}, "digest"),
        ({"config": {"max_in_flihgt": 1}}, "max_in_flihgt"),
        ({"config": {"max_in_flight": "many"}}, "max_in_flight"),
        ({"config": {"port": 1}}, "port"),
        ({"config": {"api_keys": ["secret"]}}, "api_keys"),
        ({"autoscaling": {"kind": "vpa"}}, "kind"),
        ({"drain": {"timeoutSeconds": 0}}, "timeoutSeconds"),
        ({"shm": {"sizeLimit": "lots"}}, "sizeLimit"),
        ({"service": {"port": 70000}}, "port"),
        ({"podDisruptionBudget": {"maxUnavailable": "0%"}}, "maxUnavailable"),
        ({"auth": {"existingSecret": "s"}, "config": {"api_keys_file": "/k"}}, "api_keys_file"),
        ({"config": {"metrics_need_key": True}, "metrics": {"podMonitor": {"enabled": True}}}, "authorization"),
    ],
)
def test_a_wrong_value_is_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(HelmError, match=named):
        render({**PVC, **values})


@pytest.mark.parametrize("model", [{}, {"pvc": {"claimName": "c"}, "oci": {"reference": "r"}}])
def test_exactly_one_source_of_the_checkpoint(model: dict[str, Any]) -> None:
    with pytest.raises(HelmError, match="exactly one of"):
        render({"model": model})


def test_keda_needs_an_address() -> None:
    with pytest.raises(HelmError, match="serverAddress"):
        render({**PVC, "autoscaling": {"kind": "keda"}})


@pytest.mark.parametrize(
    ("autoscaling", "named"),
    [
        ({"kind": "hpa", "minReplicas": 0}, "minReplicas"),
        ({"kind": "keda", "minReplicas": 0, "keda": {"serverAddress": "http://p"}}, "keda.query"),
        ({"kind": "hpa", "minReplicas": 9, "maxReplicas": 2}, "above maxReplicas"),
    ],
)
def test_scaling_that_could_not_come_back_is_refused(autoscaling: dict[str, Any], named: str) -> None:
    with pytest.raises(HelmError, match=named):
        render({**PVC, "autoscaling": autoscaling})


def test_to_zero_with_a_query_of_ones_own() -> None:
    keda = {"serverAddress": "http://p", "query": "sum(trainers)"}
    values = {**PVC, "autoscaling": {"kind": "keda", "minReplicas": 0, "keda": keda}}
    assert render(values)["ScaledObject"]["spec"]["minReplicaCount"] == 0


def test_recreate_has_no_rolling_update() -> None:
    """Kubernetes refuses the two together, and Helm merges a strategy with the default one."""
    assert render({**PVC, "strategy": {"type": "Recreate"}})["Deployment"]["spec"]["strategy"] == {"type": "Recreate"}
    rolling = render({**PVC, "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}})
    assert rolling["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_the_package_has_schema_alerts_and_dashboard(tmp_path: Path) -> None:
    archive = helm_python.package(CHART, destination=tmp_path)
    with tarfile.open(archive) as tar:
        names = {name.removeprefix("beholder/") for name in tar.getnames()}
    assert {"values.schema.json", "README.md", "alerts/beholder.yaml", "dashboards/beholder.json"} <= names
    assert not [name for name in names if name.startswith("ci/") or name.endswith("_test.yaml")]
    with Chart.load(archive) as chart:
        with pytest.raises(HelmError, match="replicas"):
            chart.render({**PVC, "replicas": "two"})
        assert chart.render(PVC)
