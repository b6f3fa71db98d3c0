"""What the peers share. Each is called with a file of posts and a schema that has a table `posts`; DATABASE_URL says where.

The time printed, in seconds, is from opening the file to the end of COMMIT: Python's start, imports and the connection are left out.
"""

import os
import sys
import time

import orjson

# What an upsert does with a post that is there already: nothing, if it is the same.
ON_CONFLICT = """
    ON CONFLICT (id) DO UPDATE SET
        user_id = excluded.user_id, title = excluded.title, body = excluded.body, updated_at = excluded.updated_at
    WHERE (posts.user_id, posts.title, posts.body) IS DISTINCT FROM (excluded.user_id, excluded.title, excluded.body)
"""

COLUMNS = "id, user_id, title, body, first_seen_at, updated_at, sequence"


def main(connect, load):
    """Connects, then loads all posts in one transaction."""
    path, schema = sys.argv[1:]
    with connect(os.environ["DATABASE_URL"]) as connection, connection.cursor() as cursor:
        cursor.execute(f"SET search_path = {schema}")
        connection.commit()
        begun = time.perf_counter()
        with open(path, "rb") as file:
            posts = orjson.loads(file.read())
        load(cursor, posts)
        connection.commit()
        print(time.perf_counter() - begun)
