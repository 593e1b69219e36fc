"""How one optimizer step is made: step engines, optimizer, and what happens to NaN."""
