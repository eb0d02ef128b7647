"""What the annotation service keeps, and the only code that writes it."""
