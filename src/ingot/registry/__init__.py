"""Versions and the stages that point at them. No evidence, no release."""
