"""Conversation-based segmentation refinement (CSR) at evaluation (paper sections 3.4 and 6.1)."""
