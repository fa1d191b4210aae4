"""Load, save, name and take apart models."""
