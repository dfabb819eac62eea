"""The forms that the database has had, one module each. A server brings an older database to the newest form when it starts."""
