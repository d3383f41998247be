"""Runs revisions. Opening a library hands over its connection, already inside a transaction; a developer's `alembic`
command line gives an address, and gets the tables to compare with."""

from alembic import context
from sqlalchemy import create_engine

config = context.config
given = config.attributes.get("connection")
if given is not None:
    context.configure(connection=given, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    from civman.index.tables import metadata  # developers only: 1 s that opening a library need not spend

    with create_engine(config.get_main_option("sqlalchemy.url") or "sqlite://").connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=metadata,
            render_as_batch=True,
            # the full-text tables and what SQLite keeps behind them are no tables of SQLAlchemy's
            include_name=lambda name, kind, _: kind != "table" or (name or "").split("_")[0] != "search",
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
