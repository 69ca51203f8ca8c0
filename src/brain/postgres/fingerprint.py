"""A number that changes with the catalog rows on which following the table depends.

It is cheap enough for every second, and says only that a thorough look is due: an ALTER TABLE that
does not matter, and even a TRUNCATE, changes it too. The xmin of a catalog row is the transaction
that wrote it last; what VACUUM and ANALYZE note in pg_class leaves it as it is.
"""

from brain.postgres.connection import Conn, deadline
from brain.postgres.table import Description, Table

_FINGERPRINT = """
SELECT pg_catalog.hashtextextended(pg_catalog.concat_ws(' ',
    (SELECT string_agg(pg_catalog.concat(oid, '/', xmin), ',' ORDER BY oid) FROM pg_class
      WHERE oid = ANY (%(tree)s::oid[])),
    (SELECT string_agg(pg_catalog.concat(indexrelid, '/', xmin), ',' ORDER BY indexrelid)
       FROM pg_index WHERE indrelid = ANY (%(tree)s::oid[])),
    (SELECT string_agg(pg_catalog.concat(inhrelid, '/', xmin), ',' ORDER BY inhrelid)
       FROM pg_inherits WHERE inhparent = ANY (%(tree)s::oid[])),
    (SELECT string_agg(pg_catalog.concat(oid, '/', xmin), ',' ORDER BY oid) FROM pg_publication
      WHERE pubname = ANY (%(publications)s)),
    (SELECT string_agg(pg_catalog.concat(oid, '/', xmin), ',' ORDER BY oid) FROM pg_publication_rel
      WHERE prrelid = ANY (%(tree)s::oid[])),
    (SELECT string_agg(pg_catalog.concat(oid, '/', xmin), ',' ORDER BY oid) FROM pg_policy
      WHERE polrelid = %(oid)s),
    (SELECT row_security_active(oid) FROM pg_class WHERE oid = %(oid)s)), 0)
"""


async def fingerprint(conn: Conn, table: Table, description: Description) -> int:
    """Raises psycopg.Error."""
    values = {
        "oid": description.oid,
        "tree": list(description.tree),
        "publications": list(table.publications),
    }
    async with deadline():
        row = await (await conn.execute(_FINGERPRINT, values)).fetchone()
    assert row is not None
    return int(str(row[0]))
