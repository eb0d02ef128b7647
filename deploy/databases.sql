-- Prefect's database is the one that the image makes; MLflow and the annotation page have their own.
CREATE DATABASE mlflow;
CREATE DATABASE annotation;
