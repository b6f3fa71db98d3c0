"""Arrow's ADBC driver: the posts as columns, ingested into a temporary table by COPY, then an upsert."""

import pyarrow
from adbc_driver_postgresql.dbapi import connect
from peer import COLUMNS, ON_CONFLICT, main

UPSERT = f"""
    INSERT INTO posts ({COLUMNS})
    SELECT id, user_id, title, body, now(), now(), 1 FROM staged {ON_CONFLICT}
"""


def load(cursor, posts):
    columns = {"id": "id", "user_id": "userId", "title": "title", "body": "body"}
    table = pyarrow.table({column: [post[field] for post in posts] for column, field in columns.items()})
    cursor.adbc_ingest("staged", table, mode="create", temporary=True)
    cursor.execute(UPSERT)


main(connect, load)
