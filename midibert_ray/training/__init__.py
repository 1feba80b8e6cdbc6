"""Ray Train and DeepSpeed: the engine, the loops, and how they are launched."""
