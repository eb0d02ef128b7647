"""`rlhf up`: the Prefect server, MLflow, the annotation page and the workers of one home."""
