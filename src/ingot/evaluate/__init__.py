"""Turn behaviour into evidence. Who compresses does not mark the homework."""
