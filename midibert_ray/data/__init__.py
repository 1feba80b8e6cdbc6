"""From MIDI files to masked batches: tokenizing with Ray Data, the token store, its segments, masking."""
