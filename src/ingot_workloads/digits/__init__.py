"""Handwritten digits: a small trained CNN, from training to a served version in two minutes."""
