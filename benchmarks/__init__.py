"""How fast it is, against the paper, the original formulation and the machine's own limit."""
