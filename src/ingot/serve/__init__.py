"""Endpoints: a released version that answers requests."""
