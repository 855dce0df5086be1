"""Models in the formats of other programs: ONNX, merged folders, MLflow."""
