"""Turn checkpoints into engine files: ``python -m export CHECKPOINT --output NAME.engine``.

Needs PyTorch; what it writes does not. Reading a checkpoint runs none of its code: see
`export.files` and `export.nvidia_pickle`.
"""
