"""Corpora -> token stores, by Ray Data."""
