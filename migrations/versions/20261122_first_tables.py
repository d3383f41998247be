"""The first tables: what CivitAI says (model, version, file, preview), what is held (blob, asset, seen_file).

Why: nothing before. CivitAI's base-model label and what a file shows of itself, on which compatibility rests, are
columns from the start.
Existing rows get: nothing, there are none.
Does not: keep recipes and pictures.
"""

import sqlalchemy as sa
from alembic import op

revision = "20261122_first"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "blob",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("suffix", sa.String(), nullable=False),
        sa.Column("declared_by", sa.String(), nullable=False),
        sa.Column("verified_at", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("blake3", sa.String(), nullable=True),
        sa.Column("crc32", sa.String(), nullable=True),
        sa.Column("autov1", sa.String(), nullable=True),
        sa.Column("autov3", sa.String(), nullable=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("architecture", sa.String(), nullable=False),
        sa.Column("adapter", sa.String(), nullable=False),
        sa.Column("key_format", sa.String(), nullable=False),
        sa.Column("precision", sa.String(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("tensor_count", sa.Integer(), nullable=True),
        sa.Column("claimed_base", sa.String(), nullable=False),
        sa.Column("trigger_words", sa.String(), nullable=False),
        sa.Column("flags", sa.String(), nullable=False),
        sa.Column("conflicts", sa.String(), nullable=False),
        sa.CheckConstraint("declared_by IN ('civitai', 'civman')", name=op.f("ck_blob_declared_by")),
        sa.CheckConstraint("length(sha256) = 64 AND sha256 NOT GLOB '*[^0-9a-f]*'", name=op.f("ck_blob_sha256")),
        sa.CheckConstraint("path <> ''", name=op.f("ck_blob_path")),
        sa.CheckConstraint("size_bytes >= 0", name=op.f("ck_blob_size_bytes")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_blob")),
    )
    op.create_index(op.f("ix_blob_architecture"), "blob", ["architecture"], unique=False)
    op.create_index(op.f("ix_blob_autov1"), "blob", ["autov1"], unique=False)
    op.create_index(op.f("ix_blob_autov3"), "blob", ["autov3"], unique=False)
    op.create_index(op.f("ix_blob_blake3"), "blob", ["blake3"], unique=False)
    op.create_index(op.f("ix_blob_crc32"), "blob", ["crc32"], unique=False)
    op.create_index(op.f("ix_blob_kind"), "blob", ["kind"], unique=False)
    op.create_table(
        "model",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("type_raw", sa.String(), nullable=False),
        sa.Column("nsfw", sa.Boolean(), nullable=False),
        sa.Column("nsfw_level", sa.Integer(), nullable=False),
        sa.Column("real_person", sa.Boolean(), nullable=False),
        sa.Column("mode", sa.String(), nullable=True),
        sa.Column("creator", sa.String(), nullable=True),
        sa.Column("creator_key", sa.String(), nullable=True),
        sa.Column("tags", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=True),
        sa.Column("credit_required", sa.Boolean(), nullable=True),
        sa.Column("commercial_use", sa.String(), nullable=True),
        sa.Column("derivatives_allowed", sa.Boolean(), nullable=True),
        sa.Column("different_licence_allowed", sa.Boolean(), nullable=True),
        sa.Column("download_count", sa.Integer(), nullable=True),
        sa.Column("thumbs_up_count", sa.Integer(), nullable=True),
        sa.Column("is_complete", sa.Boolean(), nullable=False),
        sa.Column("raw", sa.String(), nullable=False),
        sa.Column("fetched_at", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("gone_at", sa.String(), nullable=True),
        sa.Column("gone_status", sa.Integer(), nullable=True),
        sa.CheckConstraint("id > 0", name=op.f("ck_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model")),
    )
    op.create_index(op.f("ix_model_creator_key"), "model", ["creator_key"], unique=False)
    op.create_table(
        "seen_file",
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("inode", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("mtime_ns", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_seen_file_sha256")),
        sa.PrimaryKeyConstraint("path", name=op.f("pk_seen_file")),
    )
    op.create_index(op.f("ix_seen_file_sha256"), "seen_file", ["sha256"], unique=False)
    op.create_table(
        "version",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=True),
        sa.Column("base_model_type", sa.String(), nullable=True),
        sa.Column("published_at", sa.String(), nullable=True),
        sa.Column("trained_words", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=True),
        sa.Column("air", sa.String(), nullable=True),
        sa.Column("is_gated", sa.Boolean(), nullable=False),
        sa.Column("gate_permanent", sa.Boolean(), nullable=False),
        sa.Column("gate_ends_at", sa.String(), nullable=True),
        sa.Column("usage_control", sa.String(), nullable=True),
        sa.Column("status", sa.String(), nullable=True),
        sa.Column("availability", sa.String(), nullable=True),
        sa.Column("nsfw_level", sa.Integer(), nullable=False),
        sa.Column("download_url", sa.String(), nullable=True),
        sa.Column("download_count", sa.Integer(), nullable=True),
        sa.Column("thumbs_up_count", sa.Integer(), nullable=True),
        sa.Column("raw", sa.String(), nullable=False),
        sa.Column("fetched_at", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("gone_at", sa.String(), nullable=True),
        sa.Column("gone_status", sa.Integer(), nullable=True),
        sa.CheckConstraint("id > 0", name=op.f("ck_version_id")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_version_model_id_model")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_version")),
    )
    op.create_index(op.f("ix_version_model_id"), "version", ["model_id"], unique=False)
    op.create_table(
        "file",
        sa.Column("key", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=True),
        sa.Column("file_id", sa.Integer(), nullable=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=True),
        sa.Column("sha256", sa.String(), nullable=True),
        sa.Column("blake3", sa.String(), nullable=True),
        sa.Column("crc32", sa.String(), nullable=True),
        sa.Column("autov1", sa.String(), nullable=True),
        sa.Column("autov2", sa.String(), nullable=True),
        sa.Column("autov3", sa.String(), nullable=True),
        sa.Column("is_primary", sa.Boolean(), nullable=False),
        sa.Column("is_linked", sa.Boolean(), nullable=False),
        sa.Column("format", sa.String(), nullable=True),
        sa.Column("precision", sa.String(), nullable=True),
        sa.Column("size_class", sa.String(), nullable=True),
        sa.Column("quant_type", sa.String(), nullable=True),
        sa.Column("pickle_scan", sa.String(), nullable=False),
        sa.Column("virus_scan", sa.String(), nullable=False),
        sa.Column("scan_message", sa.String(), nullable=True),
        sa.Column("download_url", sa.String(), nullable=True),
        sa.Column("raw", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name=op.f("fk_file_version_id_version")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_file")),
    )
    op.create_index(op.f("ix_file_file_id"), "file", ["file_id"], unique=False)
    op.create_index(op.f("ix_file_sha256"), "file", ["sha256"], unique=False)
    op.create_index(op.f("ix_file_version_id"), "file", ["version_id"], unique=False)
    op.create_table(
        "preview",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("nsfw_level", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=True),
        sa.Column("height", sa.Integer(), nullable=True),
        sa.Column("media", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["version.id"], name=op.f("fk_preview_version_id_version"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("version_id", "position", name=op.f("pk_preview")),
    )
    op.create_table(
        "asset",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("blob_sha256", sa.String(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=True),
        sa.Column("version_id", sa.Integer(), nullable=True),
        sa.Column("file_key", sa.Integer(), nullable=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("name_key", sa.String(), nullable=False),
        sa.Column("stem_key", sa.String(), nullable=False),
        sa.Column("model_key", sa.String(), nullable=False),
        sa.Column("search_text", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=True),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("type_raw", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=True),
        sa.Column("added_at", sa.String(), nullable=False),
        sa.Column("last_used_at", sa.String(), nullable=True),
        sa.CheckConstraint("alias <> ''", name=op.f("ck_asset_alias")),
        sa.CheckConstraint("name <> ''", name=op.f("ck_asset_name")),
        sa.CheckConstraint("file_key IS NULL OR version_id IS NOT NULL", name=op.f("ck_asset_file_has_version")),
        sa.CheckConstraint("version_id IS NULL OR model_id IS NOT NULL", name=op.f("ck_asset_version_has_model")),
        sa.ForeignKeyConstraint(["blob_sha256"], ["blob.sha256"], name=op.f("fk_asset_blob_sha256_blob")),
        sa.ForeignKeyConstraint(["file_key"], ["file.key"], name=op.f("fk_asset_file_key_file")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_asset_model_id_model")),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name=op.f("fk_asset_version_id_version")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_asset")),
        sa.UniqueConstraint("alias", name=op.f("uq_asset_alias")),
        sa.UniqueConstraint(
            "blob_sha256", "version_id", "file_key", name=op.f("uq_asset_blob_sha256_version_id_file_key")
        ),
    )
    op.create_index(op.f("ix_asset_added_at_id"), "asset", ["added_at", "id"], unique=False)
    op.create_index(op.f("ix_asset_base_model_added_at_id"), "asset", ["base_model", "added_at", "id"], unique=False)
    op.create_index(op.f("ix_asset_blob_sha256"), "asset", ["blob_sha256"], unique=False)
    op.create_index(op.f("ix_asset_file_key"), "asset", ["file_key"], unique=False)
    op.create_index(op.f("ix_asset_model_id"), "asset", ["model_id"], unique=False)
    op.create_index(op.f("ix_asset_model_key"), "asset", ["model_key"], unique=False)
    op.create_index(op.f("ix_asset_name_key"), "asset", ["name_key"], unique=False)
    op.create_index(op.f("ix_asset_stem_key"), "asset", ["stem_key"], unique=False)
    op.create_index(op.f("ix_asset_type_added_at_id"), "asset", ["type", "added_at", "id"], unique=False)
    op.create_index(op.f("ix_asset_version_id"), "asset", ["version_id"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("there is nothing before the first tables: delete the file instead")
