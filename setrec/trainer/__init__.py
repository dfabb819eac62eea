"""Everything that needs Lightning: evaluation, checkpoints, weights split over processes, predictions."""
