"""A conversation about one image: `RoseSession` and what it remembers."""
