"""Calibrated exits: what a confidence is worth, and which thresholds keep a promised accuracy. NumPy and ONNX Runtime, no torch.

`metrics` fits temperatures and says how well confidences fit; `points` says where samples leave under given thresholds; `chain`
computes logits. Everything is fitted on calibration data; test numbers are only reported.

Source: Pacheco, Couto, Simeone, "Calibration-Aided Edge Inference Offloading via Adaptive Model Partitioning of Deep Neural
Networks" (arXiv:2010.16335), our reading.
"""
