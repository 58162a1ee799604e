"""A torch module of the user's own: made by its factory, given its weights, exported to one ONNX file."""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import os
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from zpipe.errors import ConfigError, one_line, said
from zpipe.models.checkpoint import read_safetensors
from zpipe.models.export import OPSET, strip

#: Keys under which training scripts keep a state dict beside other things.
_WRAPPERS = ("state_dict", "model_state_dict", "model")

#: What DataParallel and torch.compile put before every key.
_PREFIXES = ("module.", "_orig_mod.")

#: Where torch's messages say what a pickle asked for, and which line of whose code it was at.
_ASKED_FOR = re.compile(r"GLOBAL (\S+)")
_AT_LINE = re.compile(r'File "([^"\n]+)", line (\d+), in [^\n]*(?:\n\s+(\S[^\n]*))?')
_NO_OPERATOR = re.compile(r"No ONNX function found for \S*op='([^']+)'")


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
    where, _, name = model.rpartition(":")
    with _importing_from(where):
        network = _make(model, where, name)
        if weights is not None:
            load_weights(network, weights)
        network.eval()
        example = torch.zeros((2, *shape), dtype=getattr(torch, dtype))
        with torch.no_grad():
            _try(model, network, example)
        exported = _export(model, network, example)
    onnx.save_model(strip(exported), out)


# ---- the module --------------------------------------------------------------------------------


@contextmanager
def _importing_from(where: str) -> Iterator[None]:
    """What a file imports lies beside it, at its top or within its functions; a package lies in the folder they are in."""
    folder = str(Path(where).absolute().parent) if where.endswith(".py") else ""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _make(model: str, where: str, name: str) -> nn.Module:
    module = _import(model, where)
    factory = getattr(module, name, None)
    if not callable(factory):
        have = ", ".join(sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))[:12])
        raise ConfigError(f"{model}: found no {name!r} to call in {where}, expected one of: {have or 'nothing'}; correct the name")
    try:
        network = factory()
    except (Exception, SystemExit) as exc:  # the user's own code
        raise ConfigError(f"{model}: found that {name}() fails ({_reason(exc)}), expected it to return a module; mend it") from exc
    if isinstance(network, torch.jit.ScriptModule):
        raise ConfigError(f"{model}: found a scripted module from {name}(), expected the one it was made of; return that")
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{model}: found {type(network).__name__} from {name}(), expected a torch.nn.Module; return that")
    return _unwrapped(network)


def _unwrapped(network: nn.Module) -> nn.Module:
    """Without what runs it faster: torch.export traces the module itself."""
    inner = network.module if isinstance(network, nn.DataParallel) else getattr(network, "_orig_mod", None)
    return _unwrapped(inner) if isinstance(inner, nn.Module) else network


def _import(model: str, where: str) -> Any:
    file = Path(where)
    try:
        if file.suffix != ".py":
            return importlib.import_module(where)
        if not file.is_file():
            raise ConfigError(f"{model}: found no file {file}, expected the one that defines the model; correct the path")
        # Dataclasses and pickles in it look it up by its name; its stem might be that of a library.
        name = f"zpipe_own_model.{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    except ConfigError:
        raise
    except (Exception, SystemExit) as exc:  # the user's own code
        raise ConfigError(
            f"{model}: found that {where} cannot be imported ({_reason(exc)}), expected a module on the path or a .py file; "
            "correct the name, or mend it"
        ) from exc


def _reason(exc: BaseException) -> str:
    return f"it calls sys.exit({exc.code!r})" if isinstance(exc, SystemExit) else said(exc)


# ---- its weights -------------------------------------------------------------------------------


def load_weights(network: nn.Module, path: Path) -> None:
    """Put a state dict into the module it is of.

    Args:
        network: changed here.
        path: what `torch.save` or safetensors wrote: tensors by their names, alone or beside other things (`_WRAPPERS`); with what
            DataParallel and torch.compile put before the names or without. Nothing else in it is ever unpickled.

    Raises:
        ConfigError: it is no such file, or of another module; one line.
    """
    wanted = network.state_dict().keys()
    # As the keys are, where these fit best: a module may well have a part that is called `module`.
    state = max(_spellings(_state(path)), key=lambda each: len(wanted & each.keys()))
    try:
        network.load_state_dict(state)
    except Exception as exc:  # besides torch's RuntimeError what hooks of the user's own raise
        raise ConfigError(
            f"--weights: found that {path} is not of this module ({said(exc)}), expected its own state dict; check that the "
            "factory makes what was trained"
        ) from exc


