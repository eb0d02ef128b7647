"""What every stage runs on: process group, DeepSpeed engine, checkpoints, schedules, launcher."""
