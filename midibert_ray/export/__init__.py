"""Models as folders that open elsewhere, with a card."""
