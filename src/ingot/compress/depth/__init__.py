"""Fewer layers: which to drop, by what their loss does to the answers."""
