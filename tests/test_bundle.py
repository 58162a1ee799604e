"""Bundles: found in the promised order, checked byte by byte, and every complaint is one line that says what to do."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zpipe.bundle import Bundle, CodecMetrics, indexed_rows, load_bundle, manifest_digest
from zpipe.bundle.write import check_free, replaced_when_done
from zpipe.errors import BundleError, ConfigError
from zpipe.model import TensorSpec

SAMPLES = 4


def metrics(accuracy: float, first: float, macs: float) -> dict[str, Any]:
    return {"accuracy": accuracy, "exit_shares": [first, 1.0 - first], "mean_macs": macs}


def tiny_manifest() -> dict[str, Any]:
    """Two stages over 4x4 images; nothing in it is a real network."""
    exit_head = {"classes": 2, "temperature": 1.5}
    return {
        "schema": "zpipe.bundle/1",
        "name": "tiny",
        "classes": ["no", "yes"],
        "preprocessing": {"size": 4, "channels": "RGB", "layout": "CHW", "dtype": "uint8", "note": "as it is"},
        "stages": [
            {
                "file": "stage0.onnx",
                "input": {"dtype": "uint8", "shape": [3, 4, 4]},
                "output": {"dtype": "float32", "shape": [8, 2, 2]},
                "activation_bytes": 128,
                "macs": 100,
                "parameters": 10,
                "exit": dict(exit_head),
            },
            {
                "file": "stage1.onnx",
                "input": {"dtype": "float32", "shape": [8, 2, 2]},
                "output": None,
                "activation_bytes": 0,
                "macs": 200,
                "parameters": 20,
                "exit": dict(exit_head),
            },
        ],
        "operating_points": [
            {
                "name": "no-exit",
                "thresholds": [1.0, 1.0],
                "calibration": metrics(0.9, 0.0, 300.0),
                "test": metrics(0.9, 0.0, 300.0),
            },
            {
                "name": "t0.90",
                "thresholds": [0.9, 0.9],
                "calibration": metrics(0.9, 0.5, 200.0),
                "test": metrics(0.8, 0.6, 180.0),
            },
        ],
        "default_operating_point": "t0.90",
        "evaluation": {"file": "evaluation.npz", "samples": SAMPLES},
        "replay": {"file": "replay.npz"},
    }


def write_bundle(folder: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Path:
    """A handmade bundle whose digests are right; `change` alters the manifest before it is written."""
    folder.mkdir(parents=True)
    for stage in range(2):
        (folder / f"stage{stage}.onnx").write_bytes(b"onnx" * (stage + 1))
    whole = np.arange(SAMPLES)
    images = np.zeros((SAMPLES, 3, 4, 4), np.uint8)
    np.savez_compressed(folder / "evaluation.npz", images=images, labels=whole % 2, severity=whole, digit=whole)
    answers: dict[str, Any] = {"label.none": np.zeros((SAMPLES, 2), np.int16)}
    answers["confidence.none"] = np.full((SAMPLES, 2), 0.5, np.float32)
    np.savez_compressed(folder / "replay.npz", **answers)
    manifest = tiny_manifest()
    manifest["digests"] = {
        path.name: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in sorted(folder.iterdir())
    }
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def complaint(call: Callable[[], object]) -> str:
    """The message of the BundleError that `call` raises: one line, with a next step."""
    with pytest.raises(BundleError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert "found" in message
    assert "expected" in message
    return message


# ---- reading -----------------------------------------------------------------------------------


def test_bundle_reads_back_what_was_written(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "tiny"))
    assert bundle.name == "tiny"
    assert bundle.classes == ("no", "yes")
    assert bundle.full_macs == 300
    assert [stage.index for stage in bundle.stages] == [0, 1]
    assert bundle.stages[0].output == bundle.stages[1].input
    assert bundle.stages[1].output is None
    assert bundle.stage_path(1) == tmp_path / "tiny" / "stage1.onnx"
    assert [len(bundle.evaluation()), bundle.evaluation().images.shape] == [SAMPLES, (SAMPLES, 3, 4, 4)]
    assert bundle.replay().confidences.dtype == np.float32
    assert "\n" not in repr(bundle)


def test_operating_points_are_ordered_by_cost_on_calibration(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "tiny"))
    assert [point.name for point in bundle.operating_points] == ["t0.90", "no-exit"]
    assert bundle.default_point is bundle.point("t0.90")
    assert "t0.90" in complaint(lambda: bundle.point("t0.99"))


def test_digest_ignores_layout_but_no_value(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "tiny"))
    path = bundle.path / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(manifest.items())), indent=4))
    assert load_bundle(bundle.path).digest == bundle.digest == manifest_digest(manifest)
    manifest["stages"][0]["exit"]["temperature"] = 1.25
    path.write_text(json.dumps(manifest))
    assert load_bundle(bundle.path).digest != bundle.digest


# ---- finding -----------------------------------------------------------------------------------


def test_path_wins_over_topology_folder_over_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    topology = tmp_path / "site" / "topologies" / "line.yaml"
    topology.parent.mkdir(parents=True)
    topology.write_text("")
    order = [
        tmp_path / "tiny",
        topology.parent / "tiny",
        topology.parent.parent / "engines" / "tiny",
        tmp_path / "engines" / "tiny",
    ]
    for folder in reversed(order):
        write_bundle(folder)
        assert load_bundle("tiny", beside=topology).path.resolve() == folder
    assert load_bundle("tiny", beside=topology.parent).path.resolve() == order[0]
    assert load_bundle(topology.parent / "tiny").path == order[1]
    assert load_bundle(topology.parent / "tiny" / "manifest.json").path == order[1]


def test_unknown_name_lists_the_places_tried(tmp_path: Path) -> None:
    message = complaint(lambda: load_bundle("nowhere", beside=tmp_path / "topologies"))
    assert str(tmp_path / "topologies" / "nowhere") in message
    assert str(tmp_path / "engines" / "nowhere") in message
    assert str(Path("zpipe") / "data" / "engines" / "nowhere") in message
    assert "zpipe train" in message


# ---- refusing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stage1.onnx", "evaluation.npz", "replay.npz"])
def test_changed_file_is_refused_unless_unverified(tmp_path: Path, name: str) -> None:
    folder = write_bundle(tmp_path / "tiny")
    with (folder / name).open("ab") as stream:
        stream.write(b"x")
    message = complaint(lambda: load_bundle(folder))
    assert str(folder / name) in message
    assert f"digests.{name}" in message
    assert load_bundle(folder, verify=False).name == "tiny"


def test_absent_file_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "tiny")
    (folder / "stage0.onnx").unlink()
    assert str(folder / "stage0.onnx") in complaint(lambda: load_bundle(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": NaN}', "\udcff"])
def test_manifest_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "manifest.json" in complaint(lambda: load_bundle(folder))


def _set(*keys: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (_set("schema", value="zpipe.bundle/2"), "schema"),
        (_set("name", value=7), "name"),
        (_set("classes", value="no"), "classes"),
        (_set("preprocessing", "layout", value="HWC"), "preprocessing.layout"),
        (_set("preprocessing", "size", value=5), "stages[0].input"),
        (_set("stages", value=[]), "stages"),
        (_set("stages", 0, "file", value="../stage0.onnx"), "stages[0].file"),
        (_set("stages", 0, "macs", value=-1), "stages[0].macs"),
        (_set("stages", 0, "macs", value=True), "stages[0].macs"),
        (_set("stages", 0, "activation_bytes", value=127), "stages[0].activation_bytes"),
        (_set("stages", 0, "output", "dtype", value="complex64"), "stages[0].output.dtype"),
        (_set("stages", 1, "input", "shape", value=[8, 2, 3]), "stages[1].input"),
        (_set("stages", 1, "exit", "classes", value=3), "stages[1].exit.classes"),
        (_set("stages", 1, "exit", "temperature", value=0), "stages[1].exit.temperature"),
        (_set("stages", 1, "exit", value=None), "stages[1].exit"),
        (_set("operating_points", 0, "thresholds", value=[0.9]), "operating_points[0].thresholds"),
        (_set("operating_points", 0, "test", "accuracy", value=90), "operating_points[0].test.accuracy"),
        (_set("operating_points", 0, "name", value="t0.90"), "operating_points"),
        (_set("default_operating_point", value="t0.99"), "default_operating_point"),
        (_set("evaluation", "samples", value=0), "evaluation.samples"),
        (_set("digests", value={}), "digests.stage0.onnx"),
        (lambda manifest: manifest.pop("digests"), "digests"),
        (lambda manifest: manifest["stages"][0].pop("macs"), "stages[0].macs"),
        (lambda manifest: manifest["stages"].append(manifest["stages"][1]), "stages[2].input"),
        (lambda manifest: manifest["stages"].pop(), "stages[0].output"),
    ],
)
def test_wrong_key_is_named_in_one_line(tmp_path: Path, change: Callable[[dict[str, Any]], None], key: str) -> None:
    folder = write_bundle(tmp_path / "tiny", change)
    message = complaint(lambda: load_bundle(folder))
    assert f"{folder / 'manifest.json'}: {key}: " in message


def _rewrite(bundle: Bundle, name: str, **arrays: Any) -> None:
    np.savez_compressed(bundle.path / name, **arrays)


def test_evaluation_set_of_another_shape_is_refused(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "tiny"))
    whole = np.arange(SAMPLES)
    good = {"images": np.zeros((SAMPLES, 3, 4, 4), np.uint8), "labels": whole % 2, "severity": whole, "digit": whole}
    for key, value in {
        "images": np.zeros((SAMPLES, 3, 4, 4), np.float32),
        "labels": whole,
        "severity": whole[1:],
        "digit": whole.astype(object),
    }.items():
        _rewrite(bundle, "evaluation.npz", **{**good, key: value})
        assert "evaluation.npz" in complaint(bundle.evaluation)
        if key != "images":
            assert "evaluation.npz" in complaint(bundle.evaluation_labels)
    _rewrite(bundle, "evaluation.npz", **good)
    assert [known.tolist() for known in bundle.evaluation_labels()] == [(whole % 2).tolist(), whole.tolist()]
    (bundle.path / "evaluation.npz").write_bytes(b"PK")
    assert "evaluation.npz" in complaint(bundle.evaluation)


def test_replay_of_unknown_codec_is_refused(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "tiny"))
    assert "label.zfp" in complaint(lambda: bundle.replay("zfp"))


def test_bundle_without_evaluation_set_says_so(tmp_path: Path) -> None:
    def drop(manifest: dict[str, Any]) -> None:
        manifest["evaluation"] = manifest["replay"] = None

    bundle = load_bundle(write_bundle(tmp_path / "tiny", drop))
    assert "evaluation" in complaint(bundle.evaluation)
    assert "evaluation" in complaint(bundle.evaluation_labels)
    assert "replay" in complaint(bundle.replay)


def test_codec_that_only_packs_another_has_its_table(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "tiny"))
    labels, confidences = np.ones((SAMPLES, 2), np.int16), np.full((SAMPLES, 2), 0.25, np.float32)
    _rewrite(bundle, "replay.npz", **{"label.int8": labels, "confidence.int8": confidences})
    replay = bundle.replay("int8+zstd")
    assert (replay.labels == labels).all()
    assert (replay.confidences == confidences).all()


def test_replay_codecs_are_those_with_a_table(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "tiny"))
    assert bundle.replay_codecs() == ("none",)
    tables = {f"{what}.{codec}": np.zeros((SAMPLES, 2)) for codec in ("none", "int8") for what in ("label", "confidence")}
    _rewrite(bundle, "replay.npz", **tables)
    assert bundle.replay_codecs() == ("none", "int8", "int8+zstd")
    (bundle.path / "replay.npz").write_bytes(b"PK")
    assert "replay.npz" in complaint(bundle.replay_codecs)
    assert replace(bundle, replay_file=None).replay_codecs() == ()


# ---- codecs ------------------------------------------------------------------------------------


def test_what_codecs_cost_and_the_learned_one_are_read_where_a_manifest_has_them(tmp_path: Path) -> None:
    plain = load_bundle(write_bundle(tmp_path / "plain"))
    assert (plain.codecs, plain.bottleneck_file) == ({}, None)
    assert "take another codec" in complaint(plain.bottleneck)

    def measured(manifest: dict[str, Any]) -> None:
        manifest["codecs"] = {"int8": {"accuracy": 0.8, "lost": -0.01, "bytes": [40.0]}}

    assert load_bundle(write_bundle(tmp_path / "measured", measured)).codecs == {"int8": CodecMetrics(0.8, -0.01, (40.0,))}


@pytest.mark.parametrize(
    ("codecs", "key"),
    [
        ({"zip": {}}, "codecs: found"),
        (["int8"], "codecs: found"),
        ({"int8": {"accuracy": 1.5, "lost": 0.0, "bytes": [1]}}, "codecs.int8.accuracy: found 1.5"),
        ({"int8": {"accuracy": 0.5, "lost": "no", "bytes": [1]}}, 'codecs.int8.lost: found "no"'),
        ({"int8": {"accuracy": 0.5, "lost": 0.0, "bytes": [1, 2]}}, "codecs.int8.bytes: found [1, 2], expected 1 values"),
        ({"int8": {"accuracy": 0.5, "lost": 0.0}}, "codecs.int8.bytes: found no such key"),
    ],
)
def test_wrong_codec_figures_are_refused(tmp_path: Path, codecs: object, key: str) -> None:
    folder = write_bundle(tmp_path / "tiny", lambda manifest: manifest.update(codecs=codecs))
    assert key in complaint(lambda: load_bundle(folder))


def test_a_changed_autoencoder_is_refused(tmp_path: Path) -> None:
    def learned(manifest: dict[str, Any]) -> None:
        manifest["bottleneck"] = {"file": "bottleneck.npz"}
        manifest["digests"]["bottleneck.npz"] = "sha256:00"

    folder = write_bundle(tmp_path / "tiny", learned)
    np.savez(folder / "bottleneck.npz", weights=np.zeros(1))
    assert "digests.bottleneck.npz" in complaint(lambda: load_bundle(folder))
    assert "expected float32" in complaint(load_bundle(folder, verify=False).bottleneck)
    (folder / "bottleneck.npz").write_bytes(b"PK")
    assert "no readable npz" in complaint(load_bundle(folder, verify=False).bottleneck)


# ---- calibration -------------------------------------------------------------------------------


def calibrated(manifest: dict[str, Any]) -> None:
    """A calibration split of three samples and a table of two rows."""
    manifest["calibration"] = {"file": "calibration.npz", "samples": 3}
    manifest["digests"]["calibration.npz"] = "sha256:00"
    rows = [promise(0.8, 0.85, test=None), promise(0.9, 0.95, test=metrics(0.89, 0.2, 260.0), test_interval=[0.85, 0.93])]
    manifest["accuracy_table"] = {"variant": "per-exit", "rows": rows}


def promise(target: float, accuracy: float, **more: Any) -> dict[str, Any]:
    row = {"target": target, "thresholds": [target, target], "calibration": metrics(accuracy, 0.3, 240.0)}
    return {**row, "test": None, "test_interval": None, **more}


def calibrated_bundle(folder: Path) -> Bundle:
    return load_bundle(write_bundle(folder, calibrated), verify=False)


def test_accuracy_table_is_read_and_the_lowest_sufficient_row_found(tmp_path: Path) -> None:
    bundle = calibrated_bundle(tmp_path / "tiny")
    assert [row.target for row in bundle.accuracy_table] == [0.8, 0.9]
    assert bundle.promise(0.8).test is None
    row = bundle.promise(0.81)
    assert (row.target, row.thresholds, row.test_interval) == (0.9, (0.9, 0.9), (0.85, 0.93))
    assert row.test is not None
    assert (row.calibration.accuracy, row.test.accuracy) == (0.95, 0.89)
    assert "expected at most 0.9" in complaint(lambda: bundle.promise(0.91))


def test_bundles_from_before_have_no_table_and_say_how_to_get_one(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "tiny", lambda manifest: manifest.update(calibration={"samples": 9, "exits": []})))
    assert (bundle.accuracy_table, bundle.calibration_file, bundle.calibration_samples) == ((), None, 0)
    assert "zpipe calibrate" in complaint(lambda: bundle.promise(0.8))
    assert "zpipe calibrate" in complaint(bundle.calibration)


def test_calibration_split_is_read_and_a_wrong_one_refused(tmp_path: Path) -> None:
    bundle = calibrated_bundle(tmp_path / "tiny")
    whole = np.arange(3)
    good = {"logits": np.zeros((3, 2, 2), np.float32), "labels": whole % 2, "severity": whole, "digit": whole}
    _rewrite(bundle, "calibration.npz", **good)
    found = bundle.calibration()
    assert (len(found), found.logits.shape, found.labels.dtype.name) == (3, (3, 2, 2), "int64")
    for key, value in {
        "logits": np.zeros((3, 1, 2), np.float32),
        "labels": whole,
        "digit": whole[1:],
        "severity": whole.astype(np.float32),
    }.items():
        _rewrite(bundle, "calibration.npz", **{**good, key: value})
        assert f"calibration.npz: {key}: found" in complaint(bundle.calibration)
    assert "digests.calibration.npz" in complaint(lambda: load_bundle(bundle.path))


@pytest.mark.parametrize(
    ("rows", "key"),
    [
        ("none", "accuracy_table.rows: found"),
        ([promise(0.9, 0.95), promise(0.8, 0.85)], "accuracy_table.rows: found"),
        ([promise(0.9, 0.95), promise(0.9, 0.95)], "accuracy_table.rows: found"),
        ([promise(1.9, 0.95)], "accuracy_table.rows[0].target: found 1.9"),
        ([promise(0.9, 0.95, thresholds=[0.9])], "accuracy_table.rows[0].thresholds: found [0.9]"),
        ([promise(0.9, 0.95, test_interval=[0.9])], "accuracy_table.rows[0].test_interval: found [0.9], expected two numbers"),
        ([promise(0.9, 0.95, test={})], "accuracy_table.rows[0].test.exit_shares: found no such key"),
    ],
)
def test_wrong_accuracy_table_is_refused(tmp_path: Path, rows: object, key: str) -> None:
    folder = write_bundle(tmp_path / "tiny", lambda manifest: manifest.update(accuracy_table={"rows": rows}))
    assert key in complaint(lambda: load_bundle(folder))


# ---- emulation ---------------------------------------------------------------------------------


def test_an_emulation_has_rows_of_bytes_four_longer_than_the_tensors_and_the_same_digest(tmp_path: Path) -> None:
    real = load_bundle(write_bundle(tmp_path / "tiny"))
    emulated = real.emulated()
    assert [spec.input for spec in emulated.stages] == [TensorSpec("uint8", (4 + 48,)), TensorSpec("uint8", (4 + 128,))]
    assert [spec.output for spec in emulated.stages] == [TensorSpec("uint8", (4 + 128,)), None]
    assert (emulated.digest, emulated.stage_path(1)) == (real.digest, real.stage_path(1))
    assert (real.prefix_bytes, emulated.prefix_bytes) == (0, 4)
    assert emulated.real is real.real is real
    assert emulated.emulated() == emulated


def test_images_of_an_emulation_are_the_index_and_the_bytes_of_the_real_ones(tmp_path: Path) -> None:
    real = load_bundle(write_bundle(tmp_path / "tiny"))
    rows, images = real.emulated().evaluation().images, real.evaluation().images
    assert rows.dtype == np.uint8
    assert rows[:, :4].tolist() == [[k, 0, 0, 0] for k in range(SAMPLES)]
    np.testing.assert_array_equal(rows[:, 4:], images.reshape(SAMPLES, -1))


def test_rows_of_any_tensor_hold_a_little_endian_index() -> None:
    rows = indexed_rows(np.arange(300, dtype=np.float32)[:, None])
    assert rows.shape == (300, 8)
    assert rows[259, :4].tolist() == [3, 1, 0, 0]
    assert rows[259, 4:].view(np.float32)[0] == 259.0


# ---- networks that take no images --------------------------------------------------------------


def tokens(manifest: dict[str, Any]) -> None:
    """Stage 0 takes four whole numbers."""
    manifest["preprocessing"] = None
    manifest["stages"][0]["input"] = {"dtype": "int64", "shape": [4]}
    manifest["evaluation"]["generated"] = True


def test_without_preprocessing_stage_0_takes_any_tensor(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "tiny", tokens), verify=False)
    assert bundle.preprocessing is None
    assert bundle.stages[0].input == TensorSpec("int64", (4,))
    assert bundle.evaluation_generated
    assert "takes" not in complaint(lambda: bundle.image_size)


def test_evaluation_holds_what_stage_0_takes(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "tiny", tokens), verify=False)
    assert "int64" in complaint(bundle.evaluation)
    whole = np.arange(SAMPLES)
    images = np.ones((SAMPLES, 4), np.int64)
    np.savez_compressed(bundle.path / "evaluation.npz", images=images, labels=whole % 2, severity=whole, digit=whole)
    assert bundle.evaluation().images.dtype == np.int64
    assert bundle.emulated().evaluation().images.shape == (SAMPLES, 4 + 32)


def test_replay_of_a_large_vocabulary(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "tiny"))
    answers: dict[str, Any] = {"label.none": np.full((SAMPLES, 2), 50_256, np.int32)}
    answers["confidence.none"] = np.full((SAMPLES, 2), 0.5, np.float32)
    np.savez_compressed(bundle.path / "replay.npz", **answers)
    assert int(bundle.replay().labels.max()) == 50_256


def test_sigterm_while_a_bundle_is_written_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "old").touch()

    def replace_and_end() -> None:
        with replaced_when_done(out) as folder:
            (folder / "new").touch()
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        replace_and_end()
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert [path.name for path in out.iterdir()] == ["old"]


def test_signal_in_the_last_step_waits_until_the_new_bundle_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, rename = tmp_path / "bundle", Path.rename
    out.mkdir()

    def interrupted(self: Path, target: Path) -> Path:
        signal.raise_signal(signal.SIGINT)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), replaced_when_done(out) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert [path.name for path in out.iterdir()] == ["new"]


def test_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "bundle", Path("/proc/zpipe/bundle")):
        with pytest.raises(ConfigError, match=f"{out}: found that it cannot be written .*; choose another with --out"):
            enter(out)


def test_full_disk_is_refused_in_one_line_and_the_old_bundle_stays(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "old").touch()
    with (
        pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\).*; copy it"),
        replaced_when_done(out, remedy="copy it"),
    ):
        raise OSError(28, "No space left on device")
    with pytest.raises(ConfigError, match="cannot be written"), replaced_when_done(out) as folder:
        (folder / "none" / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert [path.name for path in out.iterdir()] == ["old"]


def test_error_of_reading_while_a_bundle_is_written_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replaced_when_done(tmp_path / "bundle"):
        (tmp_path / "bundle-data").read_bytes()
    assert not list(tmp_path.iterdir())


def enter(out: Path) -> None:
    with replaced_when_done(out):
        pass


def test_only_a_bundle_is_replaced_and_only_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    bundle = write_bundle(tmp_path / "tiny")
    for asked in (False, True):
        check_free(tmp_path / "nothing", replace=asked)
        check_free(tmp_path / "empty", replace=asked)
        for stranger in (tmp_path, tmp_path / "file", tmp_path / "dangling"):
            with pytest.raises(ConfigError, match="no bundle, expected a bundle to replace or nothing"):
                check_free(stranger, replace=asked)
        with pytest.raises(ConfigError, match="cannot be read"):
            check_free(tmp_path / ("n" * 300), replace=asked)
    check_free(bundle, replace=True)
    check_free(bundle, replace=True, read=(None, tmp_path / "data.npz"))
    with pytest.raises(ConfigError, match=r"data.npz lies in .*tiny, expected another folder"):
        check_free(bundle, replace=True, read=(bundle / "data.npz",))
    with pytest.raises(ConfigError, match="there already, expected a free name; choose another or add --replace"):
        check_free(bundle, replace=False)
