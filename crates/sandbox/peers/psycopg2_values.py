"""psycopg2's `execute_values`, a thousand posts a statement: what its documentation recommends for speed."""

import psycopg2
from peer import COLUMNS, ON_CONFLICT, main
from psycopg2.extras import execute_values

STATEMENT = f"INSERT INTO posts ({COLUMNS}) VALUES %s {ON_CONFLICT}"
ROW = "(%(id)s, %(userId)s, %(title)s, %(body)s, now(), now(), 1)"


def load(cursor, posts):
    execute_values(cursor, STATEMENT, posts, template=ROW, page_size=1000)


main(psycopg2.connect, load)
