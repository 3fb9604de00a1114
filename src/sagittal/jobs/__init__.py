"""What is to be done with a study, by which model, and the doing of it."""
