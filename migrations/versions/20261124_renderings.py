"""Pictures that were made, with their recipes: `rendering`, `rendering_file`.

Why: a picture is made again from its recipe alone, found by its prompt or by the files it was made of, and known again
by its pixels when its metadata are gone.
Existing rows get: nothing; older pictures enter when `civman renders --scan FOLDER` reads them.
Does not: touch any existing table.
"""

import sqlalchemy as sa
from alembic import op

revision = "20261124_renderings"
down_revision = "20261123_search"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rendering",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("recipe_sha256", sa.String(), nullable=False),
        sa.Column("pixel_sha256", sa.String(), nullable=False),
        sa.Column("parent_sha256", sa.String(), nullable=True),
        sa.Column("search_text", sa.String(), nullable=False),
        sa.Column("record", sa.String(), nullable=False),
        sa.Column("made_at", sa.String(), nullable=False),
        sa.CheckConstraint("length(recipe_sha256) = 64", name=op.f("ck_rendering_recipe_sha256")),
        sa.CheckConstraint("length(pixel_sha256) = 64", name=op.f("ck_rendering_pixel_sha256")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rendering")),
        sa.UniqueConstraint("path", name=op.f("uq_rendering_path")),
    )
    op.create_index(op.f("ix_rendering_recipe_sha256"), "rendering", ["recipe_sha256"])
    op.create_index(op.f("ix_rendering_pixel_sha256"), "rendering", ["pixel_sha256"])
    op.create_index(op.f("ix_rendering_made_at_id"), "rendering", ["made_at", "id"])
    op.create_table(
        "rendering_file",
        sa.Column("rendering_id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["rendering_id"], ["rendering.id"], name=op.f("fk_rendering_file_rendering_id_rendering"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("rendering_id", "sha256", name=op.f("pk_rendering_file")),
    )  # fmt: skip
    op.create_index(op.f("ix_rendering_file_sha256"), "rendering_file", ["sha256"])


def downgrade() -> None:
    op.drop_table("rendering_file")
    op.drop_table("rendering")
