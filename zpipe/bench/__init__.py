"""What `zpipe bench` does: start a topology, drive it with real samples, report.

`drive.py` loads (closed loop, Poisson, as fast as admission lets in). `run.py` one whole run with its report.
`lab/` boards and cables out of one Linux machine, for `--lab`.
"""
