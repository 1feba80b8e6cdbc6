"""Every setting of every job, with its checks, overrides and presets."""
