"""What a recipe needs on a given number of GPUs: memory of a rank, time, energy, carbon.

Arithmetic alone: nothing is allocated and no GPU is asked. docs/capacity.md states its conventions.
"""
