-- Prefect's database is the one that the image makes; MLflow has its own.
CREATE DATABASE mlflow;
