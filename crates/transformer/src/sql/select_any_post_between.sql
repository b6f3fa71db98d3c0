-- Whether the range of ids holds a row: one look into the index.
SELECT EXISTS (SELECT FROM posts WHERE id BETWEEN $1 AND $2)
