"""An ONNX stage as a torch module, for inference.

Our own, since the one library there is (onnx2torch) has had no release for over two years and does not import without torchvision,
and since a CUDA graph asks what it does not promise: nothing on the way may read a tensor of the device. It needs torch and onnx
(extra `train`) and imports them, so what runs torch imports it inside functions.
"""

from zpipe.executors.torch_onnx.module import OnnxModule

__all__ = ["OnnxModule"]
