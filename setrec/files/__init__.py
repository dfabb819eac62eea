"""Reads files without trusting them, and writes files whole or not at all."""
