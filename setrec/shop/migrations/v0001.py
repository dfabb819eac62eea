"""Users, events, answers and feedback."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "settings", sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.LargeBinary, nullable=False)
    )
    op.create_table(
        "users",
        sa.Column("key", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("id", sa.Text, nullable=False, unique=True),
    )
    op.create_table(
        "events",
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("user_key", sa.BigInteger, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("item", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("own_id", sa.Text),
        sa.Column("answer", sa.Text),
        sa.Column("mark", sa.LargeBinary, nullable=False, unique=True),
        sqlite_autoincrement=True,
    )
    op.create_index("events_of_user", "events", ["user_key", "time", "seq", "item"])
    op.create_index("events_by_time", "events", ["time"])
    op.create_table(
        "answers",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("variant", sa.Text, nullable=False),
        sa.Column("user_key", sa.BigInteger),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("k", sa.BigInteger, nullable=False),
        sa.Column("n_items", sa.BigInteger, nullable=False),
        sa.Column("items", sa.Text, nullable=False),
        sa.Column("scores", sa.Text, nullable=False),
        sa.Column("propensities", sa.Text),
        sa.PrimaryKeyConstraint("id", "variant"),
    )
    op.create_index("answers_of_user", "answers", ["user_key"])
    op.create_index("answers_by_time", "answers", ["time"])
    op.create_table(
        "feedback",
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("item", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("user_key", sa.BigInteger),
        sa.PrimaryKeyConstraint("answer", "item", "kind"),
    )
    op.create_index("feedback_of_user", "feedback", ["user_key"])
    op.create_index("feedback_by_time", "feedback", ["time"])
    op.create_table(
        "tombstones",
        sa.Column("mark", sa.LargeBinary, primary_key=True),
        sa.Column("time", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """There is no form before this one."""
    raise NotImplementedError
