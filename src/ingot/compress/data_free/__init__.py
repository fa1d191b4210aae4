"""Compression without data: what a network's own statistics say about its inputs."""
