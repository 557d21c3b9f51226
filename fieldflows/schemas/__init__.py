"""What is stored: documents with a unit on every number, readable without torch and jobflow."""
