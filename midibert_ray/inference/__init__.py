"""A trained model applied to somebody's music: labels, embeddings, the same file with a track a label."""
