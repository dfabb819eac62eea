"""The protocol: figures of rankings, baselines, results on the disk."""
