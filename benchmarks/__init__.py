"""Measurements: each module prints what it measures and writes JSON beside it. Never run as tests."""
