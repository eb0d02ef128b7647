"""Our generation engine behind an OpenAI-compatible endpoint."""
