"""The stages of `dvc.yaml`: read the configuration, call the library, write the outputs."""
