"""``tdefs policy``: checking, explaining, choosing and accepting a policy."""
