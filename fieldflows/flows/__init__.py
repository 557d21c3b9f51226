"""Makers that users import."""
