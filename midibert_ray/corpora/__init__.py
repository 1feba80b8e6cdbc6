"""Corpora of MIDI files: where they come from, what is in them, and how a piece of theirs is read."""
