"""The parts of the model, one concept a file."""
