"""Topologies: which node hosts which stages, who is linked to whom, where samples enter, and by which policy.

A topology is a short YAML file; `topologies/line4.yaml` shows how little one needs. Its keys, with their defaults:

    name: the file's name
    bundle: NAME                  the model bundle, required
    students: none                of a bundle of students: how many stages each has, by part, such as [1, 1, 2]; its stages are
                                  numbered through (here 0; 1; 2 and 3), and every sample goes to a host of each student
    nodes:                        required; listed by rank, from 0
      - rank: 0                   required
        stages: [0, 1]            required; [] for a node that only submits samples
        address: 127.0.0.1:0      where others reach it, its control port is one higher; port 0 = started by whoever runs the bench
        bind: ""                  host or host:port to listen on where that is not the address
        executor: auto            what runs the stages: trt (TensorRT), torch-cuda, onnx (ONNX Runtime on the CPU), auto: the first
                                  of these that works where the node runs; emulated (boards that are not here; then every node),
                                  or MODULE:CLASS of your own (`zpipe.executors`)
        device: ""                a GPU and what it computes in: 1, cuda:1, fp16, cuda:1/fp16; an emulated node's profile: a name in
                                  zpipe/devices.yaml, or NAME/4 for four times slower
        max_batch: 8              most tasks in one batch
        slots: 64                 most samples of its own under way in this node (policy rule C1)
    links: line                   line, ring, mesh, star (all linked to rank 0); or {shape: line, latency: 5 ms, ...}; or a list of
      - between: [0, 1]           required
        bandwidth: 20 Mbit/s      none = not limited (the lab and the simulator limit it, a live link is measured)
        latency: 0 s
        jitter: 0 s               frames take up to this much longer (the lab and the simulator; a live link has its own)
        codec: none               how activations are packed: none, fp16, int8, int8+zstd, bottleneck (`zpipe.codecs` says what
                                  each does), or auto: the one that costs least accuracy and keeps up, by measured bandwidth;
                                  raw inputs, all that students of one stage get, only int8+zstd changes, and without loss
        medium: ""                links of one medium share its airtime
        window: 16                slots of each direction at its receiver (policy rule C1)
    source: 0                     a rank, or the keys below; `sources:` a list of these; the lowest rank where neither is given
        rank: 0                   required in `sources:`; 0 where `source:` does not say
        name: source-0            source-RANK where it does not say; letters, digits, - and _
        arrivals: live            live: whoever connects submits (a bench keeps a window of samples under way); poisson, constant:
                                  a bench offers `rate` a second; or a file of arrival times, beside the topology or where one is
        rate: none                such as 20/s; alone it means arrivals: poisson
        admission: aimd           fixed, mdi-rate, mdi-threshold, aimd; or {name: aimd, when_full: block, waiting: 0, OPTION: ...}
        deadline: 30 s
        priority: by weight       the class of its tasks, 0 the lowest; not said, the heavier of two sources is of a higher class
        weight: 1.0               gamma of PA-MDI; the heavier source is of a higher class, however little heavier it is
        accuracy:                 what this source wants, such as 0.95: the thresholds come from the bundle's accuracy table, as
                                  long as policy.exit is default
    policy: local                 an offload strategy, or the keys below
        offload: local            local, cheapest, ddi, mdi; for several sources pa-mdi, ar-mdi, ms-mdi, fifo (zpipe.policy.offload)
        exit: default             an operating point of the bundle, `default` for its own choice, or `no-exit`
        report_interval: 100 ms
        output_threshold: 50      T_O of MDI-Exit's Alg. 1
        offload_input: false      true, false (ddi: true) or auto: whether raw inputs may go out; auto: those of sources on whose
                                  links they are fewer bytes than what is left to send after stage 0
        order: fifo               fifo or priority (pa-mdi: priority): by class, then age (policy rule A7); with priority also
        min_share: 0.05           of the time in which it waits at a node, for every class below the highest; they are owed half at
                                  most together, so with more than 11 classes the default is less
        max_batch_low: 0          most tasks in a batch of any class but the highest; 0 = the node's max_batch
        ageing: 0 s               of waiting at a node that a class is worth: with 2 s, who came more than that before a task of the
                                  class above goes first; 0 = none is, and min_share alone keeps a lower class going
        redundancy: hedged        with students: failover, another host of a student gets a sample once one failed; hedged, besides
                                  once one takes long; all, every host gets every sample
    security:                     who may connect; where it is absent nodes bind loopback addresses only
        keys: keys                the folder of keys that `zpipe keygen` made, beside the topology file
    security: none                everybody who can reach the nodes; the same as --insecure
    shared_memory: true           whether large activations between nodes of one host and one user go through shared memory; both
                                  ends must want it, and other processes of that user can read them, keys or not
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zpipe.errors import TopologyError
from zpipe.topology.baselines import BASELINES, baseline
from zpipe.topology.check import check
from zpipe.topology.keys import SecuritySpec
from zpipe.topology.parse import parse
from zpipe.topology.reader import At, read_yaml
from zpipe.topology.spec import (
    ARRIVALS,
    DEFAULT_POINT,
    LIVE,
    LOCAL_ADDRESS,
    NO_EXIT,
    RANKED,
    RATE_HZ,
    AdmissionSpec,
    LinkSpec,
    NodeSpec,
    OffloadInput,
    PolicySpec,
    Redundancy,
    SourceSpec,
    Topology,
    first_difference,
)

__all__ = [
    "ARRIVALS",
    "BASELINES",
    "DEFAULT_POINT",
    "LIVE",
    "LOCAL_ADDRESS",
    "NO_EXIT",
    "RATE_HZ",
    "AdmissionSpec",
    "LinkSpec",
    "NodeSpec",
    "OffloadInput",
    "PolicySpec",
    "Redundancy",
    "SecuritySpec",
    "SourceSpec",
    "Topology",
    "baseline",
    "check",
    "first_difference",
    "from_dict",
    "load_topology",
    "override",
    "shortest_name",
    "topology_files",
]

_PACKAGE = Path(__file__).resolve().parent.parent
#: Where a bare name is looked up, in this order, after the path as given: the caller's folder, the installed package, a checkout.
_PLACES = (Path("topologies"), _PACKAGE / "data" / "topologies", _PACKAGE.parent / "topologies")
_SUFFIX = ".yaml"


def load_topology(name_or_path: str | Path, *, read_keys: bool = True) -> Topology:
    """Read and check a topology file: `load_topology("line4")`, `load_topology("boards/hall.yaml")`.

    What depends on the bundle is left to `check(topology, stage_count)`.

    Args:
        name_or_path: a file, or the name of one of ours.
        read_keys: whether the public keys it names must be there; False for who makes them.

    Raises:
        TopologyError: there is no such file, or something in it is wrong; one line that names file, key, found and expected.
    """
    path = _find(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise At(str(path)).error(f"a file that cannot be read ({exc})", "a topology in YAML, UTF-8") from exc
    return parse(read_yaml(text, str(path)), file=str(path), path=path, name=path.stem, read_keys=read_keys)


def topology_files() -> list[Path]:
    """Every topology that its name alone finds from here, by name."""
    found: dict[str, Path] = {}
    for folder in _PLACES:
        for file in sorted(folder.glob(f"*{_SUFFIX}")):
            found.setdefault(file.name, file)
    return [found[name] for name in sorted(found)]


def shortest_name(topology: Topology) -> str:
    """What to type here to name this topology: its file's name where that finds it, else the path."""
    path = topology.path
    if path is None:
        return topology.name
    try:
        return path.name if _find(path.name).resolve() == path.resolve() else str(path)
    except TopologyError:
        return str(path)


