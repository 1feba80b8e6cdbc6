"""Ray Tune: studies of many fine-tuning trials, and their reports."""
