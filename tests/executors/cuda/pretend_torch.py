"""As much of torch as its driver touches: what starts a device, and an allocator whose pools are told when they are in use."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

#: What was asked of it, in order.
asked: list[str] = []


class MemPool:
    """One per stream; `users` counts who has it in use."""

    made = 0

    def __init__(self) -> None:
        MemPool.made += 1
        self.number, self.users = MemPool.made, 0


@contextmanager
def use_mem_pool(pool: MemPool, device: object = None) -> Iterator[None]:
    assert device == 0
    asked.append(f"pool {pool.number}")
    pool.users += 1
    try:
        yield
    finally:
        pool.users -= 1
        asked.append(f"pool {pool.number} left")


def note(what: str) -> Callable[..., None]:
    return lambda *arguments: asked.append(" ".join(map(str, (what, *arguments))))


def install(*, cuda: str | None = "13.0", init: Callable[[], None] | None = None) -> Any:
    """Puts it where `import torch` finds it, as new."""
    asked.clear()
    MemPool.made = 0
    torch: Any = ModuleType("torch")
    torch.__spec__ = importlib.machinery.ModuleSpec("torch", None)
    torch.__version__ = "2.13.0"
    torch.version = SimpleNamespace(cuda=cuda)
    torch.ones = lambda *shape, device: SimpleNamespace(item=note(f"computed on {device}"))
    torch.cuda = SimpleNamespace(
        MemPool=MemPool,
        OutOfMemoryError=type("OutOfMemoryError", (RuntimeError,), {}),  # not `torch.OutOfMemoryError`: it came with 2.5
        empty_cache=note("empty_cache"),
        init=init or note("init"),
        set_device=note("set_device"),
        use_mem_pool=use_mem_pool,
    )
    sys.modules["torch"] = torch
    return torch
