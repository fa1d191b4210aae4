"""A student learns from a teacher what compression made it forget: no labels."""
