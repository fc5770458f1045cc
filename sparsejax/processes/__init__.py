"""Runs of several processes: how they find each other, and how all of them end with one."""
