"""What runs on the device: the served model, the interaction log, the adapters. Never imports torch."""
