"""TensorRT engines: built from a bundle's ONNX stages, kept on disk, loaded.

`flavour.py` is one adapter over the libraries that call themselves TensorRT, `loaded.py` its part at run time; `convert.py` and
`check.py` make an ONNX of another precision and say what it costs; `manifest.py` knows where engines lie and which fit;
`build.py` puts them together for `zpipe build`; `engine.py` runs one stage. Each imports its library where it needs it, so that
importing this costs nothing.
"""
