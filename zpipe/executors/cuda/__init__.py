"""What every executor on an NVIDIA GPU shares, whichever library runs its engines.

`driver.py` is the seam: the few calls of the CUDA driver that are made, over pycuda or over torch, and over a stand-in in tests.
`runner.py` is a complete executor on it, with the thread of `owner.py`, the memory of `slots.py`, the steps of `passage.py` and the
activations of `rows.py`. `gate.py` queues the exit gate's kernels (`gate.cu`, compiled ahead into `images/`).
Nothing here imports a GPU library but the file named after it.
"""