def from_dict(plain: Mapping[str, Any]) -> Topology:
    """The inverse of `Topology.to_dict`, for a child process; checked like a file.

    Raises:
        TopologyError: as `load_topology`.
    """
    rest = {key: value for key, value in plain.items() if key != "path"}
    path = plain.get("path")
    return parse(rest, file=str(path or rest.get("name", "topology")), path=Path(path) if path else None)


def override(
    topology: Topology,
    *,
    bundle: str | None = None,
    max_batch: int | None = None,
    executor: str | None = None,
    device: str | None = None,
    offload: str | None = None,
    offload_input: str | None = None,
    exit_point: str | None = None,
    admission: str | Mapping[str, Any] | None = None,
    accuracy: float | None = None,
    deadline_seconds: float | None = None,
    bandwidth: str | float | None = None,
    latency: str | float | None = None,
    codec: str | None = None,
    redundancy: str | None = None,
) -> Topology:
    """A copy with some values changed at every node, source or link, checked like a file: what a command line says on top of it.

    Args:
        topology: the one to start from.
        bundle: name or path.
        max_batch, executor: of every node.
        device: of every node that names none.
        offload, offload_input, exit_point, redundancy: of the policy.
        admission: of every source, a name or a mapping as in a topology file.
        accuracy: that every source wants, 0..1.
        deadline_seconds: of every source.
        bandwidth, latency, codec: of every link, as in a topology file.

    Raises:
        TopologyError: a value is not possible.
    """
    plain = topology.to_dict()
    if offload is not None:
        _as_strategy_orders(plain["policy"], topology.policy, offload)
    for entries, values in (
        (plain["nodes"], {"max_batch": max_batch, "executor": executor}),
        (plain["sources"], {"admission": admission, "deadline": deadline_seconds, "accuracy": accuracy}),
        (plain["links"], {"bandwidth": bandwidth, "latency": latency, "codec": codec}),
        ([plain], {"bundle": bundle}),
        ([plain["policy"]], {"offload": offload, "offload_input": _inputs(offload, offload_input)}),
        ([plain["policy"]], {"exit": exit_point, "redundancy": redundancy}),
    ):
        for entry in entries:
            entry.update({key: value for key, value in values.items() if value is not None})
    for node in plain["nodes"]:
        node["device"] = node["device"] or device or ""
    return from_dict(plain)


def _as_strategy_orders(plain: dict[str, Any], policy: PolicySpec, offload: str) -> None:
    """A service order that came with the strategy goes with it; one that the file chose against its strategy stays."""
    if policy.order == ("priority" if policy.offload in RANKED else "fifo"):
        kept = ("order",) if offload in RANKED else ("order", "min_share", "max_batch_low", "ageing")
        for key in kept:
            plain.pop(key, None)


def _inputs(offload: str | None, offload_input: str | None) -> str | None:
    """`ddi` sends raw inputs whatever the file says of another strategy."""
    return offload_input or ("yes" if offload == "ddi" else None)


def _find(name_or_path: str | Path) -> Path:
    """The first file that there is.

    Raises:
        TopologyError: none; the message lists the places tried.
    """
    given = Path(name_or_path)
    # Only a bare name has other places than its own.
    folders = (Path(), *_PLACES) if given.name == str(given) else (Path(),)
    names = (given,) if given.suffix == _SUFFIX else (given, Path(f"{given}{_SUFFIX}"))
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    tried = ", ".join(str(folder.absolute()) for folder in folders)
    known = [file.stem for file in topology_files()] if len(folders) > 1 else []
    near = difflib.get_close_matches(given.stem, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise TopologyError(f"topology {str(name_or_path)!r}: found no such file{hint}, expected it (or it with {_SUFFIX}) in {tried}")
