"""Measuring trained encoders side by side, as Table 1 of the paper does."""
