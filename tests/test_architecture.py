"""What import-linter cannot say about who may use what (design section 2); its own contracts stand in pyproject.toml."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "zpipe"

#: Packages that take time and dice as arguments, so that a run can be repeated.
DETERMINISTIC = ("policy", "sim", "plan")
CLOCK_AND_IO = {"asyncio", "datetime", "multiprocessing", "queue", "secrets", "select", "selectors", "socket", "threading", "time"}


def modules(*packages: str) -> list[Path]:
    """Every module of these packages; one that does not exist yet has none."""
    return sorted(path for package in packages for path in (PACKAGE / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE.parent).as_posix()


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Each import as (module, name); the name is "" where the module itself is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def global_dice(tree: ast.AST) -> Iterator[str]:
    """Uses of the module `random` other than the type `random.Random`."""
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "random"
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in names
            and node.attr != "Random"
        ):
            yield f"line {node.lineno}: random.{node.attr}"
    yield from (f"from random import {name}" for module, name in imports(tree) if module == "random" and name not in ("", "Random"))


@pytest.mark.parametrize("path", modules(*DETERMINISTIC), ids=name_of)
def test_policy_sim_and_plan_use_no_clock_no_io_and_no_global_dice(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert {module.split(".")[0] for module, _ in imports(tree)}.isdisjoint(CLOCK_AND_IO)
    assert list(global_dice(tree)) == []


@pytest.mark.parametrize("path", modules("policy"), ids=name_of)
def test_policy_needs_only_the_standard_library_and_the_value_types(path: Path) -> None:
    for module, name in imports(ast.parse(path.read_text())):
        top = module.split(".")[0]
        ours = module in ("zpipe.model", "zpipe.errors") or module == "zpipe.policy" or module.startswith("zpipe.policy.")
        assert ours or top in sys.stdlib_module_names, f"imports {name or module} from {module}"


def test_the_search_for_global_dice_finds_them() -> None:
    assert list(global_dice(ast.parse("import random as r\nr.random()\nrng = r.Random(1)\nrng.random()"))) == [
        "line 2: random.random"
    ]
    assert list(global_dice(ast.parse("from random import Random, choice"))) == ["from random import choice"]
