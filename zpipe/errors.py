"""The error tree.

    ZpipeError                  everything zpipe raises on purpose
        ConfigError             a file, key or option is wrong; nothing was started (exit code 2)
            TopologyError       ... in a topology file
            BundleError         ... in a model bundle
            AddressInUse        ... or somebody listens already where this node is to
        ExecutorError           a stage could not be run
            EngineMismatchError an engine was built for another model, device or version
            BackendUnavailable  the library or device an executor needs is not here
            ExecutorLost        the executor died: it will not run anything any more
        WireError               bytes from a peer that the protocol refuses
        PeerLost                a neighbour went away
        SampleError             this sample ended without a result
            SampleRejected      ... it was not admitted
            SampleExpired       ... its deadline passed before a result came
            SampleFailed        ... its stage failed, or it was cancelled
        PipelineClosed          the pipeline was closed, or closes now

A message says what was found, what was expected and the next step, in one line.
"""

from __future__ import annotations

#: Characters kept of a text that comes from elsewhere.
MAX_TEXT = 240


def one_line(text: str) -> str:
    """A text that came from elsewhere, as people may be shown it: nothing in it moves a cursor or begins a line, at most MAX_TEXT.

    Escaped is what `str.isprintable` says no to: controls, line ends of any kind, marks that turn the direction, lone surrogates.
    """
    if len(text) <= MAX_TEXT and text.isprintable():
        return text
    escaped = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text[: MAX_TEXT + 1]
    )
    return escaped if len(escaped) <= MAX_TEXT else escaped[: MAX_TEXT - 3] + "..."


def said(exc: BaseException, most: int = MAX_TEXT) -> str:
    """What an exception from elsewhere says, as `one_line` of at most so many characters; its type where it says nothing."""
    text = one_line(" ".join(str(exc).split()) or type(exc).__name__)
    return text if len(text) <= most else f"{text[: most - 3]}..."


class ZpipeError(Exception):
    """Base of every error zpipe raises on purpose."""


class ConfigError(ZpipeError):
    """A file, key or option is wrong; nothing was started."""


class TopologyError(ConfigError):
    """A topology file is wrong: the message names file, key, found and expected."""


class BundleError(ConfigError):
    """A model bundle is missing, incomplete or changed."""


class AddressInUse(ConfigError):
    """Somebody listens already where this node is to.

    Attributes:
        address: `host:port`.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__(f"address {address} is in use; stop the other program or choose another port")


class ExecutorError(ZpipeError):
    """A stage could not be run."""


class EngineMismatchError(ExecutorError):
    """An engine was built for another model, device or version."""


class BackendUnavailable(ExecutorError):
    """The library or device an executor needs is not here; the message says how to get it."""


class ExecutorLost(ExecutorError):
    """The executor died - its device is gone, or its memory - and will not run anything any more; its node serves no stage."""


class WireError(ZpipeError):
    """Bytes from a peer that the protocol refuses; the frame is dropped and counted."""


class PeerLost(ZpipeError):
    """A neighbour went away."""


class SampleError(ZpipeError):
    """Base of the three ways a sample ends without a result.

    Attributes:
        sample: id of the sample at its source, -1 where it never got one.
    """

    def __init__(self, message: str, *, sample: int = -1) -> None:
        super().__init__(message)
        self.sample = sample


class SampleRejected(SampleError):
    """This sample was not admitted."""


class SampleExpired(SampleError):
    """This sample's deadline passed before a result came."""


class SampleFailed(SampleError):
    """This sample cannot be answered: its stage failed, or it was cancelled."""


class PipelineClosed(ZpipeError):
    """The pipeline was closed, or closes now."""
