"""A GPT-2 checkpoint from a folder of the user's own, as Hugging Face's tools save it. Nothing is ever downloaded.

`config.json` says the sizes, `model.safetensors` or `pytorch_model.bin` holds the weights, `vocab.json` (if it is there) names the
tokens. Weights of another shape than the config says are refused, and so are pickles that ask for anything but tensors.

Source: the layout of safetensors (8 bytes of header length, JSON, raw tensors), and GPT-2's names of weights as its release has
them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zpipe.errors import ConfigError, said
from zpipe.models.gpt2 import EPSILON, Layer
from zpipe.models.network import MultiExitNet
from zpipe.models.recipes import Gpt2, Recipe

CONFIG, SAFETENSORS, PICKLED, VOCABULARY = "config.json", "model.safetensors", "pytorch_model.bin", "vocab.json"

#: Keys of `config.json` that say a size, and the least it may be.
_SIZES = {"n_layer": 1, "n_embd": 1, "n_head": 1, "vocab_size": 2, "n_positions": 1}

#: Keys that change what is computed, and what they are where they are absent: anything else would be answered wrongly.
_USUAL = {
    "layer_norm_epsilon": EPSILON,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}

#: What safetensors calls the types that weights and counters may have.
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

#: A header beyond this is no header of a checkpoint.
_MOST_HEADER_BYTES = 100 << 20

#: (ours, theirs, whether theirs is transposed: their linear layers are `[inputs, outputs]`).
_LAYER = (
    ("ln_1.weight", "ln_1.weight", False),
    ("ln_1.bias", "ln_1.bias", False),
    ("mix.weight", "attn.c_attn.weight", True),
    ("mix.bias", "attn.c_attn.bias", False),
    ("project.weight", "attn.c_proj.weight", True),
    ("project.bias", "attn.c_proj.bias", False),
    ("ln_2.weight", "ln_2.weight", False),
    ("ln_2.bias", "ln_2.bias", False),
    ("widen.weight", "mlp.c_fc.weight", True),
    ("widen.bias", "mlp.c_fc.bias", False),
    ("narrow.weight", "mlp.c_proj.weight", True),
    ("narrow.bias", "mlp.c_proj.bias", False),
)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What lies in the folder: sizes by their names in `config.json`, weights by theirs, and the tokens' names."""

    folder: Path
    sizes: Mapping[str, int]
    weights: Mapping[str, Tensor]
    tokens: tuple[str, ...]


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read it all.

    Raises:
        ConfigError: a file is absent or no such file, or it is no GPT-2; one line.
    """
    config = _json(folder / CONFIG)
    if config.get("model_type", "gpt2") != "gpt2" or config.get("activation_function", "gelu_new") != "gelu_new":
        found = f"model_type {config.get('model_type')}, activation_function {config.get('activation_function')}"
        raise ConfigError(f"{folder / CONFIG}: found {found}, expected gpt2 with gelu_new; split other networks with `zpipe split`")
    sizes = {}
    for key, least in _SIZES.items():
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(
                f"{folder / CONFIG}: {key}: found {value!r}, expected a whole number >= {least}; it is GPT-2's own key"
            )
        sizes[key] = value
    for key, expected in {**_USUAL, "n_inner": 4 * sizes["n_embd"]}.items():
        value = config.get(key)
        if value is not None and value != expected:
            raise ConfigError(
                f"{folder / CONFIG}: {key}: found {value!r}, expected {expected!r}, as in GPT-2; split other networks with "
                "`zpipe split`"
            )
    if (folder / SAFETENSORS).is_file():
        weights = read_safetensors(folder / SAFETENSORS)
    elif (folder / PICKLED).is_file():
        weights = _read_pickled(folder / PICKLED)
    else:
        raise ConfigError(f"{folder}: found no {SAFETENSORS} and no {PICKLED}, expected one of them beside {CONFIG}; copy it there")
    # What is no float is a mask, which GPT-2 needs not be told.
    plain = {name.removeprefix("transformer."): each.float() for name, each in weights.items() if each.is_floating_point()}
    return Checkpoint(folder, sizes, plain, _tokens(folder / VOCABULARY, sizes["vocab_size"]))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, in the types that they have there.

    Raises:
        ConfigError: it is no such file, or holds a tensor of a type that weights do not have; one line.
    """
    try:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        if not 2 <= length <= min(_MOST_HEADER_BYTES, len(content) - 8):
            raise ValueError(f"a header of {length} bytes")
        header, data = json.loads(content[8 : 8 + length]), memoryview(content)[8 + length :]
        tensors = {}
        for name, row in header.items():
            if name == "__metadata__":
                continue
            (start, end), kind = row["data_offsets"], _TYPES[row["dtype"]]
            if not 0 <= start <= end <= len(data) or end - start != kind.itemsize * math.prod(row["shape"]):
                raise ValueError(f"{name} at {start}..{end} of {len(data)} bytes")
            raw = bytearray(data[start:end])
            tensor = torch.frombuffer(raw, dtype=kind) if raw else torch.empty(0, dtype=kind)
            tensors[name] = tensor.reshape(row["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        reason = said(exc, 80)
        raise ConfigError(
            f"{path}: found no safetensors that can be read ({type(exc).__name__}: {reason}), expected tensors; copy it again"
        ) from exc
    return tensors


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
    # A broken pickle may raise nearly anything while it is read.
    except Exception as exc:
        reason = said(exc, 80)
        raise ConfigError(f"{path}: found no weights that torch reads ({reason}), expected a state dict; copy it again") from exc


def sizes_of(checkpoint: Checkpoint, plan: Recipe) -> Gpt2:
    """The network that the checkpoint holds, cut as evenly as the recipe is.

    Raises:
        ConfigError: it has fewer layers than stages, or its heads do not divide its width.
    """
    assert isinstance(plan.network, Gpt2)
    sizes, stages = checkpoint.sizes, plan.stages
    if sizes["n_layer"] < stages or sizes["n_embd"] % sizes["n_head"]:
        found = f"n_layer {sizes['n_layer']}, n_embd {sizes['n_embd']}, n_head {sizes['n_head']}"
        raise ConfigError(
            f"{checkpoint.folder / CONFIG}: found {found}, expected at least {stages} layers, one for each stage, and a width that "
            "the heads divide; choose fewer --stages"
        )
    whole, more = divmod(sizes["n_layer"], stages)
    # Stages that are larger come in the middle: the first also embeds, the last answers.
    order = sorted(range(stages), key=lambda stage: abs(2 * stage - stages + 1))
    split = tuple(whole + (stage in order[:more]) for stage in range(stages))
    tokens = min(plan.network.tokens, sizes["n_positions"])
    return Gpt2(sizes["n_layer"], sizes["n_embd"], sizes["n_head"], sizes["vocab_size"], sizes["n_positions"], tokens, (split,))


def load_into(network: MultiExitNet, sizes: Gpt2, checkpoint: Checkpoint) -> None:
    """Its weights into a network of those sizes; each exit gets the final normalisation and the embedding.

    Raises:
        ConfigError: a weight is absent or has another shape.
    """
    weights = _Weights(checkpoint)
    embedding = network.stages[0].body[0]
    with torch.no_grad():
        vocabulary = (sizes.vocabulary, sizes.width)
        embedding.token.weight.copy_(weights.take("wte.weight", vocabulary))
        positions = weights.take("wpe.weight", (sizes.positions, sizes.width))
        embedding.position.copy_(positions[: sizes.tokens])
        layers = [layer for stage in network.stages for layer in stage.body if isinstance(layer, Layer)]
        for index, layer in enumerate(layers):
            own = dict(layer.named_parameters())
            for name, theirs, transposed in _LAYER:
                shape = tuple(own[name].shape)
                weight = weights.take(f"h.{index}.{theirs}", shape[::-1] if transposed else shape)
                own[name].copy_(weight.T if transposed else weight)
        for stage in network.stages:
            stage.head.norm.weight.copy_(weights.take("ln_f.weight", (sizes.width,)))
            stage.head.norm.bias.copy_(weights.take("ln_f.bias", (sizes.width,)))


class _Weights:
    """Weights by their names, with a complaint about what does not fit."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        weight = self._checkpoint.weights.get(name)
        if weight is None or tuple(weight.shape) != shape:
            found = "no such weight" if weight is None else str(list(weight.shape))
            raise ConfigError(f"{self._checkpoint.folder}: {name}: found {found}, expected {list(shape)}, as {CONFIG} has it")
        if not weight.isfinite().all():
            raise ConfigError(
                f"{self._checkpoint.folder}: {name}: found values that are no finite numbers, expected weights; copy it again"
            )
        return weight


def _tokens(path: Path, count: int) -> tuple[str, ...]:
    """The tokens' names by their numbers; their numbers where there is no file, or none of so many: vocabularies are padded."""
    if not path.is_file():
        return tuple(str(token) for token in range(count))
    numbers = _json(path)
    names = {number: name for name, number in numbers.items() if isinstance(number, int)}
    if len(names) != len(numbers) or sorted(names) != list(range(min(len(names), count))):
        raise ConfigError(
            f"{path}: found {len(numbers)} tokens, expected numbers 0..{count - 1}, as {CONFIG} has it; copy it again"
        )
    return tuple(names.get(token) or f"<{token}>" for token in range(count))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        reason = said(exc, 80)
        raise ConfigError(f"{path}: found no readable JSON ({reason}), expected that of a GPT-2 checkpoint; copy it there") from exc
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: found {type(found).__name__}, expected a JSON object; copy it again")
    return found
