"""Engines that run a model, and the ruler that measures it."""
