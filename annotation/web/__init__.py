"""The pages: FastAPI routes, templates, and the rules about who may see which."""
