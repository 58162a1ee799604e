"""Model bundles: find one, check it, read it.

A *bundle* is a folder (`engines/NAME/`): `manifest.json`, one ONNX file per stage, `evaluation.npz` (real samples with truth)
and `replay.npz` (what every exit says about each of them); perhaps `calibration.npz` (what the exits said about the samples that
temperatures and thresholds were fitted on). This module needs neither torch nor ONNX Runtime, so that a node
that only emulates a network can still use it. `zpipe.models` writes bundles.

Trust: each file's sha256 stands in the manifest, and `Bundle.digest` is the sha256 of the manifest itself, so two nodes that
agree on one short string agree on every byte of the network.
"""

from zpipe.bundle.files import MANIFEST, file_digest
from zpipe.bundle.find import bundle_folders, load_bundle
from zpipe.bundle.join import SCORE_BYTES, Join, StudentSpec, mask_of, parts_of
from zpipe.bundle.manifest import SCHEMA, manifest_digest
from zpipe.bundle.spec import (
    INDEX_BYTES,
    Bundle,
    Calibration,
    CodecMetrics,
    Evaluation,
    Preprocessing,
    Replay,
    indexed_rows,
    lossy_part,
)

__all__ = [
    "INDEX_BYTES",
    "MANIFEST",
    "SCHEMA",
    "SCORE_BYTES",
    "Bundle",
    "Calibration",
    "CodecMetrics",
    "Evaluation",
    "Join",
    "Preprocessing",
    "Replay",
    "StudentSpec",
    "bundle_folders",
    "file_digest",
    "indexed_rows",
    "load_bundle",
    "lossy_part",
    "manifest_digest",
    "mask_of",
    "parts_of",
]
