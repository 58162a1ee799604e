"""Hostile frames: a mutator, an oracle, a corpus, and a live driver to throw them at.

`mutate` makes frames, `oracle` says what the decoder must do with each, `corpus` keeps valid messages and every frame that ever
broke something. `driver` plays a hostile neighbour against a real Driver with a real policy. The suite runs a seeded part in
seconds; `python -m bench.fuzz` runs the million.

Which generator: `bench/experiments/fuzz_compare.py` measures three against the decoder, by branches covered and by bugs planted in
it. See there for the table; the mutator here was kept for it.
"""
