"""Versions against each other, judged by people or by an outside model (§3.4)."""
