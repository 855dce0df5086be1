"""Sound: waveforms in and out of files, log-mel features, synthetic speech and its disturbance.

Nothing is imported here: `features` needs torch, which the stages that make data do without.
"""
