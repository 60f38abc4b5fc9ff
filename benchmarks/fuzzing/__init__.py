"""Damaged inputs of each kind that the product reads, and the campaigns that send them."""
