"""The PyTorch side: backbone with draft head, packed training rows, checkpoints."""
