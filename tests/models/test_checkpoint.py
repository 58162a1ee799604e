"""A GPT-2 from a folder of the user's own: the weights land where they belong, and what does not fit is refused in one line."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# ruff: noqa: E402 (the skip stands above the imports that need it, so that the module skips instead of failing)
for _name in ("torch", "onnx", "onnxscript"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'zpipe[train]'")

import torch

from zpipe.errors import ConfigError
from zpipe.models import RECIPES, make_untrained
from zpipe.models.building import network_of
from zpipe.models.checkpoint import read_checkpoint, sizes_of

LAYERS, WIDTH, HEADS, VOCABULARY, POSITIONS = 6, 12, 3, 300, 20
CONFIG = {
    "model_type": "gpt2",
    "n_layer": LAYERS,
    "n_embd": WIDTH,
    "n_head": HEADS,
    "vocab_size": VOCABULARY,
    "n_positions": POSITIONS,
}
Weights = dict[str, np.ndarray]


def drawn_weights() -> Weights:
    """As GPT-2's release names and shapes them."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (VOCABULARY, WIDTH), "wpe.weight": (POSITIONS, WIDTH)}
    for layer in range(LAYERS):
        for name, shape in (
            ("attn.c_attn", (WIDTH, 3 * WIDTH)),
            ("attn.c_proj", (WIDTH, WIDTH)),
            ("mlp.c_fc", (WIDTH, 4 * WIDTH)),
            ("mlp.c_proj", (4 * WIDTH, WIDTH)),
        ):
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[1:]}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{layer}.{name}.{part}": (WIDTH,) for part in ("weight", "bias")}
    shapes |= {"ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,)}
    return {name: rng.normal(scale=0.3, size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_checkpoint(folder: Path, *, pickled: bool = False, prefix: str = "transformer.", **config: Any) -> Weights:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    weights = drawn_weights()
    if pickled:
        torch.save({prefix + name: torch.from_numpy(weight) for name, weight in weights.items()}, folder / "pytorch_model.bin")
    else:
        write_safetensors(folder / "model.safetensors", {prefix + name: weight for name, weight in weights.items()})
    return weights


def write_safetensors(path: Path, weights: Weights) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, weight in weights.items():
        raw = weight.tobytes()
        header[name] = {
            "dtype": {"f4": "F32", "f2": "F16"}[weight.dtype.str[1:]],
            "shape": weight.shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


# ---- GPT-2 in NumPy, from its own names of weights ---------------------------------------------


def reference(weights: Weights, tokens: np.ndarray, *, layers: int) -> np.ndarray:
    """Logits of the token after the last one, read after so many layers."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return np.asarray(scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"])

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return np.asarray(x @ weights[f"{name}.weight"] + weights[f"{name}.bias"])

    x = weights["wte.weight"][tokens] + weights["wpe.weight"][: len(tokens)]
    for layer in range(layers):
        queries, keys, values = np.split(linear(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn"), 3, axis=-1)
        mixed = []
        for head in range(HEADS):
            columns = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            for position in range(len(tokens)):
                scores = keys[: position + 1, columns] @ queries[position, columns] / math.sqrt(WIDTH // HEADS)
                powers = np.exp(scores - scores.max())
                mixed.append(powers / powers.sum() @ values[: position + 1, columns])
        stacked = np.concatenate(np.stack(mixed).reshape(HEADS, len(tokens), -1), axis=-1)
        x = x + linear(stacked, f"h.{layer}.attn.c_proj")
        wide = linear(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc")
        wide = 0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
        x = x + linear(wide, f"h.{layer}.mlp.c_proj")
    return np.asarray(norm(x[-1], "ln_f") @ weights["wte.weight"].T)


@pytest.mark.parametrize("pickled", [False, True])
def test_every_exit_says_what_gpt2_says_after_as_many_layers(pickled: bool, tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "mine", pickled=pickled, prefix="" if pickled else "transformer.")
    made = network_of(RECIPES["gpt2-small"].cut_into(4), tmp_path / "mine", seed=0)
    assert made.recipe.split == (1, 2, 2, 1)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (2, POSITIONS))
    with torch.no_grad():
        exits = [logits.numpy() for logits in made.network(torch.from_numpy(tokens))]
    for row, sample in enumerate(tokens):
        for logits, layers in zip(exits, (1, 3, 5, 6), strict=True):
            np.testing.assert_allclose(logits[row], reference(weights, sample, layers=layers), atol=2e-4)


def test_checkpoint_becomes_a_bundle_that_names_its_tokens(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "mine")
    (tmp_path / "mine" / "vocab.json").write_text(json.dumps({f"word{token}": token for token in range(VOCABULARY)}))
    bundle = make_untrained("gpt2-small", out=tmp_path / "out", checkpoint=tmp_path / "mine", stages=4)
    assert bundle.name == "mine"
    assert bundle.classes[7] == "word7"
    # No sample is longer than the checkpoint's positions.
    assert bundle.stages[0].input.shape == (POSITIONS,)
    assert bundle.point("no-exit").test.accuracy == 1.0
    assert "checkpoint mine" in json.loads((bundle.path / "manifest.json").read_text())["note"]


def test_padded_vocabulary_and_keys_that_say_nothing_new_are_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, n_inner=None, tie_word_embeddings=True, layer_norm_epsilon=1e-5)
    (tmp_path / "vocab.json").write_text(json.dumps({f"word{token}": token for token in range(VOCABULARY - 2)}))
    tokens = read_checkpoint(tmp_path).tokens
    assert tokens[-3:] == (f"word{VOCABULARY - 3}", f"<{VOCABULARY - 2}>", f"<{VOCABULARY - 1}>")


def test_half_precision_is_read(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", {name: weight.astype(np.float16) for name, weight in weights.items()})
    found = read_checkpoint(tmp_path).weights["wte.weight"]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), weights["wte.weight"], rtol=1e-3, atol=1e-3)


# ---- refusals ----------------------------------------------------------------------------------


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def other(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def configured(**config: object) -> Callable[[Path], object]:
    return other("config.json", json.dumps({**CONFIG, **config}).encode())


def unfinished(folder: Path) -> None:
    weights = drawn_weights()
    weights["wte.weight"][3, 1] = np.nan
    write_safetensors(folder / "model.safetensors", weights)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (without("config.json"), "config.json: found no readable JSON"),
        (without("model.safetensors"), "found no model.safetensors and no pytorch_model.bin"),
        (other("config.json", b"[]"), "found list, expected a JSON object"),
        (other("config.json", json.dumps({**CONFIG, "n_head": 0}).encode()), "n_head: found 0, expected a whole number"),
        (other("config.json", json.dumps({**CONFIG, "model_type": "bert"}).encode()), "found model_type bert"),
        (
            other("config.json", json.dumps({**CONFIG, "n_layer": 3}).encode()),
            "found n_layer 3, n_embd 12, n_head 3, expected at least 5",
        ),
        (other("config.json", json.dumps({**CONFIG, "n_layer": 7}).encode()), "h.6.ln_1.weight: found no such weight"),
        (other("config.json", json.dumps({**CONFIG, "vocab_size": 9}).encode()), "wte.weight: found [300, 12], expected [9, 12]"),
        (other("model.safetensors", b"\xff" * 64), "found no safetensors that can be read"),
        (other("model.safetensors", struct.pack("<Q", 2) + b"[]"), "found no safetensors that can be read"),
        (
            other(
                "model.safetensors", struct.pack("<Q", 66) + b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 999999]}}'
            ),
            "found no safetensors that can be read",
        ),
        (other("vocab.json", b'{"a": 5}'), "vocab.json: found 1 tokens, expected numbers 0..299"),
        (other("vocab.json", b'{"a": [0]}'), "vocab.json: found 1 tokens, expected numbers 0..299"),
        (configured(layer_norm_epsilon="a"), "layer_norm_epsilon: found 'a', expected 1e-05"),
        (configured(scale_attn_weights=False), "scale_attn_weights: found False, expected True, as in GPT-2"),
        (configured(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx: found True, expected False"),
        (configured(tie_word_embeddings=False), "tie_word_embeddings: found False, expected True"),
        (configured(n_inner=5), f"n_inner: found 5, expected {4 * WIDTH}"),
        (configured(n_layer=True), "n_layer: found True, expected a whole number"),
        (configured(vocab_size=1), "vocab_size: found 1, expected a whole number >= 2"),
        (unfinished, "wte.weight: found values that are no finite numbers"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(change: Callable[[Path], object], complaint: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    change(tmp_path)
    with pytest.raises(ConfigError) as caught:
        network_of(RECIPES["gpt2-small"], tmp_path, seed=0)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickle_that_asks_for_more_than_tensors_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, pickled=True)
    torch.save({"run": Path}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin: found no weights that torch reads"):
        read_checkpoint(tmp_path)


def test_layers_are_dealt_out_evenly_with_more_in_the_middle(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert sizes_of(checkpoint, RECIPES["gpt2-small"].cut_into(5)).splits == ((1, 1, 2, 1, 1),)
