"""The reference networks: really those, in four and five stages that answer as the un-split network, and packed as bundles."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

# ruff: noqa: E402 (the skip stands above the imports that need it, so that the module skips instead of failing)
for _name in ("torch", "onnx", "onnxscript"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'zpipe[train]'")

import torch

import zpipe
from zpipe.bundle import Bundle, load_bundle
from zpipe.calibrate.chain import StageChain
from zpipe.cli import cli
from zpipe.codecs import make_codecs
from zpipe.errors import ConfigError, ExecutorError
from zpipe.executors.base import make_executor
from zpipe.executors.smoke import smoke
from zpipe.model import CODECS
from zpipe.models import RECIPES, attach_heads, head_notes, train_bundle
from zpipe.models.building import planned, random_network
from zpipe.models.export import PARITY
from zpipe.models.manifest import bundle_name
from zpipe.models.network import MultiExitNet, stage_costs
from zpipe.models.networks import build_network
from zpipe.models.recipes import BLOCKS_32, EXIT_WEIGHTS, Gpt2, MobileNetV2, Recipe, ResNet
from zpipe.models.training import torch_settings
from zpipe.models.untrained import samples_for, split_error, whole, write_untrained
from zpipe.topology import from_dict

#: The same kinds, as small as they come.
SMALL = {
    "mobilenetv2": Recipe("small", MobileNetV2(0.25, 2, BLOCKS_32, ((2, 1, 2, 2), (2, 1, 1, 1, 2)))),
    "resnet56": Recipe("small", ResNet((2, 2, 1), 8, 1, "cifar", ((1, 1, 2, 1), (1, 1, 1, 1, 1)))),
    "resnet50": Recipe("small", ResNet((1, 1, 2, 1), 8, 4, "cifar", ((1, 1, 2, 1), (1, 1, 1, 1, 1)))),
    "resnet50-imagenet": Recipe(
        "small", ResNet((1, 1, 2, 1), 8, 4, "imagenet", ((1, 1, 2, 1), (1, 1, 1, 1, 1)), grids=(1,)), image_size=64, classes=20
    ),
    "gpt2": Recipe("small", Gpt2(5, 24, 3, 300, 32, 8, ((1, 1, 1, 2), (1, 1, 1, 1, 1)))),
}


def silent(step: str, done: float, line: str) -> None:
    """Tells nobody."""


Written = tuple[Bundle, MultiExitNet]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Written]:
    """A small network by name, as a bundle in so many stages and as it was before; made once, the exporter takes seconds."""

    @functools.cache
    def make(name: str, stages: int) -> Written:
        with torch_settings(threads=1, seed=0):
            made = random_network(SMALL[name].cut_into(stages), seed=0)
            return write_untrained(made, tmp_path_factory.mktemp("bundle"), tell=silent), made.network

    return make


# ---- they are what they are called -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "macs", "parameters"),
    [
        # He et al. give 0.85 M for ResNet-56, option A; multiply-adds as everybody counts them since.
        ("resnet56", 125.5e6, 0.856e6),
        ("resnet50", 1.298e9, 23.52e6),
        # Without the heads that we add, and with one copy of the embedding: 124.4 M.
        ("gpt2-small", None, 124_439_808),
    ],
)
def test_sizes_are_those_that_are_published(name: str, macs: float | None, parameters: float) -> None:
    recipe = RECIPES[name]
    with torch.device("meta"):
        network = build_network(recipe, classes=10)
    shared = {id(parameter): parameter.numel() for parameter in network.parameters()}
    heads = [stage.head for stage in network.stages[:-1]]
    own = {id(parameter) for head in heads for parameter in head.parameters()}
    own -= {id(parameter) for parameter in network.stages[-1].parameters()}
    counted = sum(count for key, count in shared.items() if key not in own)
    if isinstance(recipe.network, Gpt2):
        counted += (recipe.network.positions - recipe.network.tokens) * recipe.network.width
    assert counted == pytest.approx(parameters, rel=0.001)
    if macs is not None:
        with torch_settings(threads=1, seed=0):
            found = sum(macs for macs, _ in stage_costs(build_network(recipe, classes=10), samples_for(recipe, 1, seed=0)))
        assert found == pytest.approx(macs, rel=0.005)


def test_multiply_adds_of_a_transformer_count_attention_and_every_token() -> None:
    recipe = SMALL["gpt2"]
    sizes = recipe.network
    assert isinstance(sizes, Gpt2)
    with torch_settings(threads=1, seed=0):
        costs = stage_costs(build_network(recipe, classes=300), samples_for(recipe, 1, seed=0))
    tokens, width = sizes.tokens, sizes.width
    layer = tokens * 12 * width * width + 2 * tokens * tokens * width
    assert [macs for macs, _ in costs] == [layer + width * sizes.vocabulary] * 5


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize("stages", [4, 5])
def test_every_recipe_is_cut_into_four_and_five(name: str, stages: int) -> None:
    recipe = RECIPES[name].cut_into(stages)
    match recipe.network:
        case MobileNetV2(blocks=blocks):
            assert sum(recipe.split) == len(blocks)
        case ResNet(groups=groups):
            assert sum(recipe.split) == sum(groups)
        case Gpt2(layers=layers):
            assert sum(recipe.split) == layers
    assert len(recipe.split) == len(recipe.exit_weights) == stages
    assert min(recipe.split) >= 1


# ---- their stages ------------------------------------------------------------------------------


# All of them in full size: python -m bench.references
@pytest.mark.parametrize(
    ("name", "stages"),
    [
        *((name, 5) for name in ("resnet50", "gpt2")),
        *(pytest.param(name, 5, marks=pytest.mark.slow) for name in ("mobilenetv2", "resnet56", "resnet50-imagenet")),
        *(pytest.param(name, 4, marks=pytest.mark.slow) for name in ("resnet50", "gpt2")),
    ],
)
def test_stages_answer_as_the_unsplit_network(name: str, stages: int, written: Callable[[str, int], Written]) -> None:
    bundle, network = written(name, stages)
    chain = StageChain([bundle.stage_path(stage.index) for stage in bundle.stages])
    samples = samples_for(SMALL[name], 5, seed=9)
    assert len(bundle.stages) == stages
    found, expected = chain.logits(samples, batch=5)[:, -1], whole(network, samples)
    assert np.abs(found - expected).max() <= PARITY * max(1.0, np.abs(expected).max())
    # Live: its evaluation set holds the un-split network's answers.
    assert bundle.point("no-exit").test.accuracy == 1.0
    assert bundle.evaluation_generated
    assert smoke(make_executor("onnx", bundle, range(stages)), bundle) is None
    assert bundle.replay_codecs() == tuple(codec for codec in CODECS if codec != "bottleneck" or bundle.bottleneck_file)


def test_stages_that_disagree_with_the_whole_are_refused(written: Callable[[str, int], Written]) -> None:
    bundle, network = written("gpt2", 5)
    network = copy.deepcopy(network)
    chain = StageChain([bundle.stage_path(stage.index) for stage in bundle.stages])
    with torch.no_grad():
        network.stages[2].body[0].widen.weight.mul_(1.5)
    with pytest.raises(ExecutorError, match=r"from the un-split network, expected 0\.0001"):
        split_error(network, chain, samples_for(SMALL["gpt2"], 2, seed=3))


def test_half_leave_at_each_exit_and_confidences_spread(written: Callable[[str, int], Written]) -> None:
    bundle, _ = written("gpt2", 5)
    point = bundle.default_point
    assert point.name == "half"
    assert point.test.exit_shares == (0.5, 0.25, 0.125, 0.0625, 0.0625)
    assert 0.05 < float(bundle.replay().confidences.std()) < 0.5


def test_resnet_has_the_papers_autoencoder_on_its_first_cut(written: Callable[[str, int], Written]) -> None:
    bundle, _ = written("resnet50", 5)
    channels = 32
    assert set(bundle.bottleneck()) == {"cut0.encode", "cut0.encode_bias", "cut0.decode", "cut0.decode_bias"}
    codec = make_codecs(bundle, ["bottleneck"])["bottleneck", 1]
    chain = StageChain([bundle.stage_path(0)])
    activation, _ = chain.run_stage(0, samples_for(SMALL["resnet50"], 8, seed=5))
    assert activation is not None
    assert activation.shape[1] == channels
    coded = codec.encode(activation)
    assert coded.nbytes < activation.nbytes / 14
    error = activation - codec.decode(coded, len(activation))
    # Not nothing: a quarter of the channels keeps most of what varies.
    assert error.var() < 0.5 * (activation - activation.mean((0, 2, 3), keepdims=True)).var()


def test_tokens_travel_and_are_answered_by_a_line_of_nodes(written: Callable[[str, int], Written]) -> None:
    bundle, _ = written("gpt2", 5)
    assert bundle.preprocessing is None
    assert bundle.stages[0].input.dtype == "int64"
    topology = {
        "name": "line",
        "bundle": str(bundle.path),
        "nodes": [{"rank": 0, "stages": [0, 1]}, {"rank": 1, "stages": [2, 3, 4]}],
        "links": "line",
    }
    evaluation = bundle.evaluation()

    async def answers() -> list[int]:
        async with zpipe.Pipeline.local(from_dict(topology), exit_point="no-exit") as pipeline:
            return [(await pipeline.submit(sample)).label for sample in evaluation.images[:6]]

    assert asyncio.run(answers()) == evaluation.labels[:6].tolist()


def test_heads_on_tokens_and_numbers_beyond_the_vocabulary(written: Callable[[str, int], Written], tmp_path: Path) -> None:
    bundle, _ = written("gpt2", 4)
    rng = np.random.default_rng(0)
    samples, labels = rng.integers(0, 300, (60, 8)), np.arange(60) % 3
    np.savez(tmp_path / "data.npz", images=samples, labels=labels)
    made = attach_heads(bundle.path, out=tmp_path / "out", data=tmp_path / "data.npz", at=(1,), tokens="last", epochs=1)
    assert [stage.exit_head is not None for stage in made.stages] == [True] * 4
    assert "shows class 3, 4, 5, 6, 7, 8, 9, 10, ... (297)" in head_notes(made)[0]
    np.savez(tmp_path / "data.npz", images=samples + 300, labels=labels)
    with pytest.raises(ConfigError, match=r"--data .*data\.npz: found int64 samples that the network cannot run") as caught:
        attach_heads(bundle.path, out=tmp_path / "none", data=tmp_path / "data.npz", at=(1,), epochs=1)
    assert "correct them (indices element out of data bounds" in str(caught.value)
    assert not (tmp_path / "none").exists()


# ---- the command -------------------------------------------------------------------------------


def test_random_bundle_says_that_it_is_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "small", SMALL["resnet56"])
    result = CliRunner().invoke(cli, ["train", "--recipe", "small", "--random", "--stages", "4", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "4 stages" in result.output
    assert "answers as the un-split network in 100.0 %" in result.output
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["name"] == "small-random"
    assert "random weights" in manifest["note"]
    assert load_bundle(tmp_path / "out").stages[-1].exit_head is not None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--recipe", "gpt2-small"], "add --random, --checkpoint DIR"),
        (["--recipe", "resnet50-imagenet"], "add --random, or choose another recipe"),
        (["--recipe", "resnet56", "--random", "--stages", "3"], "--stages: found 3, expected one of 4, 5"),
        (["--recipe", "resnet56", "--random", "--codecs-only"], "--random: found it with --codecs-only"),
        (["--recipe", "resnet56", "--random", "--epochs", "3"], "--epochs: found 3 with --random"),
        (["--recipe", "resnet56", "--checkpoint", "."], "--checkpoint: found it with recipe resnet56"),
        (["--codecs-only", "--stages", "4"], "--stages: found 4 with --codecs-only"),
    ],
)
def test_wrong_use_is_refused_in_one_line(options: list[str], complaint: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["train", *options, "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, ConfigError), result.output
    assert complaint in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_bundles_are_named_after_data_and_network() -> None:
    assert bundle_name("digits-mobilenetv2-half", "digits") == "digits-mobilenetv2-half"
    assert bundle_name("digits96-mobilenetv2", "digits") == "digits96-mobilenetv2"
    assert bundle_name("digits-mobilenetv2", "cifar10") == "cifar10-mobilenetv2"
    assert bundle_name("resnet56", "cifar10") == "cifar10-resnet56"
    assert bundle_name("resnet56", "digits") == "digits-resnet56"


# ---- the long ones -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_resnet_is_trained_by_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="needs sklearn: pip install 'zpipe[train]'")
    monkeypatch.setattr("zpipe.models.building.BOTTLENECK_EPOCHS", 1)
    small = replace(SMALL["resnet56"], name="resnet-small", epochs=4, learning_rate=0.1)
    monkeypatch.setitem(RECIPES, small.name, small)
    bundle = train_bundle(small.name, out=tmp_path / "out", stages=4)
    assert bundle.name == "digits-resnet-small"
    assert len(bundle.stages) == 4
    assert planned(small.name, 4).exit_weights == EXIT_WEIGHTS[4]
    # Chance is 0.1.
    assert bundle.point("no-exit").test.accuracy > 0.25
