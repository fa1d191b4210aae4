"""Who answers a request that names no version: splits, shadows, canaries."""
