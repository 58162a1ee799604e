"""The event loop leaves nothing behind."""

from __future__ import annotations

import asyncio
import signal

from zpipe.runtime.loops import run


def test_signals_handled_on_the_loop_are_handled_as_before_when_it_is_closed() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]

    async def main() -> None:
        for number in numbers:
            asyncio.get_running_loop().add_signal_handler(number, lambda: None)

    run(main())
    assert [signal.getsignal(number) for number in numbers] == before
