"""Arrays to a model, within a time budget."""
