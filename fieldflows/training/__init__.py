"""Training of field-coupled models: configuration, losses, loop with exact resume, evaluation."""
