"""Kit for people who write methods and engines."""
