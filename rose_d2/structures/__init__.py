"""Value objects of ROSE, and the one legend of shape letters used in every docstring.

| letter | meaning |
| --- | --- |
| B | images in a batch |
| S | side of the patch grid |
| P | patches, S * S |
| K | patches kept for prediction |
| N | ground-truth objects |
| L | tokens |
| D | width of the language model |
| E | width of SAM's prompt embeddings (256) |
| V | vocabulary of the language model |
| C | classes of a dataset |
| H, W | pixels |
"""
