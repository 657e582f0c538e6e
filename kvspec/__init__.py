"""kvspec."""
