"""The embedded default world: seeded text, a gold judge and a noisy simulated annotator."""
