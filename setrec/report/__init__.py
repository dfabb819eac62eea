"""Compares several runs: intervals, paired tests, breakdowns, tables and a picture."""
