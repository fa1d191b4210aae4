"""Batch: a released version answers every row of a file or folder, once, however often it stops."""
