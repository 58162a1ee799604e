"""The manifests: what Kubernetes' own schemas say of them, whether what they name is there, and whether a node can live by them.

The schemas come with `pip install kubernetes-validate`: with 108 MB too much for an extra, so that test is skipped without it.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.test_cli import Refused, refused
from zpipe.cli.group import cli
from zpipe.deploy import layout
from zpipe.deploy.kubernetes import FOLDER, USER, ManifestOptions, Manifests, render_manifests
from zpipe.errors import ConfigError
from zpipe.runtime.node import DRAIN_SECONDS, by_hand
from zpipe.security import make_keys, node_keys, read_secret
from zpipe.topology import SecuritySpec, Topology, load_topology

__all__ = ["refused"]  # a fixture

OPTIONS = ManifestOptions(image="registry.local/zpipe:1")
TOPOLOGIES = ["line2", "line4-replicas", "mesh3-mixed"]


def rendered(topology: Topology, options: ManifestOptions = OPTIONS) -> Manifests:
    return render_manifests(topology, layout(topology), options)


def open_to_all(name: str) -> Topology:
    return by_hand(load_topology(name)).without_keys()


@pytest.fixture
def keyed(tmp_path: Path) -> Topology:
    """A line of four with a key for each rank."""
    file = tmp_path / "Big Robot.yaml"
    file.write_text("bundle: digits-mobilenetv2\nnodes:\n" + "".join(f"  - {{rank: {n}, stages: [{n}]}}\n" for n in range(4)))
    file.write_text(file.read_text().replace("stages: [3]", "stages: [3, 4]") + "links: line\nsecurity: {keys: keys}\n")
    make_keys(tmp_path / "keys", range(4))
    return by_hand(load_topology(file))


def documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def of_kind(text: str, kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in documents(text) if each["kind"] == kind}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_kubernetes_schemas_find_no_fault(name: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    made = rendered(open_to_all(name), replace(OPTIONS, bundle_claim="models", hosts={1: "arm"}))
    for document in documents(made.text):
        validator.validate(document, validator.latest_version(), strict=True)


def test_kubernetes_schemas_find_no_fault_in_what_keys_need(keyed: Topology) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    made = rendered(keyed)
    for document in [*documents(made.text), *documents(made.secrets)]:
        validator.validate(document, validator.latest_version(), strict=True)
    broken = documents(made.text)[-1]
    broken["spec"]["template"]["spec"]["containers"][0]["livenessProbes"] = {}
    with pytest.raises(validator.ValidationError):
        validator.validate(broken, validator.latest_version(), strict=True)


@pytest.mark.parametrize(("name", "label"), [("Küche 2 🤖", "k-che-2"), ("🤖", "topology"), (80 * "x", 36 * "x")])
def test_any_name_makes_names_that_kubernetes_takes(name: str, label: str) -> None:
    made = rendered(replace(open_to_all("line2"), name=name))
    assert made.name == f"zpipe-{label}"
    assert set(of_kind(made.text, "Service")) == {f"zpipe-{label}-0", f"zpipe-{label}-1"}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_serving_rank_is_one_pod_and_every_rank_has_a_name(name: str) -> None:
    topology = open_to_all(name)
    made = rendered(topology)
    sets, services = of_kind(made.text, "StatefulSet"), of_kind(made.text, "Service")
    assert len(services) == len(topology.nodes)
    assert set(services) - set(sets) == {f"zpipe-{name}-{source.rank}" for source in topology.sources}
    for own, found in sets.items():
        assert found["spec"]["replicas"] == 1
        assert found["spec"]["serviceName"] == own
        selector = services[own]["spec"]["selector"]
        assert selector == found["spec"]["selector"]["matchLabels"] == found["spec"]["template"]["metadata"]["labels"]
        assert services[own]["spec"]["publishNotReadyAddresses"]


def test_the_topology_of_the_pods_is_the_same_where_it_counts(tmp_path: Path) -> None:
    topology = open_to_all("line4-replicas")
    made = rendered(topology)
    ((name, text),) = documents(made.text)[0]["data"].items()
    (tmp_path / name).write_text(text, encoding="utf-8")
    mounted = load_topology(tmp_path / name)
    assert mounted.digest() == topology.digest()
    assert mounted.security.insecure
    for node in mounted.nodes:
        service = of_kind(made.text, "Service")[node.host]
        assert [port["port"] for port in service["spec"]["ports"]] == [node.port, node.port + 1]
        assert node.bind_address == f"0.0.0.0:{node.port}"


def test_a_rank_mounts_its_own_secret_alone(keyed: Topology) -> None:
    made = rendered(keyed)
    secrets = of_kind(made.secrets, "Secret")
    assert sorted(secrets) == [f"zpipe-big-robot-{rank}" for rank in range(4)]
    assert keyed.security.folder is not None
    for rank in range(4):
        secret = read_secret(keyed.security.folder / f"node{rank}.secret")
        assert secrets[f"zpipe-big-robot-{rank}"]["stringData"] == {f"node{rank}.secret": secret + "\n"}
        assert secret not in made.text
    for rank in (1, 2, 3):
        pod = of_kind(made.text, "StatefulSet")[f"zpipe-big-robot-{rank}"]["spec"]["template"]["spec"]
        mounted = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
        assert mounted == [f"zpipe-big-robot-{rank}"]
        (node,) = pod["containers"]
        assert "secret" not in {mount["name"] for mount in node["volumeMounts"]}  # but the copy


def test_a_node_takes_the_key_that_is_copied_for_it(keyed: Topology, tmp_path: Path) -> None:
    """The init container's own command, with paths of this machine: a secret that the group can read becomes one that it cannot."""
    made = rendered(keyed)
    pod = of_kind(made.text, "StatefulSet")["zpipe-big-robot-2"]["spec"]["template"]["spec"]
    *copying, source, target = pod["initContainers"][0]["command"]
    mounted, run = tmp_path / Path(source).name, tmp_path / "run"
    mounted.write_text(of_kind(made.secrets, "Secret")["zpipe-big-robot-2"]["stringData"][mounted.name])
    mounted.chmod(0o440)
    run.mkdir()
    run.chmod(0o2777)  # as an emptyDir is
    for _ in range(2):  # a pod's sandbox may be made anew, and its volumes stay
        subprocess.run([*copying, mounted, run / "keys"], check=True, timeout=60)
    assert stat.S_IMODE((run / "keys").stat().st_mode) & 0o77 == 0
    ((_, text),) = documents(made.text)[0]["data"].items()
    moved = tmp_path / "moved.yaml"
    moved.write_text(text.replace(os.path.dirname(target), str(run)), encoding="utf-8")
    keys = node_keys(load_topology(moved), 2)
    assert keys is not None
    assert keys.public == keyed.key_of(2)


