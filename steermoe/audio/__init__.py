"""Audio: reading and writing recordings, features, voice activity, augmentation, synthetic speech."""
