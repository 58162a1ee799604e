"""A torch module of the user's own: made by its factory, given its weights, exported to one ONNX file."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import pickle
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from zpipe.errors import ConfigError
from zpipe.models.export import OPSET, strip

#: Keys under which training scripts keep a state dict beside other things.
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def export_module(model: str, *, weights: Path | None, shape: Sequence[int], dtype: str, out: Path) -> None:
    """Write a torch module as ONNX: one input `[batch, *shape]`, any batch, in eval mode.

    Args:
        model: `package.module:factory` or `path/to/file.py:factory`; the factory takes nothing and returns the module.
        weights: its state dict (`torch.save(model.state_dict(), ...)`, or safetensors); None = as the factory leaves it.
        shape: of one sample.
        dtype: of one sample.
        out: the file.

    Raises:
        ConfigError: it cannot be imported, called, loaded or exported; one line.
    """
    network = _make(model)
    if weights is not None:
        _load(network, weights)
    network.eval()
    example = torch.zeros((2, *shape), dtype=getattr(torch, dtype))
    with torch.no_grad():
        _try(model, network, example)
    onnx.save_model(strip(_export(model, network, example)), out)


def _make(model: str) -> nn.Module:
    where, _, name = model.rpartition(":")
    module = _import(model, where)
    factory = getattr(module, name, None)
    if not callable(factory):
        have = ", ".join(sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))[:12])
        raise ConfigError(f"{model}: found no {name!r} to call in {where}, expected one of: {have or 'nothing'}; correct the name")
    try:
        network = factory()
    except Exception as exc:  # the user's own code
        raise ConfigError(
            f"{model}: found that {name}() fails ({_one_line(exc)}), expected it to return a module; mend it"
        ) from exc
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{model}: found {type(network).__name__} from {name}(), expected a torch.nn.Module; return that")
    return network


def _import(model: str, where: str) -> Any:
    file = Path(where)
    try:
        if file.suffix != ".py":
            # As `python -m` has it: a user's package lies in the folder they are in.
            sys.path.insert(0, "")
            try:
                return importlib.import_module(where)
            finally:
                sys.path.remove("")
        if not file.is_file():
            raise ConfigError(f"{model}: found no file {file}, expected the one that defines the model; correct the path")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module  # dataclasses and pickles in it look there
        sys.path.insert(0, str(file.parent))  # and what it imports lies beside it
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(file.parent))
        return module
    except ConfigError:
        raise
    except Exception as exc:  # the user's own code
        raise ConfigError(
            f"{model}: found that {where} cannot be imported ({_one_line(exc)}), expected a module on the path or a .py file; "
            "correct the name, or mend it"
        ) from exc


def _load(network: nn.Module, path: Path) -> None:
    state = _state(path)
    try:
        network.load_state_dict(state)
    except RuntimeError as exc:
        raise ConfigError(
            f"--weights: found that {path} is not of this module ({_one_line(exc)}), expected its own state dict; check that the "
            "factory makes what was trained"
        ) from exc


def _state(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"--weights: found no file {path}, expected a state dict; correct the path")
    try:
        if path.suffix == ".safetensors":
            return importlib.import_module("safetensors.torch").load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as exc:
        raise ConfigError(
            f"--weights: found {path} and no safetensors, expected it installed; run: pip install safetensors"
        ) from exc
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as exc:
        raise ConfigError(
            f"--weights: found that {path} holds no plain state dict ({_one_line(exc, 60)}), expected one; a whole pickled module "
            "is never read, as it could run any code: save its state_dict() instead"
        ) from exc
    for key in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    return {key.removeprefix("module."): value for key, value in state.items()} if isinstance(state, dict) else state


def _try(model: str, network: nn.Module, example: torch.Tensor) -> None:
    try:
        answer = network(example)
    except Exception as exc:  # the user's own code
        raise ConfigError(
            f"{model}: found that it fails on zeros of shape {list(example.shape)}, {example.dtype} ({_one_line(exc)}), expected "
            "an answer; correct --example-shape (without the batch) or --example-dtype"
        ) from exc
    if not isinstance(answer, torch.Tensor):
        raise ConfigError(
            f"{model}: found {type(answer).__name__} as its answer, expected one tensor of scores; wrap it in a module"
        )


def _export(model: str, network: nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    with warnings.catch_warnings():
        # The exporter warns about its own internals, and logs whole graphs where it fails; the exception says it in a line.
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        except Exception as exc:  # it raises nearly anything
            cause = _one_line(exc.__cause__ or exc)
            raise ConfigError(
                f"{model}: found that torch.export cannot take it ({cause}), expected a module without branches on values and with "
                "a free batch; mend that, or export it to ONNX yourself and give the file"
            ) from exc
        finally:
            logging.disable(before)
    return program.model_proto


def _one_line(exc: BaseException, most: int = 200) -> str:
    text = " ".join(str(exc).split()) or type(exc).__name__
    return text if len(text) <= most else f"{text[:most]}..."
