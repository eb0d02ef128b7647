"""Comparisons and their labels as other tools write them; every format carries all of it."""
