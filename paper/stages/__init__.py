"""What the findings need beside the pipeline's own stages; run by dotted name."""
