"""jobflow jobs: thin, no physics."""
