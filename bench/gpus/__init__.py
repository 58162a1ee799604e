"""What `python -m bench.gpu` is made of: `backends.py` which executors there are, `device.py` times on the device, `line.py` whole
stages under load, `verdict.py` the figures that are promised. None of it knows a GPU but through `zpipe.executors.cuda.driver`, so
the tests run all of it on a stand-in.
"""