def test_pods_have_no_more_rights_than_restricted_ones(keyed: Topology) -> None:
    for found in of_kind(rendered(keyed).text, "StatefulSet").values():
        pod = found["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == USER
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod["automountServiceAccountToken"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in [*pod["containers"], *pod["initContainers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            volumes = {volume["name"] for volume in pod["volumes"]}
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_probes_scrapes_and_the_drain_fit_the_node(keyed: Topology) -> None:
    for found in of_kind(rendered(keyed).text, "StatefulSet").values():
        pod = found["spec"]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] > DRAIN_SECONDS
        (node,) = pod["containers"]
        ports = {port["name"]: port["containerPort"] for port in node["ports"]}
        assert node["command"][-2:] == ["--metrics", f"0.0.0.0:{ports['metrics']}"]
        assert found["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])
        paths = {probe: node[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
        assert {probe: at["path"] for probe, at in paths.items()} == {
            "startupProbe": "/healthz",
            "livenessProbe": "/healthz",
            "readinessProbe": "/readyz",
        }
        assert all(at["port"] in ports for at in paths.values())


def test_bundle_is_in_the_image_or_on_a_claim(keyed: Topology) -> None:
    text = rendered(keyed).text
    assert f"# {FOLDER}/engines/digits-mobilenetv2; it does not fit a ConfigMap." in text
    claimed = of_kind(rendered(keyed, replace(OPTIONS, bundle_claim="models")).text, "StatefulSet")["zpipe-big-robot-1"]
    (node,) = claimed["spec"]["template"]["spec"]["containers"]
    assert {"name": "bundle", "mountPath": f"{FOLDER}/engines/digits-mobilenetv2", "readOnly": True} in node["volumeMounts"]


def test_a_gpu_is_asked_for_where_the_topology_names_one(keyed: Topology) -> None:
    nodes = tuple(replace(node, executor="trt") if node.rank == 1 else node for node in keyed.nodes)
    sets = of_kind(rendered(replace(keyed, nodes=nodes)).text, "StatefulSet")
    limits = [found["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] for found in sets.values()]
    assert [limit.get("nvidia.com/gpu") for limit in limits] == ["1", None, None]


def test_what_cannot_be_is_told(keyed: Topology) -> None:
    with pytest.raises(ConfigError, match=r"rank 0 would listen at 0\.0\.0\.0:5800 without keys"):
        rendered(replace(keyed, security=SecuritySpec()))
    with pytest.raises(ConfigError, match="--image: found 'a b', expected one with zpipe"):
        rendered(keyed, replace(OPTIONS, image="a b"))
    with pytest.raises(ConfigError, match="--memory: found '1 GB', expected a quantity"):
        rendered(keyed, replace(OPTIONS, memory="1 GB"))
    with pytest.raises(ConfigError, match="--host: found rank 0, a source, expected a rank that only serves"):
        rendered(keyed, replace(OPTIONS, hosts={0: "arm"}))
    with pytest.raises(ConfigError, match="found rank 9, expected one of 0 to 3"):
        rendered(keyed, replace(OPTIONS, hosts={9: "arm"}))
    with pytest.raises(ConfigError, match="found sources alone"):
        rendered(open_to_all("local"))
    assert keyed.security.folder is not None
    (keyed.security.folder / "node3.secret").unlink()
    with pytest.raises(ConfigError, match=r"node3\.secret: found no such file"):
        rendered(keyed)


def test_a_metrics_port_that_a_node_has_is_left_to_it(keyed: Topology) -> None:
    nodes = tuple(replace(node, address=f"h{node.rank}:9463") for node in keyed.nodes)
    found = of_kind(rendered(replace(keyed, nodes=nodes)).text, "StatefulSet")["zpipe-big-robot-1"]
    assert found["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == "9465"


# ---- the command ---------------------------------------------------------------------------------


def deploy(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["deploy", *map(str, arguments)], catch_exceptions=False)


def test_secrets_are_written_for_their_owner_alone(keyed: Topology, tmp_path: Path) -> None:
    assert keyed.path is not None
    out = tmp_path / "out"
    out.mkdir()
    secrets = out / "zpipe-big-robot-secrets.yaml"
    secrets.write_text("of an earlier time, for all to read")
    said = deploy("--target", "kubernetes", "--topology", keyed.path, "--image", "i", "--host", "1=arm", "--out", out)
    assert said.exit_code == 0, said.output
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
    assert len(of_kind(secrets.read_text(), "Secret")) == 4
    made = of_kind((out / "zpipe-big-robot.yaml").read_text(), "StatefulSet")["zpipe-big-robot-1"]
    assert made["spec"]["template"]["spec"]["nodeSelector"] == {"kubernetes.io/hostname": "arm"}


def test_secrets_are_not_printed(keyed: Topology) -> None:
    assert keyed.path is not None
    said = deploy("--target", "kubernetes", "--topology", keyed.path, "--image", "i")
    assert "kind: StatefulSet" in said.stdout
    assert "stringData" not in said.output
    assert said.stderr == "the keys are not printed: say --out FOLDER, which has them in a file of their own\n"


def test_what_is_of_another_target_is_refused(refused: Refused) -> None:
    said = refused("deploy", "--target", "kubernetes", "--system", "--image", "i")
    assert said == "--system: found it with --target kubernetes, expected it with --target systemd; leave one out"
    assert refused("deploy", "--image", "i").startswith("--image: found it with --target systemd, expected it with --target kube")
    assert refused("deploy", "--target", "kubernetes", "--host", "x").startswith("--host: found 'x', expected RANK=NAME")
    assert refused("deploy", "--target", "kubernetes", "--insecure").startswith("--image: found ''")


def test_dashboard_is_printed_or_written(tmp_path: Path) -> None:
    printed = json.loads(deploy("--target", "grafana").stdout)
    assert deploy("--target", "grafana", "--out", tmp_path / "new").exit_code == 0
    assert json.loads((tmp_path / "new" / "zpipe-dashboard.json").read_text()) == printed
    assert printed["title"] == "zpipe"
