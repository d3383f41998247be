"""The name that a trainer gave its file: `blob.output_name`.

Why: A1111 puts this name, which is in the file's metadata, into prompts as `<lora:NAME:1>`, and files are renamed.
Existing rows get: nothing; `civman import` of the same file reads it again.
Does not: read any file.
"""

import sqlalchemy as sa
from alembic import op

revision = "20261128_output_name"
down_revision = "20261124_renderings"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("blob", sa.Column("output_name", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("blob", "output_name")
