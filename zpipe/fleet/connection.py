"""A board over SSH: the only code that imports asyncssh.

Known hosts, keys, the agent, jump hosts and ~/.ssh/config are those of `ssh`; nothing is ever asked for, so that ten boards at once
stay ten lines. A host whose key is not known is refused.
"""

from __future__ import annotations

import asyncio
import posixpath
import shlex
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zpipe.environment import installed, pip
from zpipe.errors import BackendUnavailable, ZpipeError, one_line, said
from zpipe.fleet.hosts import Board

if TYPE_CHECKING:
    import asyncssh

#: What a connection may take to stand, as long as nobody says otherwise; a board that is off costs this and no more.
CONNECT_SECONDS = 10.0
#: A connection that says nothing is asked every so often, and given up after so many questions without an answer.
KEEPALIVE_SECONDS, KEEPALIVES = 5.0, 4
#: Bytes sent before progress is told; what a broken connection left of a file is good but for the last of these.
CHUNK_BYTES = 1 << 20

#: Says whether the lock is held, and holds it until its standard input ends. util-linux' and busybox' flock both end with 1 and
#: without a word where somebody else has it; whatever else is wrong (no right to the file, a file system without locks), they say.
_LOCK = """
held() { echo locked; cat >/dev/null; exit; }
command -v flock >/dev/null || held
why=$( ( : >>"$1" ) 2>&1 ) || { echo broken $why; exit; }
exec 9>>"$1"
why=$(flock -n 9 2>&1) && held
if [ -z "$why" ]; then echo taken; else echo broken $why; fi
"""

_SCRIPT = (Path(__file__).parent / "board.sh").read_text(encoding="ascii")


def check_installed() -> None:
    """Before anything is done.

    Raises:
        BackendUnavailable: asyncssh is not here.
    """
    if not installed("asyncssh"):
        raise BackendUnavailable(f"found no asyncssh, expected it to reach boards over SSH; run: {pip()} install 'zpipe[fleet]'")


class Link:
    """A connection to one board. Made by `connected`."""

    def __init__(self, board: Board, connection: asyncssh.SSHClientConnection) -> None:
        self.board = board
        self._connection = connection

    async def ask(self, verb: str, *arguments: str | int, seconds: float) -> list[tuple[str, str]]:
        """Runs a part of board.sh there: its answers, (word, value) in order.

        Raises:
            ZpipeError: it failed, or took longer than `seconds`.
        """
        command = shlex.join(["sh", "-s", "--", verb, *map(str, arguments)])
        with _translated(self.board):
            try:
                done = await asyncio.wait_for(self._connection.run(command, input=_SCRIPT, check=False, errors="replace"), seconds)
            except asyncio.TimeoutError:
                raise ZpipeError(f"it answered nothing to `{verb}` within {seconds:g} s") from None
        answers = [(word, value) for word, _, value in (line.partition(" ") for line in str(done.stdout).splitlines())]
        for word, value in answers:
            if word == "error":
                raise ZpipeError(value)
        if done.exit_status != 0:
            last = str(done.stderr).strip().splitlines()[-1:] or [f"exit code {done.exit_status}"]
            raise ZpipeError(f"`{verb}` failed there: {said(ZpipeError(last[0]))}")
        return answers

    @asynccontextmanager
    async def locked(self, file: str, seconds: float) -> AsyncIterator[None]:
        """Keeps others out while it lasts, and no longer than the connection. A board without `flock` has no lock.

        Raises:
            ZpipeError: somebody else has it, or the board cannot lock that file.
        """
        with _translated(self.board):
            async with self._connection.create_process(shlex.join(["sh", "-c", _LOCK, "lock", file])) as process:
                word, why = "-", ""
                while word and word not in ("locked", "taken", "broken"):  # what a shell's start-up files print comes first
                    line = str(await asyncio.wait_for(process.stdout.readline(), seconds))
                    word, _, why = line.strip().partition(" ") if line else ("", "", "")
                if word != "locked":
                    process.terminate()
                    raise ZpipeError(self._without_lock(file, word, why))
                try:
                    yield
                finally:
                    process.stdin.write_eof()

    def _without_lock(self, file: str, word: str, why: str) -> str:
        quoted = shlex.quote(file)
        if word == "taken":
            return f"another push is under way there; wait for it, or, if its machine is gone: {self.board.ssh} rm {quoted}"
        return f"{quoted} cannot be locked there ({one_line(why) or 'it said nothing'}); {self.board.ssh} ls -ld {quoted}"

    @asynccontextmanager
    async def carrier(self) -> AsyncIterator[Carrier]:
        """What files are sent by, closed at the end.

        Raises:
            ZpipeError: there is no SFTP there.
        """
        import asyncssh

        with _translated(self.board):
            try:
                sftp = await self._connection.start_sftp_client()
            except (asyncssh.ChannelOpenError, asyncssh.SFTPBadMessage, asyncssh.SFTPConnectionLost) as exc:
                raise ZpipeError(
                    f"SFTP does not work there ({said(exc)}); sudo apt-get install openssh-sftp-server, and look whether a "
                    "start-up file of its shell prints something"
                ) from exc
            async with sftp:
                yield Carrier(self.board, sftp)


