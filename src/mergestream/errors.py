"""The one exception that users are meant to read."""


class UserError(Exception):
    """Something the user can put right, in one line: the rule, what arrived, what to type, and the config key."""
