"""How many files and connections this process may have open.

Every TCP connection takes a descriptor, those of strangers included, before anybody can say who they are. The usual soft limit of
1024 is meant for programs that use select(); the hard one is what a process may take if it asks.
"""

from __future__ import annotations

try:
    import resource
except ImportError:  # Windows, where the number of sockets has no such limit
    resource = None  # type: ignore[assignment]

#: No more than so many are asked for, where the hard limit is none: connections that say nothing cost about 3 kB each, and
#: 200 MB for them are enough.
MOST_DESCRIPTORS = 65_536


def limits() -> tuple[int, int] | None:
    """(soft, hard) limit, the most a process may ask for if there is none; None where descriptors are not limited so."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else hard
    return (most if soft == resource.RLIM_INFINITY else soft), most


def raise_limit() -> None:
    """Raises the soft limit to the hard one, at most to MOST_DESCRIPTORS; a higher one is left as it is.

    For processes of zpipe's own. A user's process keeps what it was given: its other libraries may use select().
    """
    found = limits()
    if found is None:
        return
    soft, hard = found
    wanted = min(hard, MOST_DESCRIPTORS)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        except (OSError, ValueError):  # a system with a further limit of its own, such as macOS's; what there was remains
            pass
