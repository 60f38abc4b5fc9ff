"""The contenders: each is one way to run the same model on the same inputs."""
