"""What several stages do with a model: load and save, sample, score, compare, fine-tune."""
