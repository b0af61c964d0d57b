"""What turns text into a vector, minus the weights: prompts, tokens, pooling, and the spec that pins them.

Training, export and serving all import these functions, so that they can't disagree.
"""
