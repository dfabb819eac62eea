"""The one score that everything ranks by: its parts, their weights, the best k of it."""
