"""The commands: parse, call one library function, print. Nothing else in zpipe prints.

Exit codes: 0 done, 1 the run fell short, 2 bad usage or configuration, 130 cut short by Ctrl-C, 143 by SIGTERM; a node and what
only shows something have no other end and say 0. One module per command.
"""

from __future__ import annotations

import logging
import signal
import sys

import click

# Each puts its command into the group.
from zpipe.cli import (
    bench,
    build,
    calibrate,
    deploy,
    doctor,
    fleet,
    heads,
    infer,
    keygen,
    node,
    plan,
    profile,
    push,
    replay,
    ros2,
    sim,
    split,
    top,
    trace,
    train,
)
from zpipe.cli.group import cli
from zpipe.cli.running import Interrupted
from zpipe.errors import BackendUnavailable, ConfigError, EngineMismatchError, ZpipeError

__all__ = [
    "bench",
    "build",
    "calibrate",
    "cli",
    "completion",
    "deploy",
    "doctor",
    "fleet",
    "heads",
    "infer",
    "keygen",
    "main",
    "node",
    "plan",
    "profile",
    "push",
    "replay",
    "ros2",
    "sim",
    "split",
    "top",
    "trace",
    "train",
]

log = logging.getLogger("zpipe.cli")

#: What a shell adds to the number of the signal that ended a command.
_SIGNALLED = 128


def main() -> None:
    """The `zpipe` command: every failure is one line on standard error."""
    try:
        code = cli.main(prog_name="zpipe", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("stopped")
        sys.exit(_SIGNALLED + signal.SIGINT)
    except click.UsageError as exc:
        _fail(f"{exc.format_message().rstrip('.')}; see `{exc.ctx.command_path if exc.ctx else 'zpipe'} --help`", 2)
    except click.ClickException as exc:
        _fail(exc.format_message(), 2)
    except Interrupted as exc:
        click.echo("stopped")
        sys.exit(_SIGNALLED + exc.number)
    except (ConfigError, BackendUnavailable, EngineMismatchError) as exc:
        _fail(str(exc), 2)
    except ZpipeError as exc:
        _fail(str(exc), 1)
    except Exception as exc:  # a mistake of ours
        log.debug("what happened:", exc_info=True)
        _fail(f"unexpected {type(exc).__name__}: {exc}; `zpipe -vv ...` shows where, please report it", 1)


def _fail(message: str, code: int) -> None:
    click.echo("zpipe: " + " ".join(message.split()), err=True)
    sys.exit(code)
