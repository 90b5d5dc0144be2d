"""Sweeps: many runs of one command line, each in a directory that is named by what varies."""
