"""The tables of the database in their newest form; setrec/shop/migrations makes them.

    users (key, id) --- key ---< events       (seq, user_key, time, item, kind, own_id, answer, mark)
                           |---< answers      (id, variant, user_key, ...)
                           |---< feedback     (answer, item, kind, time, user_key)

A user's own id stands in `users` only. All else refers to its key, a random number that means nothing once the user is erased.
Times are microseconds since 1970, UTC.
"""

import sqlalchemy as sa

METADATA = sa.MetaData()
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")

SETTINGS = sa.Table(
    "settings", METADATA, sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.LargeBinary)
)
USERS = sa.Table(
    "users", METADATA,
    sa.Column("key", NUMBER, primary_key=True, autoincrement=False),
    sa.Column("id", sa.Text, unique=True),
)  # fmt: skip
EVENTS = sa.Table(
    "events", METADATA,
    sa.Column("seq", NUMBER, primary_key=True, autoincrement=True),  # the order of arrival, which is that of the commits
    sa.Column("user_key", sa.BigInteger),
    sa.Column("time", sa.BigInteger),
    sa.Column("item", sa.Text),
    sa.Column("kind", sa.Text),
    sa.Column("own_id", sa.Text),  # the caller's id of the event
    sa.Column("answer", sa.Text),  # the answer that it follows
    sa.Column("mark", sa.LargeBinary, unique=True),  # two events with one mark are the same event
)  # fmt: skip
ANSWERS = sa.Table(
    "answers", METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("variant", sa.Text, primary_key=True),
    sa.Column("user_key", sa.BigInteger),
    sa.Column("time", sa.BigInteger),
    sa.Column("generation", sa.BigInteger),
    sa.Column("model", sa.Text),
    sa.Column("k", sa.BigInteger),
    sa.Column("n_items", sa.BigInteger),  # of the catalogue
    sa.Column("items", sa.Text),  # JSON: ids, best first
    sa.Column("scores", sa.Text),  # JSON: numbers
    sa.Column("propensities", sa.Text),  # JSON: numbers; null: nothing was left to chance
)  # fmt: skip
FEEDBACK = sa.Table(
    "feedback", METADATA,
    sa.Column("answer", sa.Text, primary_key=True),
    sa.Column("item", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("time", sa.BigInteger),
    sa.Column("user_key", sa.BigInteger),
)  # fmt: skip
TAKEOVERS = sa.Table(
    "takeovers", METADATA,
    sa.Column("seq", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("time", sa.BigInteger),
    sa.Column("checkpoint", sa.Text),  # the path
    sa.Column("generation", sa.BigInteger),
    sa.Column("model", sa.Text),  # the name and the hash of its files
)  # fmt: skip
TOMBSTONES = sa.Table(
    "tombstones", METADATA, sa.Column("mark", sa.LargeBinary, primary_key=True), sa.Column("time", sa.BigInteger)
)
