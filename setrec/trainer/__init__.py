"""What runs a model by Lightning: evaluation, checkpoints, weights split over processes, predictions."""
