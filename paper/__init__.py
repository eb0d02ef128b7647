"""The paper in miniature: its findings, measured in the sandbox over several seeds."""
