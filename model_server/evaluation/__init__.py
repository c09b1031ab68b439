"""Metrics, protocols, and comparing methods over cases."""
