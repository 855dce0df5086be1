"""A web page to try a model."""
