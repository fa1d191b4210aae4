"""Sentiment of film reviews: a small text encoder trained from nothing on the CPU."""
