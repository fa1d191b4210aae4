"""Quantization of ONNX graphs: observers, placement, and the one writer of integer models."""
