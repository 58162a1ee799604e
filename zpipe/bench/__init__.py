"""What `zpipe bench` does: start a topology, drive it with real samples, report.

`drive.py` loads (closed loop, Poisson, as fast as admission lets in). `offering.py` one source with its load; `source.py` the same
in a process of its own, `sources.py` all of those. `run.py` one whole run (`options.py` says which), `measure.py` what of it counts
and its report. `lab/` boards and cables out of one Linux machine, for `--lab`.
"""
