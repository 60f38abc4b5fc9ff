"""Turn checkpoints into engine files: ``python -m export CHECKPOINT --output NAME.engine``.

Needs PyTorch; the engines do not. No code stored in a checkpoint is executed: see
`export.checkpoints.safe_load`.
"""
