"""Metrics of video segmentation: a functional core in NumPy and OpenCV, thin torchmetrics classes on top."""
