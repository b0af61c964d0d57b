"""One thin file per wire contract; each turns its request into the same Embedder call."""
