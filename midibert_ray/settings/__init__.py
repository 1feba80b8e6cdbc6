"""What a run may be told: every setting, its checks, overrides and presets."""
