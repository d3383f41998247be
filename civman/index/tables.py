"""The database tables, as SQLModel classes. Other packages use domain values, which this package converts to rows.

Times are ISO-8601 text in UTC with microseconds, so that they sort as text. Lists are JSON text. `*_key` columns
contain case-folded text for lookups that ignore case. `raw` is CivitAI's JSON as received.

Importing this module takes 0.5 to 1.3 s (SQLModel imports pydantic and SQLAlchemy), so it is only imported to create,
upgrade or check a database. Everyday writes use `transactions`; a test compares their columns with these classes.
"""

from typing import Any, ClassVar

from sqlalchemy import CheckConstraint, MetaData, UniqueConstraint
from sqlalchemy import Index as SqlIndex
from sqlmodel import Field, SQLModel

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Row(SQLModel):
    """Base class of all tables; keeps them out of SQLModel's process-wide metadata."""

    metadata: ClassVar[MetaData] = metadata
    __table_args__: ClassVar[Any] = ()


class ModelRow(Row, table=True):
    """A model page as CivitAI last returned it."""

    __tablename__ = "model"
    __table_args__ = (CheckConstraint("id > 0", name="id"),)

    id: int = Field(primary_key=True)
    name: str
    type: str
    type_raw: str
    nsfw: bool
    nsfw_level: int
    real_person: bool
    mode: str | None
    creator: str | None
    creator_key: str | None = Field(index=True)
    tags: str
    description: str | None
    credit_required: bool | None
    commercial_use: str | None
    derivatives_allowed: bool | None
    different_licence_allowed: bool | None
    download_count: int | None
    thumbs_up_count: int | None
    is_complete: bool
    raw: str
    fetched_at: str
    source: str
    gone_at: str | None
    gone_status: int | None


class VersionRow(Row, table=True):
    """A version as CivitAI last returned it.

    `position` is the version's position on the model's page, NULL if it is no longer listed there.
    """

    __tablename__ = "version"
    __table_args__ = (CheckConstraint("id > 0", name="id"),)

    id: int = Field(primary_key=True)
    model_id: int = Field(foreign_key="model.id", index=True)
    position: int | None
    name: str
    base_model: str | None
    base_model_type: str | None
    published_at: str | None
    trained_words: str
    description: str | None
    air: str | None
    is_gated: bool
    gate_permanent: bool
    gate_ends_at: str | None
    usage_control: str | None
    status: str | None
    availability: str | None
    nsfw_level: int
    download_url: str | None
    download_count: int | None
    thumbs_up_count: int | None
    raw: str
    fetched_at: str
    source: str
    gone_at: str | None
    gone_status: int | None


class FileRow(Row, table=True):
    """A file of a version.

    `file_id` is CivitAI's id; `position` is NULL if the last response no longer listed the file.
    """

    __tablename__ = "file"

    key: int = Field(primary_key=True)
    version_id: int = Field(foreign_key="version.id", index=True)
    position: int | None
    file_id: int | None = Field(index=True)
    name: str
    type: str
    size_bytes: int | None
    sha256: str | None = Field(index=True)
    blake3: str | None
    crc32: str | None
    autov1: str | None
    autov2: str | None
    autov3: str | None
    is_primary: bool
    is_linked: bool
    format: str | None
    precision: str | None
    size_class: str | None
    quant_type: str | None
    pickle_scan: str
    virus_scan: str
    scan_message: str | None
    download_url: str | None
    raw: str


class PreviewRow(Row, table=True):
    """A preview image that CivitAI shows for a version."""

    __tablename__ = "preview"

    version_id: int = Field(primary_key=True, foreign_key="version.id", ondelete="CASCADE")
    position: int = Field(primary_key=True)
    url: str
    nsfw_level: int
    width: int | None
    height: int | None
    media: str


class BlobRow(Row, table=True):
    """Verified bytes, with what the file's header shows.

    `path` is relative to the database's folder if the file is inside it (so that the library can be moved), else
    absolute.
    """

    __tablename__ = "blob"
    __table_args__ = (
        CheckConstraint("length(sha256) = 64 AND sha256 NOT GLOB '*[^0-9a-f]*'", name="sha256"),
        CheckConstraint("size_bytes >= 0", name="size_bytes"),
        CheckConstraint("declared_by IN ('civitai', 'civman')", name="declared_by"),
        CheckConstraint("path <> ''", name="path"),
    )

    sha256: str = Field(primary_key=True)
    size_bytes: int
    suffix: str
    declared_by: str
    verified_at: str
    path: str
    blake3: str | None = Field(index=True)
    crc32: str | None = Field(index=True)
    autov1: str | None = Field(index=True)
    autov3: str | None = Field(index=True)
    kind: str = Field(index=True)
    architecture: str = Field(index=True)
    adapter: str
    key_format: str
    precision: str
    rank: int | None
    tensor_count: int | None
    claimed_base: str
    trigger_words: str
    flags: str
    conflicts: str
    output_name: str | None


