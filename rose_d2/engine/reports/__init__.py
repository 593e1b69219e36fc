"""The report of an evaluation: its tables, and the curve over mapping levels."""
