"""The one exception that users are meant to read."""


class UserError(Exception):
    """Something the user can put right: one line with the rule, what arrived and what to type, naming the config key."""
