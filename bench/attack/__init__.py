"""The enemy of `python -m bench.hostile`: ZMTP spoken by hand, hostile sessions, and a process that makes a hundred a second."""
