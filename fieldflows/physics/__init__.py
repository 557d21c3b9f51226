"""Response physics on plain arrays: no model, no file, no workflow engine."""
