"""Bulk jobs: a file of texts to a file of vectors, by this machine's engine or by gateways elsewhere."""
