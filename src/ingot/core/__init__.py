"""Errors, digests, seeds, units, progress: what every room stands on. No torch, no network."""
