"""Weights as files and blocks."""
