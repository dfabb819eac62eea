"""What several runs give together: intervals, paired tests, breakdowns, tables and pictures."""
