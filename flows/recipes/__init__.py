"""Named recipes: demo, real, 7b, 13b, 34b, 70b."""
