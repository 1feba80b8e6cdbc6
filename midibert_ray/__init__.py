"""Ray-native pre-training, fine-tuning and comparison of BERT-like models of piano MIDI."""

__version__ = "0.2.0"
