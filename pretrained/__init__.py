"""The recipe of the mini base models: speech, encoder, language model."""
