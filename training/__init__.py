"""Training of Multilingual E5 models: text pairs in, checkpoints and model versions out."""
