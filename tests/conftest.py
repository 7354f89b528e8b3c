"""Puts this directory on the import path: every test can write ``from tolerances import NAME``."""
