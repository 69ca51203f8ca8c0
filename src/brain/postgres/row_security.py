"""Row security, where it applies to our role (PostgreSQL documentation, 5.9).

A query then returns only the rows that the policies permit, while the log has every row. So Brain
polls, and what SELECT shows is the truth.
"""

from dataclasses import dataclass

from brain.postgres.connection import Conn, deadline


@dataclass(frozen=True, slots=True)
class RowSecurity:
    role: str
    policies: str
    """Another text after each change of a policy of the table."""

    def __str__(self) -> str:
        return f"{self.role} {self.policies}"


_ACTIVE = """
SELECT current_user,
       (SELECT string_agg(pg_catalog.concat_ws('/', p.oid, p.xmin), ' ' ORDER BY p.oid)
          FROM pg_policy p WHERE p.polrelid = %(oid)s)
 WHERE row_security_active(%(oid)s::oid)
"""


async def row_security(conn: Conn, oid: int) -> RowSecurity | None:
    """None if no policy restricts what our role sees of the table: it bypasses them, or owns the
    table, or row security is off. Raises psycopg.Error.
    """
    async with deadline():
        row = await (await conn.execute(_ACTIVE, {"oid": oid})).fetchone()
    return None if row is None else RowSecurity(str(row[0]), row[1] or "")