class Carrier:
    """Sends files to one board."""

    def __init__(self, board: Board, sftp: asyncssh.SFTPClient) -> None:
        self._board, self._sftp = board, sftp

    async def send(self, data: Path | bytes, to: str, *, mode: int, resume: bool, sent: Callable[[int], None]) -> None:
        """Brings a file there, under a name for the time being; folders that are missing are made.

        Args:
            data: a file here, or bytes.
            to: path there.
            mode: of the file, from its first byte on.
            resume: go on where an earlier try ended.
            sent: told how many bytes came to be there, again and again.

        Raises:
            ZpipeError: it failed.
        """
        import asyncssh

        with _translated(self._board):
            sftp, start = self._sftp, 0
            await sftp.makedirs(posixpath.dirname(to), exist_ok=True)
            if resume and await sftp.exists(to):
                size = await sftp.getsize(to) or 0
                # Pieces of one chunk arrive in any order, chunks don't.
                start = max(0, (size - 1) // CHUNK_BYTES * CHUNK_BYTES)
            elif await sftp.exists(to):
                await sftp.remove(to)
            flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT
            async with sftp.open(to, flags, asyncssh.SFTPAttrs(permissions=mode), encoding=None) as remote:
                sent(start)
                for offset, chunk in _chunks(data, start):
                    await remote.write(chunk, offset)
                    sent(len(chunk))
            await sftp.chmod(to, mode)


def _chunks(data: Path | bytes, start: int) -> Iterator[tuple[int, bytes]]:
    if isinstance(data, bytes):
        yield 0, data
        return
    with data.open("rb") as stream:
        stream.seek(start)
        while chunk := stream.read(CHUNK_BYTES):
            yield start, chunk
            start += len(chunk)


@asynccontextmanager
async def connected(board: Board, seconds: float = CONNECT_SECONDS) -> AsyncIterator[Link]:
    """A connection to a board, closed at the end.

    Raises:
        ZpipeError: it does not come to stand within `seconds`; one line that says why and what to do.
    """
    import asyncssh

    asyncssh.set_log_level("WARNING")
    options: dict[str, Any] = {"username": board.user} if board.user else {}
    if board.port:
        options["port"] = board.port
    with _translated(board):
        try:
            connection = await asyncio.wait_for(
                asyncssh.connect(board.host, keepalive_interval=KEEPALIVE_SECONDS, keepalive_count_max=KEEPALIVES, **options),
                seconds,
            )
        except asyncio.TimeoutError:
            raise ZpipeError(
                f"no answer within {seconds:g} s: it is off, elsewhere, or a firewall drops what comes; {board.ssh}"
            ) from None
    try:
        yield Link(board, connection)
    finally:
        connection.abort()
        await connection.wait_closed()


@contextmanager
def _translated(board: Board) -> Iterator[None]:
    """What asyncssh raises, in one line with what to do.

    Raises:
        ZpipeError: instead of any of it.
    """
    import asyncssh

    try:
        yield
    except asyncssh.HostKeyNotVerifiable as exc:
        raise ZpipeError(
            "its host key is unknown here, or another than the one in known_hosts; compare its fingerprint and take it: "
            f"{board.ssh} true"
        ) from exc
    except asyncssh.PermissionDenied as exc:
        copy = board.ssh.replace("ssh ", "ssh-copy-id ", 1)
        raise ZpipeError(
            f"it lets {board.user or 'you'} not in with any key of yours; {copy} (or ssh-add, for an encrypted key)"
        ) from exc
    except asyncssh.SFTPError as exc:
        raise ZpipeError(
            f"a file could not be written there ({said(exc)}); is its disk full, or read-only? {board.ssh} df -h"
        ) from exc
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, asyncssh.ConfigParseError) as exc:
        raise ZpipeError(f"SSH's own files here: {said(exc)}; an encrypted key goes into the agent: ssh-add") from exc
    except asyncssh.Error as exc:
        raise ZpipeError(f"SSH: {said(exc)}; {board.ssh} may say more") from exc
    except ConnectionRefusedError as exc:
        raise ZpipeError("nobody listens at its SSH port; start sshd there, or say HOST:PORT") from exc
    except OSError as exc:
        raise ZpipeError(f"it cannot be reached ({said(exc)})") from exc
