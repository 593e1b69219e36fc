"""Everything made of words: templates, conversations and tokenizers."""
