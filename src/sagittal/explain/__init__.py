"""Model and case to maps, with a test of their faithfulness."""
