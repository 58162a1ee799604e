"""What a second program that wants to be the same source is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.mesh import topology
from zpipe.errors import AddressInUse, ConfigError
from zpipe.runtime.starting import somebody_else
from zpipe.topology import SourceSpec


def test_who_is_a_source_already_is_told_which_others_there_are() -> None:
    sources = (SourceSpec(0, name="camera"), SourceSpec(1, name="mapping"))
    mesh = replace(topology([[0, 1, 2, 3, 4]] * 2), sources=sources)
    with pytest.raises(ConfigError) as caught, somebody_else(mesh, 0):
        raise AddressInUse("127.0.0.1:5800")
    assert str(caught.value) == (
        "address 127.0.0.1:5800 is in use: found a program that is source camera already, or another at its port, expected none: "
        "one program is a source; stop that one, or be source mapping (--source NAME)"
    )
