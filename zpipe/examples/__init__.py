"""Programs to read, run and copy.

    python -m zpipe.examples.control_loop         a robot's control loop that never waits for the network, in asyncio
    python -m zpipe.examples.control_loop_sync    the same without asyncio

They use what `zpipe` makes public and nothing else.
"""