def _spellings(state: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    while True:
        yield state
        yield {key.replace("_orig_mod.", ""): value for key, value in state.items()}  # where parts of it were compiled
        prefix = next((each for each in _PREFIXES if all(key.startswith(each) for key in state)), None)
        if prefix is None:
            return
        state = {key.removeprefix(prefix): value for key, value in state.items()}


def _state(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"--weights: found no file {path}, expected a state dict; correct the path")
    found = read_safetensors(path) if path.suffix == ".safetensors" else _unpickled(path)
    if _is_state(found):
        return dict(found)
    inner = {key: value for key, value in found.items() if _is_state(value)} if isinstance(found, dict) else {}
    key = next((key for key in _WRAPPERS if key in inner), None if len(inner) != 1 else next(iter(inner)))
    if key is not None:
        return dict(inner[key])
    what = type(found).__name__
    if isinstance(found, dict):
        what = (
            f"a dict with the keys {', '.join(map(repr, list(found)[:6]))}{', ...' * (len(found) > 6)}"
            if found
            else "an empty dict"
        )
    raise ConfigError(
        f"--weights: found {what} in {path}, expected a state dict, tensors by their names; save model.state_dict() alone"
    )


def _is_state(value: object) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(key, str) and (isinstance(item, Tensor) or key.endswith("_extra_state")) for key, item in value.items())
    )


def _unpickled(path: Path) -> Any:
    try:
        with _silence():
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as exc:
        raise ConfigError(
            f"--weights: found that {path} cannot be read ({exc.strerror or said(exc)}), expected a state dict"
        ) from exc
    except Exception as exc:  # a broken pickle may raise nearly anything while it is read
        asked = _ASKED_FOR.search(str(exc))
        what = f"{one_line(asked[1])} in {path}" if asked else f"{path}, which torch does not read"
        raise ConfigError(
            f"--weights: found {what}, expected a plain state dict; anything else is never unpickled, as it could run any code: "
            "save model.state_dict() instead"
        ) from exc


# ---- exported ----------------------------------------------------------------------------------


def _try(model: str, network: nn.Module, example: Tensor) -> None:
    try:
        answer = network(example)
    except (Exception, SystemExit) as exc:  # the user's own code
        raise ConfigError(
            f"{model}: found that it fails on zeros of shape {list(example.shape)}, {example.dtype} ({_reason(exc)}), expected "
            "an answer; correct --example-shape (without the batch) or --example-dtype"
        ) from exc
    if not isinstance(answer, Tensor):
        raise ConfigError(
            f"{model}: found {type(answer).__name__} as its answer, expected one tensor of scores; wrap it in a module"
        )


def _export(model: str, network: nn.Module, example: Tensor) -> onnx.ModelProto:
    try:
        with _silence():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as exc:  # it raises nearly anything
        raise _unexportable(model, exc) from exc
    return program.model_proto


@contextmanager
def _silence() -> Iterator[None]:
    """torch warns of its own internals, logs and prints whole graphs where an export fails; the exception says what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _unexportable(model: str, exc: Exception) -> ConfigError:
    """What the user can do about it, and at which line."""
    chain: list[BaseException] = [exc]
    while (before := chain[-1].__cause__) is not None:
        chain.append(before)
    text = "\n".join(map(str, chain))
    line = _line_of(chain, text)
    other = "or export it to ONNX yourself and give the file"
    if operator := _NO_OPERATOR.search(text):
        return ConfigError(f"{model}: found {operator[1]}{line}, expected operators that ONNX has; compute it otherwise, {other}")
    if "data-dependent" in text:
        return ConfigError(
            f"{model}: found a branch on values{line}, expected the same operations whatever comes in, as a graph has no branches; "
            f"use torch.where, {other}"
        )
    cause = said(chain[1] if len(chain) > 1 else exc, 160)
    return ConfigError(
        f"{model}: found that torch.export cannot take it{line} ({cause}), expected a module with a free batch; mend that, {other}"
    )


def _line_of(chain: Sequence[BaseException], text: str) -> str:
    """` at FILE:LINE (CODE)` of the user's own code; "" where that is not known."""
    here, libraries = Path(__file__), (str(Path(torch.__file__).parent), sysconfig.get_path("stdlib"), "<")
    found = [(name, int(number), code) for name, number, code in _AT_LINE.findall(text)]
    if not found:
        frames = [frame for each in chain for frame in traceback.extract_tb(each.__traceback__)]
        frames = [frame for frame in frames if Path(frame.filename) != here and "site-packages" not in frame.filename]
        found = [(frame.filename, frame.lineno or 0, frame.line or "") for frame in frames]
    own = [each for each in found if not each[0].startswith(libraries) and Path(each[0]).is_file()]
    if not own:
        return ""
    name, number, code = own[-1]
    shown = os.path.relpath(name) if Path(name).is_relative_to(Path.cwd()) else name
    return f" at {shown}:{number}" + (f" ({one_line(code.strip())[:80]})" if code else "")
