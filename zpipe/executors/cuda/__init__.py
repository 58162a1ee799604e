"""What every executor on an NVIDIA GPU shares, whichever library runs its engines.

`driver.py` is the seam: the few calls of the CUDA driver that are made, over pycuda or over torch, and over a stand-in in tests.
Nothing here imports a GPU library but the file named after it.
"""
