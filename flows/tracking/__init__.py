"""What MLflow is told and asked: nothing else in `flows` speaks to it."""
