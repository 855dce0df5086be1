"""What stands in for models and archives that are too large to try with.

Models of the real classes with random weights, and archives that are laid out as the official ones, so that a
profile's every stage can be run in minutes on a processor. No figure of such a run means anything.
"""
