"""Ahead of time: what a run costs on devices that are not there."""
