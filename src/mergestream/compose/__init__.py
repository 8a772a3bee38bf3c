"""Turns a composed config into the objects and settings it names. Only the commands and this package see a config."""
