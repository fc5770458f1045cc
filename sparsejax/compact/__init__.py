"""Compact networks, which hold only what is active, and the states that train them."""
