"""Learning: what was said becomes a small adapter. Torch lives here and in quant/blocks.py."""
