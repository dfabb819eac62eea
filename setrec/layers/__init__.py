"""The parts of the model, one concept each."""
