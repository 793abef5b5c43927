"""k8s/: valid by published schemas, and what it runs is what raycd has.

No cluster is here: KubeRay's definitions, Kubernetes' own and Ray Serve's are what judges.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from jobs.command import PROGRAMS, main
from raycd.config.settings import parse
from serve.args import ServeArgs, Wanted
from tests.package.conftest import ROOT
from tests.package.kustomize import render

OVERLAYS = ("cpu", "gpu", "aws")
DEFINITIONS = ROOT.parent / "shared" / "data" / "kuberay"
KUBERAY = {"RayCluster": "clusters", "RayJob": "jobs", "RayService": "services"}
WITHOUT_SCHEMA = {"PodMonitor"}  # the Prometheus operator's, which no package has


def manifests(overlay: str) -> list[dict[str, Any]]:
    return render(ROOT / "k8s" / "overlays" / overlay)


def of_kind(overlay: str, kind: str) -> list[dict[str, Any]]:
    return [one for one in manifests(overlay) if one["kind"] == kind]


def cluster(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the RayCluster of a manifest of KubeRay's."""
    spec: dict[str, Any] = manifest["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return found


def pods(overlay: str) -> list[tuple[str, dict[str, Any]]]:
    """Return a name and the template of every pod."""
    found = []
    for one in manifests(overlay):
        if one["kind"] in KUBERAY:
            name = f"{one['kind']} {one['metadata']['name']}"
            found.append((f"{name} head", cluster(one)["headGroupSpec"]["template"]))
            for group in cluster(one)["workerGroupSpecs"]:
                found.append((f"{name} {group['groupName']}", group["template"]))
    return found


@cache
def definition(kind: str) -> jsonschema.protocols.Validator:
    """Return KubeRay's schema of version v1, which refuses what it does not name."""
    path = DEFINITIONS / f"ray.io_ray{KUBERAY[kind]}.yaml"
    if not path.exists():
        pytest.skip(f"KubeRay's definitions are not here: {path}")
    [found] = [one for one in yaml.load_all(path.read_text(), yaml.CSafeLoader) if one]
    [version] = [one for one in found["spec"]["versions"] if one["name"] == "v1"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    _closed(schema["properties"]["spec"])
    return jsonschema.Draft202012Validator(schema)


def _closed(schema: Any) -> None:
    """Have every object refuse fields that it does not name, as the API server's strict mode."""
    if isinstance(schema, list):
        for each in schema:
            _closed(each)
    elif isinstance(schema, dict):
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
        if schema.get("type") == "object" and "properties" in schema and not open_ended:
            schema.setdefault("additionalProperties", False)
        for each in schema.values():
            _closed(each)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberay_takes_every_manifest(overlay: str) -> None:
    for kind in KUBERAY:
        found = of_kind(overlay, kind)
        assert found
        for one in found:
            definition(kind).validate(one)


def test_the_definitions_refuse_a_field_that_is_not_theirs() -> None:
    [service] = of_kind("cpu", "RayService")
    service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["contianers"] = []
    with pytest.raises(jsonschema.ValidationError, match="contianers"):
        definition("RayService").validate(service)


def test_kubernetes_takes_pods_and_everything_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("kubernetes_validate", reason="not installed: pip install 'raycd[dev]'")
    checked = {}
    for overlay in OVERLAYS:
        for one in manifests(overlay):
            if one["kind"] not in WITHOUT_SCHEMA | KUBERAY.keys():
                checked[f"{overlay} {one['kind']}"] = one
        for name, template in pods(overlay):
            metadata = {"name": "pod"} | template["metadata"]
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
            checked[f"{overlay} {name}"] = pod | {"spec": template["spec"]}
    unique = {json.dumps(one, sort_keys=True): name for name, one in checked.items()}
    files = [tmp_path / f"{name.replace(' ', '-')}.yaml" for name in unique.values()]
    for file, text in zip(files, unique, strict=True):
        file.write_text(text)
    tool = str(Path(sys.executable).parent / "kubernetes-validate")
    done = subprocess.run(
        [tool, "--strict", "--quiet", *map(str, files)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_says_the_same(overlay: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not here")
    command = ["kubectl", "kustomize", str(ROOT / "k8s" / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = [one for one in yaml.safe_load_all(done.stdout) if one]
    order = lambda one: (one["kind"], one["metadata"]["name"])  # noqa: E731
    assert sorted(theirs, key=order) == sorted(manifests(overlay), key=order)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_serve_and_the_service_take_the_configuration(overlay: str) -> None:
    [service] = of_kind(overlay, "RayService")
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    [application] = config.applications
    args = ServeArgs.model_validate(application.args)
    [deployment] = application.deployments
    assert Wanted.model_validate(deployment.user_config).bundle == args.bundle
    assert application.import_path == "serve.app:build"
    [workers] = cluster(service)["workerGroupSpecs"]
    [container] = workers["template"]["spec"]["containers"]
    assert args.replicas.min == args.replicas.max == workers["replicas"]
    assert args.cpus <= float(container["resources"]["limits"]["cpu"])
    assert args.threads == args.cpus  # by 0, replicas would share what each has to itself
    assert container["readinessProbe"]["httpGet"]["port"] == config.http_options.port
    [head] = cluster(service)["headGroupSpec"]["template"]["spec"]["containers"]
    for one in (head, container):  # without the head's, KubeRay makes no Service for Ray Serve
        ports = {port["name"]: port["containerPort"] for port in one["ports"]}
        assert ports["serve"] == config.http_options.port
    assert args.api_keys.startswith(container["volumeMounts"][0]["mountPath"])
    assert "postgresql://" in args.gallery
    assert "password" not in args.gallery
    assert "PGPASSWORD" in [each["name"] for each in container["env"]]
    # No replica runs on the head, and building the application reads neither keys nor database.
    assert not {"env", "volumeMounts"} & head.keys()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_served_is_a_version_of_what_is_trained(overlay: str) -> None:
    [service] = of_kind(overlay, "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    bundle = config["applications"][0]["args"]["bundle"]
    [settings] = of_kind(overlay, "ConfigMap")
    [job] = [one for one in of_kind(overlay, "RayJob") if one["metadata"]["name"] == "raycd-train"]
    argv = shlex.split(job["spec"]["entrypoint"])[2:]
    trained = parse(argv, prog="", description="", environment=settings["data"]).config.tracking
    assert bundle == f"models:/{trained.model}/1"
    assert trained.uri == settings["data"]["MLFLOW_TRACKING_URI"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_entrypoint_is_a_command_whose_settings_are_read(
    overlay: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [settings] = of_kind(overlay, "ConfigMap")
    for name, value in settings["data"].items():
        monkeypatch.setenv(name, value)
    jobs = of_kind(overlay, "RayJob")
    assert {job["metadata"]["name"] for job in jobs} == {
        "raycd-train",
        "raycd-embed",
        "raycd-sweep",
    }
    for job in jobs:
        raycd, command, *rest = shlex.split(job["spec"]["entrypoint"])
        assert (raycd, command in PROGRAMS) == ("raycd", True)
        with pytest.raises(SystemExit) as end:  # --help reads the settings first
            main([command, *rest, "--help"])
        said = capsys.readouterr().out
        assert end.value.code == 0
        assert f"(RAYCD_RUNS: {settings['data']['RAYCD_RUNS']})" in " ".join(said.split())
    config = parse([], prog="", description="").config
    assert config.compute.device == ("auto" if overlay == "cpu" else "gpu")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_a_pod_refers_to_is_there_or_is_told_in_the_docs(overlay: str) -> None:
    made = {(one["kind"], one["metadata"]["name"]) for one in manifests(overlay)}
    docs = (ROOT / "docs" / "deploy.md").read_text()
    for name, template in pods(overlay):
        spec = template["spec"]
        assert ("ServiceAccount", spec["serviceAccountName"]) in made, name
        [container] = spec["containers"]
        assert ":" in container["image"], name
        secrets = [each["secret"]["secretName"] for each in spec.get("volumes", [])]
        for source in container["envFrom"]:
            if "configMapRef" in source:
                assert ("ConfigMap", source["configMapRef"]["name"]) in made, name
            else:
                secrets.append(source["secretRef"]["name"])
        secrets += [each["valueFrom"]["secretKeyRef"]["name"] for each in container.get("env", [])]
        for secret in secrets:
            assert f"create secret generic {secret}" in docs, secret


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_two_have_a_name_by_which_kuberay_makes_one_service_for_both(overlay: str) -> None:
    named = [*of_kind(overlay, "RayCluster"), *of_kind(overlay, "RayService")]
    names = [one["metadata"]["name"] for one in named]  # NAME-head-svc
    assert len(set(names)) == len(names) == 2
    docs = (ROOT / "docs" / "deploy.md").read_text()
    assert set(re.findall(r"service/(\S+)-head-svc", docs)) <= set(names)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_keep_the_labels_by_which_kuberays_services_select(overlay: str) -> None:
    for name, template in pods(overlay):
        assert not [label for label in template["metadata"]["labels"] if "/" in label], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_choose_the_pods_that_they_mean(overlay: str) -> None:
    labels = {name: template["metadata"]["labels"] for name, template in pods(overlay)}
    [budget] = of_kind(overlay, "PodDisruptionBudget")
    chosen = dict(budget["spec"]["selector"]["matchLabels"])
    assert chosen.pop("ray.io/node-type") == "worker"  # KubeRay's own label
    assert chosen.items() <= labels["RayService raycd workers"].items()
    [service] = of_kind(overlay, "RayService")
    [spread] = cluster(service)["workerGroupSpecs"][0]["template"]["spec"][
        "topologySpreadConstraints"
    ]
    assert spread["labelSelector"] == budget["spec"]["selector"]
    [monitor] = of_kind(overlay, "PodMonitor")
    for name, template in pods(overlay):
        [every] = monitor["spec"]["selector"]["matchExpressions"]
        assert every == {"key": "raycd", "operator": "Exists"}
        assert every["key"] in labels[name]
        ports = [each["name"] for each in template["spec"]["containers"][0]["ports"]]
        assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in ports


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_drain_takes_one_worker_of_the_service_and_leaves_the_others(overlay: str) -> None:
    [budget] = of_kind(overlay, "PodDisruptionBudget")
    [service] = of_kind(overlay, "RayService")
    [workers] = cluster(service)["workerGroupSpecs"]
    del budget["spec"]["selector"]
    # A RayCluster has no scale subresource, so that Kubernetes takes nothing but this number.
    assert budget["spec"] == {"minAvailable": workers["replicas"] - 1}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_is_root_and_ray_asks_for_its_token(overlay: str) -> None:
    for kind in KUBERAY:
        for one in of_kind(overlay, kind):
            assert cluster(one)["authOptions"] == {"mode": "token"}
    for name, template in pods(overlay):
        assert template["spec"]["securityContext"]["runAsNonRoot"], name
        [container] = template["spec"]["containers"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
        assert not {"privileged", "hostNetwork"} & {*template["spec"], *container}, name


@pytest.mark.parametrize(("overlay", "wanted"), [("cpu", 0), ("gpu", 1), ("aws", 1)])
def test_workers_of_jobs_and_cluster_start_at_zero_and_have_the_overlays_gpus(
    overlay: str, wanted: int
) -> None:
    for kind in ("RayCluster", "RayJob"):
        for one in of_kind(overlay, kind):
            [group] = cluster(one)["workerGroupSpecs"]
            [container] = group["template"]["spec"]["containers"]
            assert int(container["resources"]["limits"].get("nvidia.com/gpu", 0)) == wanted
            assert (group["minReplicas"], cluster(one)["enableInTreeAutoscaling"]) == (0, True)


def test_the_cluster_runs_the_ray_of_the_lock() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    for kind in KUBERAY:
        for one in of_kind("cpu", kind):
            assert f"\nray=={cluster(one)['rayVersion']} " in lock
