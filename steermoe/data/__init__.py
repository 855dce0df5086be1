"""Utterances between the stages: parquet shards, their schema, and batches made of them."""
