"""The psp-rt command."""
