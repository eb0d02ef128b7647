"""Users' files as rows: one module for each family of formats, one function for each format."""