class AssetRow(Row, table=True):
    """What a blob is: a file of a CivitAI version, or just a name for files that are not from CivitAI.

    `type` and `base_model` are copied from the version. `search_text` contains all words by which the asset is found,
    case-folded.
    """

    __tablename__ = "asset"
    __table_args__ = (
        UniqueConstraint("blob_sha256", "version_id", "file_key"),
        UniqueConstraint("alias"),
        CheckConstraint("name <> ''", name="name"),
        CheckConstraint("alias <> ''", name="alias"),
        CheckConstraint("version_id IS NULL OR model_id IS NOT NULL", name="version_has_model"),
        CheckConstraint("file_key IS NULL OR version_id IS NOT NULL", name="file_has_version"),
        SqlIndex(None, "added_at", "id"),
        SqlIndex(None, "type", "added_at", "id"),
        SqlIndex(None, "base_model", "added_at", "id"),
    )

    id: int = Field(primary_key=True)
    blob_sha256: str = Field(foreign_key="blob.sha256", index=True)
    model_id: int | None = Field(foreign_key="model.id", index=True)
    version_id: int | None = Field(foreign_key="version.id", index=True)
    file_key: int | None = Field(foreign_key="file.key", index=True)
    name: str
    name_key: str = Field(index=True)
    stem_key: str = Field(index=True)
    model_key: str = Field(index=True)
    search_text: str
    alias: str | None
    origin: str
    type: str
    type_raw: str
    base_model: str | None
    added_at: str
    last_used_at: str | None


class SeenFileRow(Row, table=True):
    """The SHA-256 of a file outside the store, valid while device, inode, size and modification time stay the same.

    Device and inode are stored as text, because they may be unsigned 64-bit numbers and SQLite's integers are signed.
    """

    __tablename__ = "seen_file"
    __table_args__ = (CheckConstraint("length(sha256) = 64", name="sha256"),)

    path: str = Field(primary_key=True)
    device: str
    inode: str
    size_bytes: int
    mtime_ns: int
    sha256: str = Field(index=True)


class FitRow(Row, table=True):
    """A saved verdict: how compatible a file is with a checkpoint. With it, lists need not read the headers again.

    `labels` are the base models of checkpoint and file when the verdict was saved, separated by a line break; `rules`
    is the version of the compatibility rules. There is no foreign key, because the verdict stays true if a file is
    removed.
    """

    __tablename__ = "fit"
    __table_args__ = (
        CheckConstraint("length(checkpoint_sha256) = 64", name="checkpoint_sha256"),
        CheckConstraint("length(part_sha256) = 64", name="part_sha256"),
    )

    checkpoint_sha256: str = Field(primary_key=True)
    part_sha256: str = Field(primary_key=True)
    labels: str = Field(primary_key=True)
    rules: int
    verdict: str


class AnnotationRow(Row, table=True):
    """The user's annotations of an asset; there is no row if there are none."""

    __tablename__ = "annotation"
    __table_args__ = (CheckConstraint("rating BETWEEN 1 AND 5", name="rating"),)

    asset_id: int = Field(primary_key=True, foreign_key="asset.id", ondelete="CASCADE")
    note: str
    tags: str
    trigger_words: str
    rating: int | None
    is_favourite: bool


class PinRow(Row, table=True):
    """Bytes that must be kept, and why: "user", or "recipe <id>" for a recipe that needs them.

    There is no foreign key, because a pin outlives the rows of its file, which may be restored later.
    """

    __tablename__ = "pin"
    __table_args__ = (
        CheckConstraint("length(blob_sha256) = 64", name="blob_sha256"),
        CheckConstraint("reason <> ''", name="reason"),
    )

    blob_sha256: str = Field(primary_key=True)
    reason: str = Field(primary_key=True)
    pinned_at: str


class SidecarDueRow(Row, table=True):
    """A blob whose rows changed after its sidecar file was written. `token` distinguishes one change from the next.

    The row is written in the same transaction as the change, so that a crash before the sidecar is written loses
    nothing.
    """

    __tablename__ = "sidecar_due"

    blob_sha256: str = Field(primary_key=True)
    token: str


class RenderingRow(Row, table=True):
    """A recorded image: its recipe, and where it was saved. One row per file.

    `record` is the JSON of `civman.domain.recipes.record.Record`; the other columns are copied from it for searching.
    """

    __tablename__ = "rendering"
    __table_args__ = (
        UniqueConstraint("path"),
        CheckConstraint("length(recipe_sha256) = 64", name="recipe_sha256"),
        CheckConstraint("length(pixel_sha256) = 64", name="pixel_sha256"),
        SqlIndex(None, "made_at", "id"),
    )

    id: int = Field(primary_key=True)
    path: str
    recipe_sha256: str = Field(index=True)
    pixel_sha256: str = Field(index=True)
    parent_sha256: str | None
    search_text: str
    record: str
    made_at: str


class RenderingFileRow(Row, table=True):
    """A model file that an image was made with. There is no foreign key to blobs, because an image may outlive them."""

    __tablename__ = "rendering_file"

    rendering_id: int = Field(primary_key=True, foreign_key="rendering.id", ondelete="CASCADE")
    sha256: str = Field(primary_key=True, index=True)


MODEL, VERSION, FILE, PREVIEW, BLOB, ASSET, SEEN_FILE, ANNOTATION, PIN, SIDECAR_DUE, RENDERING, RENDERING_FILE = (
    metadata.tables[name]
    for name in (
        "model", "version", "file", "preview", "blob", "asset", "seen_file", "annotation", "pin", "sidecar_due",
        "rendering", "rendering_file",
    )
)  # fmt: skip

SEARCH_TABLES = ("search", "search_word")
"""FTS5 tables: created by a migration, filled by `search_rows`, and not known to SQLModel."""
