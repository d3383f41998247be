"""Full-text search, and what a person says of a file: `search`, `search_word`, `annotation`, `pin`, `sidecar_due`.

Why: 30,000 files are found by ranked words, notes and tags, not by reading every row; notes, ratings and pins have to
survive whatever CivitAI answers later.
Existing rows get: nothing said of them; their words enter `search` right after the upgrade, in its transaction
(stripping HTML is no work for SQL).
Does not: touch any existing table.
"""

import sqlalchemy as sa
from alembic import op

revision = "20261123_search"
down_revision = "20261122_first"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "annotation",
        sa.Column("asset_id", sa.Integer(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("tags", sa.String(), nullable=False),
        sa.Column("trigger_words", sa.String(), nullable=False),
        sa.Column("rating", sa.Integer(), nullable=True),
        sa.Column("is_favourite", sa.Boolean(), nullable=False),
        sa.CheckConstraint("rating BETWEEN 1 AND 5", name=op.f("ck_annotation_rating")),
        sa.ForeignKeyConstraint(
            ["asset_id"], ["asset.id"], name=op.f("fk_annotation_asset_id_asset"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("asset_id", name=op.f("pk_annotation")),
    )
    op.create_table(
        "pin",
        sa.Column("blob_sha256", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("pinned_at", sa.String(), nullable=False),
        sa.CheckConstraint("length(blob_sha256) = 64", name=op.f("ck_pin_blob_sha256")),
        sa.CheckConstraint("reason <> ''", name=op.f("ck_pin_reason")),
        sa.PrimaryKeyConstraint("blob_sha256", "reason", name=op.f("pk_pin")),
    )
    op.create_table(
        "sidecar_due",
        sa.Column("blob_sha256", sa.String(), nullable=False),
        sa.Column("token", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("blob_sha256", name=op.f("pk_sidecar_due")),
    )
    # Two- and three-letter beginnings are indexed: people type as little as finds it.
    op.execute(
        "CREATE VIRTUAL TABLE search USING fts5(name, model, version, alias, trigger_words, tags, creator, base_model, "
        "note, description, tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3')"
    )
    op.execute("CREATE VIRTUAL TABLE search_word USING fts5vocab('search', 'row')")


def downgrade() -> None:
    for table in ("search_word", "search", "sidecar_due", "pin", "annotation"):
        op.execute(f"DROP TABLE {table}")
