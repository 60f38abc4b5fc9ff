"""What the contenders run: models, and the pictures that go through them."""
