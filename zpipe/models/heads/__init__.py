"""Exit heads for a network that has none, or other ones: trained on what its frozen stages give, then appended to their files.

`shape` chooses the pooling, `features` runs the frozen stages once, `fit` trains in torch, `graph` does the ONNX, `data` reads what
to learn from, `build` puts it together. `zpipe.models.attach_heads` is the way in.
"""
