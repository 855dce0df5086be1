"""One training loop for every arm, its exact resume, the learning rate search and the tracking in MLflow."""
