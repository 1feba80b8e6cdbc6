"""Corpora of MIDI files: their publishers, contents and terms, and the way from a piece to its tokens."""
