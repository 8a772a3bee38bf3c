"""From a composed config to the objects and settings it names. Only the commands and this package see a config."""
