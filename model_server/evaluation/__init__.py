"""Metrics, simulated annotations, and comparing methods over cases."""
