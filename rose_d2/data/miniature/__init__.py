"""Miniatures of the public datasets in their official layouts, drawn from clip-art scenes."""
