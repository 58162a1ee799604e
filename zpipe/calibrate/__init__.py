"""Calibrated exits: what a confidence is worth, and which thresholds keep a promised accuracy. NumPy and ONNX Runtime, no torch.

`run` is `zpipe calibrate`: `chain` computes logits, `temperature` and `metrics` fit and judge them, `points` says where samples
leave under given thresholds, `table` which thresholds keep a target, `outage` and `timing` how often a promise is broken or late;
`study` puts it together, `write` puts it into the bundle. `drift` watches whether live answers still look like the calibration
split's. Everything is fitted on calibration data; test numbers are only reported.

Source: Pacheco, Couto, Simeone, "Calibration-Aided Edge Inference Offloading via Adaptive Model Partitioning of Deep Neural
Networks" (arXiv:2010.16335), our reading; differs: thresholds come from a table of target accuracies. Where outage is measured the
target itself is the threshold, as there.
"""
