"""psycopg 3, binary COPY into a temporary table, then an upsert of those that are new or differ: the best of the usual ways."""

import psycopg
from peer import COLUMNS, ON_CONFLICT, main

STAGE = "CREATE TEMPORARY TABLE staged (id bigint, user_id bigint, title text, body text) ON COMMIT DROP"

# An upsert locks each row that it meets, which writes WAL. So those that are the same do not come to it.
UPSERT = f"""
    INSERT INTO posts ({COLUMNS})
    SELECT staged.id, staged.user_id, staged.title, staged.body, now(), now(), 1
    FROM staged LEFT JOIN posts ON posts.id = staged.id
    WHERE posts.id IS NULL
        OR (posts.user_id, posts.title, posts.body) IS DISTINCT FROM (staged.user_id, staged.title, staged.body)
    {ON_CONFLICT}
"""


def load(cursor, posts):
    cursor.execute(STAGE)
    with cursor.copy("COPY staged FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["int8", "int8", "text", "text"])
        for post in posts:
            copy.write_row((post["id"], post["userId"], post["title"], post["body"]))
    cursor.execute("ANALYZE staged")
    cursor.execute(UPSERT)


main(psycopg.connect, load)
