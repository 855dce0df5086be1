"""When and where the pipeline runs: Prefect flows over DVC targets. What runs is said in dvc.yaml alone."""
