"""Train an encoder for a fixed generator."""
