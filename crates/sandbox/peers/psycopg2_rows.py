"""psycopg2, a statement a post: what comes to mind first."""

import psycopg2
from peer import COLUMNS, ON_CONFLICT, main

STATEMENT = f"""
    INSERT INTO posts ({COLUMNS}) VALUES (%(id)s, %(userId)s, %(title)s, %(body)s, now(), now(), 1) {ON_CONFLICT}
"""


def load(cursor, posts):
    for post in posts:
        cursor.execute(STATEMENT, post)


main(psycopg2.connect, load)
