"""Saved compatibility verdicts: `fit`.

Why: `civman list --fits CHECKPOINT` lists only what `civman check` accepts, which needs the header of every file; it is
read once for each checkpoint.
Existing rows get: nothing; verdicts are made when they are asked for.
Does not: touch any existing table.
"""

import sqlalchemy as sa
from alembic import op

revision = "20261128_verdicts"
down_revision = "20261128_output_name"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "fit",
        sa.Column("checkpoint_sha256", sa.String(), nullable=False),
        sa.Column("part_sha256", sa.String(), nullable=False),
        sa.Column("labels", sa.String(), nullable=False),
        sa.Column("rules", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.CheckConstraint("length(checkpoint_sha256) = 64", name=op.f("ck_fit_checkpoint_sha256")),
        sa.CheckConstraint("length(part_sha256) = 64", name=op.f("ck_fit_part_sha256")),
        sa.PrimaryKeyConstraint("checkpoint_sha256", "part_sha256", "labels", name=op.f("pk_fit")),
    )


def downgrade() -> None:
    op.drop_table("fit")
