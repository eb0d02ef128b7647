"""Prefect flows, the `rlhf` command line and the recipes."""
