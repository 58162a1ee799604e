"""Kubernetes manifests for the nodes of a topology.

1. Each rank that only serves is a StatefulSet of one pod: of one name there is never more than one pod, so that no two processes
   claim a rank and its key, and ranks may differ in resources, board and secret. (Pods of one StatefulSet would share a template
   and with it every rank's secret; a Deployment starts the next pod while the last one may still run.) What it costs: a pod on a
   board that vanished is not started elsewhere until somebody deletes it. A rank is a board here, so that is as it should be.
2. A headless Service for each rank, the sources' too, is its name in the network. It publishes addresses that are not ready: a node
   is ready only once its neighbours are there, and would else never be found by them.
3. The topology is a ConfigMap, the file of the user with its addresses replaced: `digest()` stays the same, so a source may go on
   with the file it has. The public keys stand in it.
4. A bundle does not fit a ConfigMap, which holds 1 MiB: it is in the image (the digits bundle is, with zpipe), or on a volume whose
   claim is named.
5. Each rank's secret key is a Secret of its own, in a file of its own, which only that rank's pod mounts. A node refuses a secret
   that its group can read, and a pod that is not root reads a mounted one by its group: so an init container copies it, for this
   user alone, to a volume in memory.

Checked by a validator of Kubernetes' schemas, strictly; no cluster has run it yet.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from zpipe import __version__
from zpipe.deploy.layout import Layout
from zpipe.deploy.systemd import STOP_SECONDS
from zpipe.errors import ConfigError
from zpipe.security import node_keys, secret_file
from zpipe.topology import NodeSpec, Topology

#: Where an image has the bundle (`Layout.bundle`), and where the topology is mounted.
FOLDER = "/opt/zpipe"
#: Of OpenTelemetry's exporter for Prometheus; the next one where a node has it.
METRICS_PORT = 9464
ANY_HOST = "0.0.0.0"
#: Nobody's on the board; whatever a container does, it does as this.
USER = 10001
#: What a ConfigMap holds, less its own fields.
MOST_BYTES = 1_000_000
#: Loading stages takes seconds, building a GPU's engines minutes; meanwhile nothing answers.
START_SECONDS = 600
_KEYS, _SECRET, _RUN = "/run/zpipe/keys", "/run/secrets/zpipe", "/run/zpipe"
_COPY_KEY = 'umask 077 && mkdir -p "$2" && cp -f "$1" "$2"/'
_GPU_EXECUTORS = frozenset({"trt", "torch-cuda"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestOptions:
    """What is not in the topology.

    Attributes:
        image: with `zpipe[metrics]` on its path; and the bundle, where that does not come with zpipe.
        bundle_claim: a PersistentVolumeClaim that holds the bundle's files; "" = they are in the image.
        hosts: {rank: the board it must run on}, by the names of `kubectl get nodes`.
        cpu, memory: what a rank asks for, as Kubernetes writes it; of memory it gets no more than that.
    """

    image: str
    bundle_claim: str = ""
    hosts: Mapping[int, str] = field(default_factory=dict)
    cpu: str = "1"
    memory: str = "1Gi"


@dataclass(frozen=True, slots=True)
class Manifests:
    """What `kubectl apply -f` takes.

    Attributes:
        name: of all of it, `zpipe-line2`.
        text: everything but the secrets.
        secrets: the secrets; "" without keys. For nobody's eyes, and no repository.
    """

    name: str
    text: str
    secrets: str


def render_manifests(topology: Topology, places: Layout, options: ManifestOptions) -> Manifests:
    """The manifests of a topology's nodes.

    Args:
        topology: with a port for each address.
        places: where its files lie.
        options: the rest.

    Raises:
        ConfigError: an option cannot be; a secret key is absent; or there are none, and nobody said that this is meant.
    """
    if len(topology.sources) == len(topology.nodes):
        raise ConfigError(f"{topology.path}: found sources alone, expected a rank that only serves: a source is your own program")
    for rank in options.hosts:
        if topology.source_at(topology.node(rank).rank) is not None:
            raise ConfigError(f"--host: found rank {rank}, a source, expected a rank that only serves")
    if not options.image or re.search(r"\s", options.image):
        raise ConfigError(f"--image: found {options.image!r}, expected one with zpipe[metrics], such as registry.local/zpipe:1")
    for option, quantity in (("--cpu", options.cpu), ("--memory", options.memory)):
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?(m|[kMGT]i?|)", quantity):
            raise ConfigError(f"{option}: found {quantity!r}, expected a quantity as Kubernetes writes it, such as 500m or 1Gi")
    return _Rendering(topology, places, options).all()


class _Rendering:
    """The parts of one topology's manifests, which share names and labels."""

    def __init__(self, topology: Topology, places: Layout, options: ManifestOptions) -> None:
        self._given, self._places, self._options = topology, places, options
        self._instance = _label(topology.name)
        self._name = f"zpipe-{self._instance}"
        self._path = f"{places.topology.rpartition('/')[0]}/{self._instance}.yaml"
        self._topology = self._moved()
        # Refused here for the reasons for which a node would be: no keys, and nobody who said that there shall be none.
        self._keys = {node.rank: node_keys(self._topology, node.rank) for node in topology.nodes}
        self._file = _dumped([self._plain()])
        taken = {port for node in topology.nodes for port in (node.port, node.port + 1)}
        self._metrics_port = next(port for port in count(METRICS_PORT) if port not in taken)

    def all(self) -> Manifests:
        if len(self._file.encode()) > MOST_BYTES:
            raise ConfigError(
                f"{self._given.path}: found {len(self._file.encode())} bytes with all that it leaves to defaults, expected at most "
                f"{MOST_BYTES}, which is what a ConfigMap holds"
            )
        served = [node for node in self._topology.nodes if self._given.source_at(node.rank) is None]
        documents = [self._config(), self._network_policy(), *map(self._service, self._topology.nodes), *map(self._set, served)]
        secrets = [self._secret(node.rank) for node in self._topology.nodes if self._keys[node.rank] is not None]
        return Manifests(self._name, "\n".join(self._comment()) + "\n" + _dumped(documents), _dumped(secrets) if secrets else "")

    # ---- documents -----------------------------------------------------------------------------

    def _comment(self) -> Iterator[str]:
        yield f"# Made by `zpipe deploy` {__version__} of {self._given.name}; kubectl apply -f this, in the namespace you like."
        if self._options.bundle_claim:
            yield f"# The claim {self._options.bundle_claim} holds the bundle's files, manifest.json at its top."
        else:
            yield f"# The image holds zpipe[metrics] and the bundle {self._given.bundle}, which comes with zpipe or lies in"
            yield f"# {FOLDER}/{self._places.bundle}; it does not fit a ConfigMap."
        for source in self._given.sources:
            labels = ", ".join(f"{key}: {value!r}" for key, value in self._labels(source.rank).items())
            yield f"# Rank {source.rank} is a source: your program. Its pod, in this namespace, bears the labels {{{labels}}},"
            yield f"# mounts the ConfigMap as {FOLDER}/{self._path} and says zpipe.Pipeline.connect(that, rank={source.rank})."
            if self._keys[source.rank] is not None:
                yield f"# Its key is copied from the Secret {self._name_of(source.rank)} to {_KEYS}, as the nodes' are below."

    def _config(self) -> dict[str, Any]:
        return self._document("v1", "ConfigMap", self._name, data={PurePosixPath(self._path).name: self._file})

    def _secret(self, rank: int) -> dict[str, Any]:
        keys = self._keys[rank]
        assert keys is not None
        data = {secret_file(Path(), rank).name: keys.secret + "\n"}
        return self._document("v1", "Secret", self._name_of(rank), rank, type="Opaque", stringData=data)

    def _network_policy(self) -> dict[str, Any]:
        """Nodes of this topology alone reach each other's ports; a stranger could fill their memory (README, known limits)."""
        ours = {"matchLabels": self._labels()}
        ports = [port for node in self._topology.nodes for port in (node.port, node.port + 1)]
        spec = {
            "podSelector": ours,
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": ours}], "ports": [{"protocol": "TCP", "port": port} for port in sorted(set(ports))]},
                {"ports": [{"protocol": "TCP", "port": self._metrics_port}]},
            ],
        }
        return self._document("networking.k8s.io/v1", "NetworkPolicy", self._name, spec=spec)

    def _service(self, node: NodeSpec) -> dict[str, Any]:
        spec = {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": self._labels(node.rank),
            "ports": [{"name": "data", "port": node.port}, {"name": "control", "port": node.port + 1}],
        }
        return self._document("v1", "Service", self._name_of(node.rank), node.rank, spec=spec)

    def _set(self, node: NodeSpec) -> dict[str, Any]:
        annotations = {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(self._metrics_port),
            "prometheus.io/path": "/metrics",
            "zpipe.topology/sha256": hashlib.sha256(self._file.encode()).hexdigest(),  # another topology, another pod
        }
        spec = {
            "replicas": 1,
            "serviceName": self._name_of(node.rank),
            "selector": {"matchLabels": self._labels(node.rank)},
            "template": {"metadata": {"labels": self._labels(node.rank), "annotations": annotations}, "spec": self._pod(node)},
        }
        return self._document("apps/v1", "StatefulSet", self._name_of(node.rank), node.rank, spec=spec)

    def _pod(self, node: NodeSpec) -> dict[str, Any]:
        keyed = self._keys[node.rank] is not None
        host = self._options.hosts.get(node.rank)
        return {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": STOP_SECONDS,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **({"nodeSelector": {"kubernetes.io/hostname": host}} if host else {}),
            "affinity": self._apart(),
            **({"initContainers": [self._copying(node.rank)]} if keyed else {}),
            "containers": [self._container(node, keyed=keyed)],
            "volumes": self._volumes(node.rank, keyed=keyed),
        }

    def _apart(self) -> dict[str, Any]:
        """On boards of their own, as far as there are enough."""
        term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": self._labels()}}
        return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}}

    def _copying(self, rank: int) -> dict[str, Any]:
        return {
            "name": "key",
            "image": self._options.image,
            "command": ["sh", "-c", _COPY_KEY, "sh", f"{_SECRET}/{secret_file(Path(), rank).name}", _KEYS],
            "securityContext": _least(),
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
            "volumeMounts": [{"name": "secret", "mountPath": _SECRET, "readOnly": True}, {"name": "run", "mountPath": _RUN}],
        }

    def _container(self, node: NodeSpec, *, keyed: bool) -> dict[str, Any]:
        command = ["zpipe", "node", "--rank", str(node.rank), "--topology", self._path]
        limits: dict[str, str] = {"memory": self._options.memory}  # none of CPU: to be throttled costs every sample behind
        if node.executor in _GPU_EXECUTORS or node.device.startswith("cuda"):
            limits["nvidia.com/gpu"] = "1"
        return {
            "name": "node",
            "image": self._options.image,
            "command": [*command, "--metrics", f"{ANY_HOST}:{self._metrics_port}"],
            "workingDir": FOLDER,
            "env": [
                {"name": "PYTHONUNBUFFERED", "value": "1"},
                {"name": "HOME", "value": "/tmp"},
                {"name": "XDG_CACHE_HOME", "value": "/tmp/cache"},  # of engines that are built here
            ],
            "ports": [
                {"name": "data", "containerPort": node.port},
                {"name": "control", "containerPort": node.port + 1},
                {"name": "metrics", "containerPort": self._metrics_port},
            ],
            "startupProbe": _probe("/healthz", every=5, failures=START_SECONDS // 5),
            "livenessProbe": _probe("/healthz", every=10, failures=3),
            "readinessProbe": _probe("/readyz", every=5, failures=2),
            "resources": {"requests": {"cpu": self._options.cpu, "memory": self._options.memory}, "limits": limits},
            "securityContext": _least(),
            "volumeMounts": self._mounts(keyed=keyed),
        }

    def _mounts(self, *, keyed: bool) -> list[dict[str, Any]]:
        mounts: list[dict[str, Any]] = [
            {"name": "topology", "mountPath": f"{FOLDER}/{PurePosixPath(self._path).parent}", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ]
        if keyed:
            mounts.append({"name": "run", "mountPath": _RUN, "readOnly": True})
        if self._options.bundle_claim:
            mounts.append({"name": "bundle", "mountPath": f"{FOLDER}/{self._places.bundle}", "readOnly": True})
        return mounts

    def _volumes(self, rank: int, *, keyed: bool) -> list[dict[str, Any]]:
        volumes: list[dict[str, Any]] = [{"name": "topology", "configMap": {"name": self._name}}, {"name": "tmp", "emptyDir": {}}]
        if keyed:
            volumes.append({"name": "secret", "secret": {"secretName": self._name_of(rank), "defaultMode": 0o440}})
            volumes.append({"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}})
        if self._options.bundle_claim:
            volumes.append({"name": "bundle", "persistentVolumeClaim": {"claimName": self._options.bundle_claim, "readOnly": True}})
        return volumes

    # ---- names ---------------------------------------------------------------------------------

    def _moved(self) -> Topology:
        """Its nodes under the names of their Services, listening on whatever address their pods have."""
        nodes = [
            replace(node, address=f"{self._name_of(node.rank)}:{node.port}", bind=f"{ANY_HOST}:{node.port}")
            for node in self._given.nodes
        ]
        return replace(self._given, nodes=tuple(nodes))

    def _plain(self) -> dict[str, Any]:
        """The topology file of the pods, complete."""
        plain = self._topology.to_dict()
        del plain["path"]
        if self._topology.security.keys:
            plain["security"] = {"keys": _KEYS, "public": list(self._topology.security.keys)}
        return plain

    def _name_of(self, rank: int) -> str:
        return f"{self._name}-{rank}"

    def _labels(self, rank: int | None = None) -> dict[str, str]:
        labels = {"app.kubernetes.io/name": "zpipe", "app.kubernetes.io/instance": self._instance}
        return labels if rank is None else {**labels, "zpipe.rank": str(rank)}

    def _document(self, version: str, kind: str, name: str, rank: int | None = None, **rest: Any) -> dict[str, Any]:
        return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": self._labels(rank)}, **rest}


def _label(name: str) -> str:
    """What is left of a name for labels and names of objects; so short that a StatefulSet's pods can bear it and their hash."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:36].strip("-") or "topology"


def _least() -> dict[str, Any]:
    """No more rights than the profile `restricted` of the pod security standards leaves."""
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def _probe(path: str, *, every: int, failures: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "metrics"}, "periodSeconds": every, "timeoutSeconds": 5, "failureThreshold": failures}


class _Dumper(yaml.SafeDumper):
    """Without anchors: what is the same in two places is written twice, as people would."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _lines(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Several lines as a block."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _lines)


def _dumped(documents: Sequence[Mapping[str, Any]]) -> str:
    return str(yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=4096, explicit_start=len(documents) > 1))
