"""The annotation service: batches of comparisons in, labels from a browser, preferences out."""
