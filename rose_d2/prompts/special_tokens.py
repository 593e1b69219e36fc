"""Spellings and ids with a special meaning, defined once."""

# Where the patches of the image go in a rendered prompt (LLaVA-OneVision's spelling).
IMAGE_TOKEN = "<image>"
# Where a category embedding goes in the decoding prompt (paper section 3.3). It is cut out of
# the rendered text and never reaches a tokenizer, so no vocabulary has to know it.
CATEGORY_TOKEN = "<CATEGORY>"
# Label of tokens that carry no loss, as in PyTorch's cross entropy.
IGNORE_INDEX = -100
