"""Transformers taken apart: from a graph to sizes, choices and named tensors."""
