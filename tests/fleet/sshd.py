"""A real sshd on loopback: each board a home of its own behind a port of its own, with keys made for the test.

sshd is run as inetd would, once for each connection, so that the kernel chooses the port and nothing is left to wait for or to kill
at the end but what a test left open.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
SFTP = next(
    (
        path
        for path in ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
        if Path(path).exists()
    ),
    None,
)
MISSING = "needs sshd, ssh-keygen and sftp-server: apt-get install openssh-server"

_CONFIG = """
HostKey "{host_key}"
AuthorizedKeysFile "{authorized}"
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PidFile none
LogLevel ERROR
Subsystem sftp {sftp}
ForceCommand '{enter}'
"""
_ENTER = """#!/bin/sh
export HOME='{home}' PATH='{home}/bin':"$PATH"
unset XDG_RUNTIME_DIR
cd || exit 1
case $SSH_ORIGINAL_COMMAND in */sftp-server) ;; *) echo "Welcome to this board" ;; esac
exec sh -c "$SSH_ORIGINAL_COMMAND"
"""


class Board:
    """One board: `home` is what a log-in sees; `port` of 127.0.0.1 leads there."""

    def __init__(self, folder: Path, user_key: Path) -> None:
        folder.mkdir()
        self.home = folder / "home"
        (self.home / "bin").mkdir(parents=True)
        self.host_key = make_key(folder / "host_key")
        enter = folder / "enter"
        enter.write_text(_ENTER.format(home=self.home))
        enter.chmod(0o755)
        authorized = folder / "authorized_keys"
        shutil.copy(f"{user_key}.pub", authorized)
        self._config = folder / "sshd_config"
        self._config.write_text(_CONFIG.format(host_key=self.host_key, authorized=authorized, sftp=SFTP, enter=enter))
        self.errors = folder / "sshd.log"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._servers: list[subprocess.Popen[bytes]] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            assert SSHD is not None
            with connection, self.errors.open("ab") as errors:
                command = [SSHD, "-i", "-e", "-f", str(self._config)]
                self._servers.append(
                    subprocess.Popen(command, stdin=connection.fileno(), stdout=connection.fileno(), stderr=errors)
                )

    @property
    def known(self) -> str:
        """Its line of a known_hosts."""
        return f"[127.0.0.1]:{self.port} {Path(f'{self.host_key}.pub').read_text()}"

    def program(self, name: str, text: str) -> Path:
        """Puts a program on its path."""
        file = self.home / "bin" / name
        file.write_text(text)
        file.chmod(0o755)
        return file

    def cut(self) -> None:
        """Ends every connection, as if its network was gone."""
        for server in self._servers:
            server.kill()

    def close(self) -> None:
        # Closing alone does not wake who accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(10.0)
        for server in self._servers:
            server.kill()
            server.wait(10.0)


def make_key(file: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file], check=True, timeout=30)
    return file


class Boards:
    """Some boards, and the home of who reaches them."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "me"
        (self.home / ".ssh").mkdir(parents=True, mode=0o700)
        self._folder = folder
        self._key = make_key(self.home / ".ssh" / "id_ed25519")
        self.boards: list[Board] = []
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd of root shuts itself in

    def add(self, *, known: bool = True) -> Board:
        """Another board; whether known_hosts knows it."""
        board = Board(self._folder / f"board{len(self.boards)}", self._key)
        self.boards.append(board)
        if known:
            with (self.home / ".ssh" / "known_hosts").open("a") as file:
                file.write(board.known)
        return board

    def close(self) -> None:
        for board in self.boards:
            board.close()


def me() -> str:
    """Who runs the tests, whom sshd lets in without being root."""
    return pwd.getpwuid(os.getuid()).pw_name


def skip_without_sshd() -> None:
    if SSHD is None or SFTP is None or shutil.which("ssh-keygen") is None:
        pytest.skip(MISSING)
    pytest.importorskip("asyncssh", reason="needs asyncssh: pip install 'zpipe[fleet]'")
