"""Music without a framework: MIDI files, the sixteenth grid, CP and REMI tokens, corpora and tasks."""
