"""Whole splits through a system, scores with intervals, and whether the frozen parts are untouched."""
