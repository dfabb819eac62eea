"""The evaluation protocol: metrics of rankings, baselines, and results files."""
