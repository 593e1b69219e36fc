"""The built-in clip-art benchmark: OpenMoji glyphs over textured bands, in official layouts."""
