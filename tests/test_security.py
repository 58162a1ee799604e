"""Key files: how they are made, which are refused, and who may listen where."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zpipe import security
from zpipe.errors import ConfigError, TopologyError
from zpipe.security import is_loopback, make_keys, node_keys, read_secret, secret_file
from zpipe.topology import SecuritySpec, Topology, from_dict, load_topology
from zpipe.topology.keys import PUBLIC_FILE, read_public
from zpipe.transport.curve import new_keypair, public_key

posix = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")


def write(folder: Path, text: str = "security: {keys: keys}", nodes: int = 2) -> Path:
    """A topology file whose last lines are `text`."""
    listed = "".join(f"  - {{rank: {rank}, stages: [{rank}]}}\n" for rank in range(nodes))
    file = folder / "hall.yaml"
    file.write_text(f"bundle: digits-mobilenetv2\nnodes:\n{listed}links: line\n{text}\n")
    return file


def line(call: Any, *arguments: Any) -> str:
    """The one line a call is refused with."""
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def hall(tmp_path: Path) -> Topology:
    """Two nodes with keys."""
    make_keys(tmp_path / "keys", range(2))
    return load_topology(write(tmp_path))


# ---- making them -------------------------------------------------------------------------------


@posix
def test_secrets_are_their_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = make_keys(tmp_path / "keys", range(3))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "keys" / PUBLIC_FILE).stat().st_mode) == 0o644
    for rank, public in made.items():
        file = secret_file(tmp_path / "keys", rank)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert public_key(read_secret(file)) == public
    assert read_public(tmp_path / "keys") == made
    assert len(set(made.values())) == 3


def test_nothing_is_overwritten_and_all_are_made_or_none(tmp_path: Path) -> None:
    made = make_keys(tmp_path, [1])
    before = {file.name: file.read_text() for file in tmp_path.iterdir()}
    expected = f"{tmp_path / PUBLIC_FILE}: found a key of rank 1 already, expected none: keys are never overwritten"
    assert line(make_keys, tmp_path, range(3)).startswith(expected)
    (tmp_path / PUBLIC_FILE).unlink()
    assert line(make_keys, tmp_path, range(3)).startswith(f"{secret_file(tmp_path, 1)}: found a key of rank 1 already")
    (tmp_path / PUBLIC_FILE).write_text(before[PUBLIC_FILE])
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == before
    made |= make_keys(tmp_path, [0, 2])
    assert read_public(tmp_path) == made


@posix
def test_link_where_a_secret_shall_be_is_not_followed(tmp_path: Path) -> None:
    secret_file(tmp_path, 1).symlink_to(tmp_path / "elsewhere")
    assert "found that no key can be written" in line(make_keys, tmp_path, range(2))
    assert [file.name for file in tmp_path.iterdir()] == ["node1.secret"]


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert line(make_keys, tmp_path / "file" / "keys", [0]).startswith(f"{tmp_path / 'file' / 'keys'}")


# ---- reading them ------------------------------------------------------------------------------


def test_node_lets_every_rank_in(hall: Topology) -> None:
    for rank in range(2):
        keys = node_keys(hall, rank)
        assert keys is not None
        assert keys.public == hall.key_of(rank)
        assert keys.allowed == {hall.key_of(0), hall.key_of(1)}  # its own: who looks at it from its own board has no other
        assert keys.secret not in repr(keys)
    assert (hall.key_of(2), hall.key_of(-1)) == ("", "")


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_secret_that_others_can_touch_is_refused_with_the_remedy(hall: Topology, tmp_path: Path, mode: int) -> None:
    file = secret_file(tmp_path / "keys", 1)
    file.chmod(mode)
    assert line(node_keys, hall, 1) == f"{file}: found mode {mode:03o}, expected a secret nobody else can read; chmod 600 {file}"
    file.chmod(0o400)
    assert node_keys(hall, 1) is not None


@posix
@pytest.mark.parametrize("name", ["node1.secret", PUBLIC_FILE])
def test_pipe_in_place_of_a_key_file_is_refused_without_waiting_for_its_writer(tmp_path: Path, name: str) -> None:
    make_keys(tmp_path / "keys", range(2))
    topology = load_topology(write(tmp_path))
    pipe = tmp_path / "keys" / name
    pipe.unlink()
    os.mkfifo(pipe, 0o600)
    said = line(load_topology, topology.path) if name == PUBLIC_FILE else line(node_keys, topology, 1)
    assert said.startswith(f"{pipe}: found ")
    assert "no regular file" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "found no such file, expected this node's secret key; copy it from where `zpipe keygen` was run"),
        ("", "found no key, expected 40 characters of Z85"),
        ("x" * 39, "found no key, expected 40 characters of Z85"),
        (new_keypair()[1], "found the secret of public key"),
        ("\xe9" * 40, "found that it cannot be read"),
    ],
    ids=["absent", "empty", "short", "another's", "no ASCII"],
)
def test_secret_that_is_none(hall: Topology, tmp_path: Path, text: str | None, said: str) -> None:
    file = secret_file(tmp_path / "keys", 1)
    file.unlink()
    if text is not None:
        file.write_text(text, encoding="utf-8")
        file.chmod(0o600)
    assert line(node_keys, hall, 1).startswith(f"{file}: {said}")


def test_installation_without_curve_is_one_line(hall: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpipe.transport.curve.is_supported", lambda: False)
    assert "without CURVE" in line(node_keys, hall, 0)
    assert "without CURVE" in line(security.make_keys, Path("nowhere"), [0])


# ---- who may listen where ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:0", True),
        ("127.3.2.1:5800", True),
        ("[::1]:5800", True),
        ("localhost:5800", True),
        ("0.0.0.0:5800", False),
        ("*:5800", False),
        ("[::]:5800", False),
        ("10.0.0.1:5800", False),
        ("board-1:5800", False),
        ("eth0:5800", False),
    ],
)
def test_loopback(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_open_address_needs_keys_or_a_word(tmp_path: Path) -> None:
    file = write(tmp_path, "")
    open_everywhere = replace(load_topology(file), path=file)
    nodes = tuple(replace(node, address="10.0.0.1:5800") for node in open_everywhere.nodes)
    exposed = replace(open_everywhere, nodes=nodes)
    said = line(node_keys, exposed, 1)
    assert said.startswith(f"{file}: rank 1 would listen at 10.0.0.1:5800 without keys")
    assert f"`zpipe keygen --topology {file}`" in said
    assert "--insecure (in the file: `security: none`)" in said
    assert node_keys(exposed.without_keys(), 1) is None
    assert node_keys(load_topology(write(tmp_path, "security: none")), 1) is None
    behind = tuple(replace(node, bind="127.0.0.1") for node in nodes)
    assert node_keys(replace(exposed, nodes=behind), 1) is None


# ---- in a topology -----------------------------------------------------------------------------


def test_keys_travel_with_the_topology_and_are_part_of_its_digest(hall: Topology, tmp_path: Path) -> None:
    copy = from_dict(json.loads(json.dumps(hall.to_dict())))
    assert (copy, copy.security, copy.digest()) == (hall, hall.security, hall.digest())
    assert copy.security.folder == tmp_path / "keys"
    elsewhere = replace(hall, security=replace(hall.security, folder=Path("/other")))
    assert elsewhere.digest() == hall.digest()
    assert "/other" not in json.dumps(elsewhere.canonical())
    plain = load_topology(write(tmp_path, ""))
    assert plain.digest() != hall.digest()
    assert plain.without_keys().digest() == plain.digest()
    assert from_dict(plain.without_keys().to_dict()).security == SecuritySpec(insecure=True)
    assert from_dict(plain.without_keys().to_dict()).security.insecure
    assert "found keys and --insecure" in line(hall.without_keys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("security: yes", "security: found True, expected keys and values"),
        ("security: all", "security: found 'all', expected none, or keys: FOLDER"),
        ("security: {key: keys}", "security.key: found an unknown key, expected one of keys, public (did you mean keys?)"),
        ("security: {keys: 3}", "security.keys: found 3, expected a word"),
        ("security: {keys: ~nosuchuser/x}", "security.keys: found '~nosuchuser/x', whose user has no home here, expected a folder"),
        ("security: {keys: there}", "security.keys: found no file {folder}/there/public.keys, expected the nodes' public keys"),
        ("security: {public: [x, y]}", "security.public: found 'x' at rank 0, expected a public key, 40 characters of Z85"),
        ("security: {public: 3}", "security.public: found 3, expected a list"),
    ],
)
def test_mistake_in_the_topology(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path, text)
    assert line(load_topology, file).startswith(f"{file}: {said.format(folder=tmp_path)}")


ONE, TWO = (new_keypair()[0] for _ in range(2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"0 {ONE}\n", "hall.yaml: security.keys: found no key of rank 1, expected one for each of ranks 0 to 1"),
        (f"0 {ONE}\n1 {ONE}\n", "hall.yaml: security.keys: found the key of rank 0 at rank 1 again, expected a key of its own"),
        (f"0 {ONE}\n0 {TWO}\n", "keys/public.keys: line 2: found rank 0 a second time, expected each rank once"),
        (f"0 {ONE}\n1 {TWO[1:]}\n", "keys/public.keys: line 2: found '1 "),
        (f"# ours\n\nzero {ONE}\n", "keys/public.keys: line 3: found 'zero"),
    ],
    ids=["a rank without", "one key twice", "one rank twice", "39 characters", "no number"],
)
def test_mistake_in_the_public_keys(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "keys").mkdir(mode=0o700)
    public = tmp_path / "keys" / PUBLIC_FILE
    public.write_text(text)
    public.chmod(0o644)
    assert line(load_topology, write(tmp_path)).startswith(f"{tmp_path}/{said}")


@posix
@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_public_keys_that_others_can_change_are_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    make_keys(tmp_path / "keys", range(2))
    file, public = write(tmp_path), tmp_path / "keys" / PUBLIC_FILE
    public.chmod(mode)
    expected = f"{public}: found mode {mode:03o}, expected a list of keys that nobody but its owner can change; chmod go-w {public}"
    assert line(load_topology, file) == expected
    public.chmod(0o444)
    assert len(load_topology(file).security.keys) == 2


@posix
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_folder_of_keys_that_others_can_change_is_refused_and_none_are_made_there(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "keys"
    make_keys(folder, [0])
    folder.chmod(mode)
    expected = f"{folder}: found mode {mode:03o}, expected a folder that nobody but its owner can change; chmod go-w {folder}"
    assert line(load_topology, write(tmp_path)) == expected
    assert line(make_keys, folder, [1]) == expected
    folder.chmod(0o755)
    assert list(make_keys(folder, [1])) == [1]


def test_keys_may_come_in_any_order_and_for_more_ranks_than_there_are(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / PUBLIC_FILE).write_text(f"7 {new_keypair()[0]}\n1 {TWO}\n0 {ONE}\n")
    assert load_topology(write(tmp_path)).security.keys == (ONE, TWO)
    with pytest.raises(TopologyError):
        load_topology(write(tmp_path, nodes=3))
    assert load_topology(write(tmp_path, nodes=3), read_keys=False).security.keys == ()
