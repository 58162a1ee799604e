"""Where engines lie, what each is, and which fits."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.executors.tiny import tiny_bundle
from zpipe.bundle import Bundle
from zpipe.errors import BundleError, ConfigError
from zpipe.executors.tensorrt.manifest import (
    Accuracy,
    Engine,
    EngineKey,
    engine_folder,
    engines_of,
    fits,
    fitting,
    fresh_folder,
    parse_target,
    read_engine,
    write_whole,
)

KEY = EngineKey(1, "fp16", 16, "rtx1.7.1", "8.6", "sha256:" + "ab" * 32)


def engine(folder: Path, key: EngineKey = KEY, **changes: Any) -> Engine:
    """On disk."""
    plan = folder / f"{key.name}.plan"
    folder.mkdir(parents=True, exist_ok=True)
    plan.write_bytes(b"plan")
    accuracy = Accuracy("onnxruntime", 100, (0.9, None, 0.99), (0.89, None, 0.995))
    digest = f"sha256:{hashlib.sha256(b'plan').hexdigest()}"
    tensors = {"input": {"dtype": "uint8", "shape": [-1, 3]}}
    made = Engine(key, plan, digest, 4, 1.5, accuracy, tensors, (1, 4, 16), "tiny", {"cores": 2})
    made = replace(made, **changes)
    made.write()
    return made


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bundle").mkdir()
    return tiny_bundle(path=tmp_path / "bundle")


def test_name_says_what_a_plan_is_valid_for() -> None:
    assert KEY.name == "stage1-fp16-b16-rtx1.7.1-sm86-abababababab"
    assert replace(KEY, target="any").name == "stage1-fp16-b16-rtx1.7.1-any-abababababab"
    assert str(KEY) == "fp16 up to batch 16 by rtx1.7.1 for capability 8.6"


def test_manifest_reads_back_as_it_was_written(tmp_path: Path) -> None:
    made = engine(tmp_path)
    assert read_engine(made.plan.with_suffix(".json")) == made
    assert made.whole()


def test_losses_are_in_points_and_the_worst_exit_counts() -> None:
    accuracy = Accuracy("onnxruntime", 100, (0.9, None, 0.99), (0.89, None, 0.995))
    assert list(accuracy.lost) == [pytest.approx(1.0), None, pytest.approx(-0.5)]
    assert accuracy.worst == pytest.approx(1.0)
    assert Accuracy().worst == 0.0


@pytest.mark.parametrize(
    ("changes", "fit"),
    [
        ({}, True),
        ({"max_batch": 4}, True),
        ({"max_batch": 17}, True),  # runs in pieces
        ({"stage": 2}, False),
        ({"precision": "fp32"}, False),
        ({"flavour": "rtx1.6.1"}, False),
        ({"target": "8.9"}, False),
        ({"onnx": "sha256:" + "cd" * 32}, False),
    ],
)
def test_engine_fits_one_stage_precision_library_gpu_and_onnx(changes: dict[str, Any], fit: bool) -> None:
    assert fits(KEY, replace(KEY, **changes)) is fit


def test_engine_for_any_gpu_runs_from_8_0_on() -> None:
    anywhere = replace(KEY, target="any")
    assert [fits(anywhere, replace(KEY, target=target)) for target in ("7.5", "8.0", "9.0", "12.1", "any")] == [False] + [True] * 4
    assert not fits(KEY, anywhere)


def test_smallest_batch_that_is_enough_is_taken_then_the_exact_gpu(tmp_path: Path) -> None:
    keys = [replace(KEY, max_batch=batch, target=target) for batch in (8, 16, 64) for target in ("8.6", "any")]
    engines = [engine(tmp_path, key) for key in keys]

    def taken(batch: int) -> tuple[int, str]:
        found = fitting(engines, replace(KEY, max_batch=batch))
        assert found is not None
        return found.key.max_batch, found.key.target

    assert [taken(batch) for batch in (1, 9, 65)] == [(8, "8.6"), (16, "8.6"), (64, "8.6")]
    assert fitting(engines, replace(KEY, precision="int8")) is None


def test_engines_are_found_in_the_bundle_before_the_cache(bundle: Bundle, tmp_path: Path) -> None:
    assert engines_of(bundle) == ()
    cached = engine(tmp_path / "cache" / "zpipe" / "trt" / "tiny-000000000000")
    assert engines_of(bundle) == (cached,)
    own = engine(bundle.path / "trt")
    assert engines_of(bundle) == (own,)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:100],
        lambda text: "[]",
        lambda text: json.dumps({**json.loads(text), "schema": "zpipe.engine/9"}),
        lambda text: json.dumps({**json.loads(text), "conversion": 0}),
        lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != "plan_digest"}),
        lambda text: json.dumps({**json.loads(text), "key": {"stage": 1}}),
    ],
)
def test_manifest_that_cannot_be_read_counts_as_no_engine(damage: Any, bundle: Bundle) -> None:
    file = engine(bundle.path / "trt").plan.with_suffix(".json")
    file.write_text(damage(file.read_text()))
    with pytest.raises(BundleError, match=r"found no readable engine manifest .*build it anew with `zpipe build`") as info:
        read_engine(file)
    assert "\n" not in str(info.value)
    assert engines_of(bundle) == ()


def test_plan_without_manifest_and_manifest_without_plan_are_no_engine(bundle: Bundle) -> None:
    engine(bundle.path / "trt").plan.unlink()
    (bundle.path / "trt" / "stage0-x.plan").write_bytes(b"")
    assert engines_of(bundle) == ()


def test_changed_plan_is_not_whole(tmp_path: Path) -> None:
    made = engine(tmp_path)
    made.plan.write_bytes(b"other")
    assert not made.whole()
    made.plan.unlink()
    assert not made.whole()


def test_bundle_that_cannot_be_written_has_its_engines_in_the_users_cache(bundle: Bundle, tmp_path: Path) -> None:
    assert engine_folder(bundle) == bundle.path / "trt"
    (bundle.path / "trt").rmdir()
    (bundle.path / "trt").touch()  # root may write anywhere, but not make a folder of a file
    assert engine_folder(bundle) == tmp_path / "cache" / "zpipe" / "trt" / "tiny-000000000000"
    (tmp_path / "cache" / "zpipe" / "trt" / "tiny-000000000000").rmdir()
    (tmp_path / "cache" / "zpipe" / "trt" / "tiny-000000000000").touch()
    with pytest.raises(ConfigError, match=r"engines: found no folder to write to: .*trt .*, expected one; set XDG_CACHE_HOME"):
        engine_folder(bundle)


def test_engine_takes_the_place_of_one_of_its_name(tmp_path: Path) -> None:
    old = engine(tmp_path, build_seconds=1.0)
    old.compiled.touch()
    with fresh_folder(tmp_path) as fresh:
        moved = engine(fresh, build_seconds=2.0).move(tmp_path)
    assert moved == read_engine(old.plan.with_suffix(".json")) != old
    assert moved.whole()
    assert sorted(tmp_path.iterdir()) == sorted(
        [moved.plan, moved.plan.with_suffix(".json")]
    )  # nothing compiled for the one before


def test_fresh_folder_is_empty_whoever_was_killed_in_it(tmp_path: Path) -> None:
    engine(tmp_path / ".new")
    with fresh_folder(tmp_path) as fresh:
        assert list(fresh.iterdir()) == []
        engine(fresh)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(number: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", b"1")
    assert list(tmp_path.iterdir()) == []


def test_threads_that_write_the_same_file_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one writes while the first one's bytes are on their way."""
    sync = os.fsync

    def meanwhile(number: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        other = threading.Thread(target=write_whole, args=(tmp_path / "a", b"of the second"))
        other.start()
        other.join()
        assert (tmp_path / "a").read_bytes() == b"of the second"

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_whole(tmp_path / "a", b"of the first")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"of the first"]


def test_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(ConfigError, match="found that it cannot be written"):
        write_whole(tmp_path / "folder", b"2")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "folder"]


def test_target_is_a_capability() -> None:
    assert [parse_target(text) for text in ("8.6", "12.0", "10.1")] == [(8, 6), (12, 0), (10, 1)]
    for text in ("86", "sm86", "8.60", "", "now"):
        with pytest.raises(ConfigError, match=r"expected a compute capability such as 8\.6"):
            parse_target(text)
