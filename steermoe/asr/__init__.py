"""Speech recognition on recordings of any length: segments, timestamps, transcripts."""
