"""Model and truth to evidence."""
