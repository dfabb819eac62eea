"""Serving a model over HTTP; needs the extra `serve`."""
