"""The learned bottleneck and the codecs' tables: fitted to the committed files of a bundle, which stay as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from zpipe.bundle import Bundle, load_bundle
from zpipe.calibrate import codec_tables
from zpipe.calibrate.codec_tables import CodecTable, answer_through, codec_rows, replay_arrays, replayed
from zpipe.calibrate.metrics import Answers
from zpipe.codecs import make_codecs
from zpipe.errors import BundleError, ConfigError, ExecutorError
from zpipe.model import CODECS
from zpipe.models import retrain_codecs

# ruff: noqa: E402 (the skip stands above the imports that need it, so that the module skips instead of failing)
for _name in ("torch", "onnx", "onnxscript", "sklearn"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'zpipe[train]'")

import onnx
import torch

from zpipe.calibrate.chain import StageChain
from zpipe.models import building
from zpipe.models.bottleneck import code_channels, divergence_of, principal_codes, train_bottleneck, weights_of
from zpipe.models.digits import digits_task
from zpipe.models.export import PARITY
from zpipe.models.frozen import FrozenStage
from zpipe.models.task import Task
from zpipe.models.training import torch_settings

HALF = Path(__file__).parents[2] / "engines" / "digits-mobilenetv2-half"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(HALF)


@pytest.fixture(scope="module")
def stages(bundle: Bundle) -> list[FrozenStage]:
    return [FrozenStage(bundle.stage_path(stage.index)) for stage in bundle.stages]


@pytest.fixture(scope="module")
def task() -> Task:
    return digits_task()


def chain_of(bundle: Bundle) -> StageChain:
    return StageChain([bundle.stage_path(stage.index) for stage in bundle.stages])


# ---- stage files in torch ----------------------------------------------------------------------


def test_frozen_stages_agree_with_onnx_runtime(bundle: Bundle, stages: list[FrozenStage]) -> None:
    chain, images = chain_of(bundle), bundle.evaluation().images[:16]
    here = torch.from_numpy(images)
    there: npt.NDArray[np.generic] = images
    for index, stage in enumerate(stages):
        activation, logits = stage(here)
        expected, expected_logits = chain.run_stage(index, there)
        assert np.abs(logits.numpy() - expected_logits).max() < PARITY
        if activation is not None and expected is not None:
            assert np.abs(activation.numpy() - expected).max() < PARITY
            here, there = activation, expected


def test_gradient_passes_a_frozen_stage_and_leaves_it_as_it_is(bundle: Bundle, stages: list[FrozenStage]) -> None:
    output = bundle.stages[0].output
    assert output is not None
    x = torch.zeros(2, *output.shape, requires_grad=True)
    _, before = stages[1](x)
    before.sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    _, after = stages[1](x)
    assert torch.equal(before, after)


def test_stage_of_another_make_is_refused(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [None, 3])
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [None, 3])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Sin", ["input"], ["logits"])], "stage", [value], [logits])
    onnx.save_model(onnx.helper.make_model(graph), tmp_path / "stage0.onnx")
    with pytest.raises(ConfigError, match=r"stage0\.onnx: found operators Sin, expected"):
        FrozenStage(tmp_path / "stage0.onnx")


# ---- fitting -----------------------------------------------------------------------------------


def test_code_has_a_quarter_of_the_channels() -> None:
    assert [code_channels(channels) for channels in (1, 16, 24, 96)] == [1, 4, 6, 24]


def test_principal_code_keeps_activations_that_fit_into_it() -> None:
    rng = np.random.default_rng(0)
    mixed = torch.from_numpy(rng.normal(size=(8, 2)) @ rng.normal(size=(2, 500)) + 3.0).float()
    activation = mixed.reshape(8, 20, 25).movedim(0, 1)[:, :, None]  # [20, 8, 1, 25]: two components and a mean

    def stage(_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return activation, torch.zeros(20, 2)

    (cut,) = principal_codes(cast("list[FrozenStage]", [stage, stage]), np.zeros((20, 3, 4, 4), np.uint8))
    assert cut.encode.out_channels == 2
    with torch.no_grad():
        assert float((cut(activation) - activation).abs().max()) < 1e-4


def test_training_brings_the_exits_closer_to_what_they_said(stages: list[FrozenStage], task: Task) -> None:
    images = torch.from_numpy(task.calibration.images[:250])
    with torch_settings(threads=1, seed=0):
        start = principal_codes(stages, task.draw_epoch(np.random.default_rng([0, 11]))[0][:256])
        before = float(divergence_of(stages, start, images).detach())
        weights = train_bottleneck(stages, task, epochs=2, seed=0, on_epoch=lambda *_: None)
        again = train_bottleneck(stages, task, epochs=2, seed=0, on_epoch=lambda *_: None)
        trained = principal_codes(stages, task.calibration.images[:64])
        for index, cut in enumerate(trained):
            for part in ("encode", "decode"):
                layer = getattr(cut, part)
                layer.weight.data = torch.from_numpy(weights[f"cut{index}.{part}"])[:, :, None, None]
                layer.bias.data = torch.from_numpy(weights[f"cut{index}.{part}_bias"])
        after = float(divergence_of(stages, trained, images).detach())
    assert after < 0.7 * before
    assert all((weights[name] == again[name]).all() for name in weights), "one thread must be repeatable"


def test_weights_have_the_names_and_shapes_the_codec_reads(stages: list[FrozenStage], task: Task) -> None:
    weights = weights_of(principal_codes(stages, task.test.images[:32]))
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    assert {name: array.shape for name, array in weights.items() if name.startswith("cut1.")} == {
        "cut1.encode": (4, 16),
        "cut1.encode_bias": (4,),
        "cut1.decode": (16, 4),
        "cut1.decode_bias": (16,),
    }
    assert {name.partition(".")[0] for name in weights} == {"cut0", "cut1", "cut2", "cut3"}


# ---- tables ------------------------------------------------------------------------------------


def test_chain_without_codec_gives_the_replay(bundle: Bundle) -> None:
    test = bundle.evaluation()
    few = replace(test, images=test.images[:40], labels=test.labels[:40])
    codecs = make_codecs(bundle, ["none"])
    table = answer_through(bundle, chain_of(bundle), [codecs["none", stage] for stage in range(1, 5)], few)
    assert np.abs(table.answers.confidences - bundle.replay().confidences[:40]).max() < PARITY
    assert table.cut_bytes == tuple(stage.output.bytes for stage in bundle.stages if stage.output is not None)


def handmade(right: list[bool], cut_bytes: float) -> CodecTable:
    answers = np.array(right)[:, None]
    return CodecTable(Answers(answers.astype(np.int64), np.ones(answers.shape, np.float32), answers), (cut_bytes,))


def test_rows_compare_with_none_sample_by_sample(bundle: Bundle) -> None:
    tables = {"none": handmade([True, True, False, True], 8.0), "int8": handmade([True, False, True, False], 2.0)}
    test = replace(bundle.evaluation(), digit=np.arange(4))
    rows = codec_rows(tables, [1.0], test)
    assert rows["none"] == {"accuracy": 0.75, "lost": 0.0, "lost_interval": [0.0, 0.0], "bytes": [8.0]}
    assert (rows["int8"]["accuracy"], rows["int8"]["lost"], rows["int8"]["bytes"]) == (0.5, 0.25, [2.0])
    low, high = rows["int8"]["lost_interval"]
    assert low < 0.25 < high


def test_replay_keeps_one_table_for_codecs_that_answer_alike() -> None:
    table = handmade([True], 1.0)
    assert set(replay_arrays({"none": table, "int8": table, "int8+zstd": table})) == {
        "label.none",
        "confidence.none",
        "label.int8",
        "confidence.int8",
    }


def test_packing_that_changes_an_answer_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    confidences = iter([0.5, 0.5, 0.6])

    def answer(*_: object) -> CodecTable:
        table = handmade([True], 1.0)
        return replace(table, answers=replace(table.answers, confidences=np.full((1, 1), next(confidences), np.float32)))

    monkeypatch.setattr(codec_tables, "answer_through", answer)
    with pytest.raises(ExecutorError, match=r"int8\+zstd: found other answers than those of int8"):
        codec_tables.codec_tables(bundle, replayed(bundle), lambda *_: None)


# ---- a finished bundle -------------------------------------------------------------------------


@pytest.mark.slow
def test_retraining_the_codecs_leaves_stages_and_points_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "BOTTLENECK_EPOCHS", 1)
    out = tmp_path / "half"
    shutil.copytree(HALF, out)
    before = load_bundle(out)
    bundle = retrain_codecs(out)
    for name in (*(stage.file for stage in bundle.stages), "evaluation.npz"):
        assert (out / name).read_bytes() == (HALF / name).read_bytes()
    assert (bundle.stages, bundle.operating_points) == (before.stages, before.operating_points)
    assert (bundle.replay().confidences == before.replay().confidences).all()
    assert bundle.digest != before.digest
    assert tuple(bundle.codecs) == bundle.replay_codecs() == CODECS
    assert json.loads((out / "manifest.json").read_text())["bottleneck"]["epochs"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


def _damaged(out: Path) -> None:
    (out / "stage0.onnx").write_bytes(b"")


@pytest.mark.parametrize(("change", "said"), [(shutil.rmtree, "found no manifest"), (_damaged, "stage0.onnx: digests")])
def test_codecs_need_a_whole_bundle(tmp_path: Path, change: Callable[[Path], None], said: str) -> None:
    out = tmp_path / "half"
    shutil.copytree(HALF, out)
    change(out)
    with pytest.raises(BundleError, match=said):
        retrain_codecs(out)


def test_data_the_bundle_was_not_trained_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    monkeypatch.setattr(building, "cifar10_task", lambda _: replace(task, classes=("airplane", "cat")))
    with pytest.raises(ConfigError, match="--data cifar10: found classes airplane, cat, expected those of"):
        retrain_codecs(HALF, data="cifar10", data_dir=tmp_path)
