"""The questions: what to learn, how to read the answer, how to score it."""
