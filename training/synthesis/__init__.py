"""Synthetic instruction pairs: planned, asked of a model behind an OpenAI-compatible endpoint, checked, written."""
