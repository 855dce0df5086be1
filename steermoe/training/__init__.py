"""One training loop for every variant, its exact resume, the learning rate search and the tracking in MLflow."""
