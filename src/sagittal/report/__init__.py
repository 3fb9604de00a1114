"""Evidence to a page."""
