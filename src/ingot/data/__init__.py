"""Examples with disjoint splits and a fingerprint."""
