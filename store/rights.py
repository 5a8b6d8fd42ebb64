"""Statements that give a shadow the owner and the grants of the live schema, before it takes that one's name."""

from store.connection import Connection

# Of the schema, of tables, views and sequences of one name, and of their columns: what to do to a shadow, in order.
# What its maker's default privileges gave goes first. Identity sequences have their table's owner. (live, shadow)
_TAKE_RIGHTS = """
WITH things AS (
    SELECT 'SCHEMA' AS kind, quote_ident(s.nspname) AS name, NULL AS of_column, l.nspowner AS live_owner,
           s.nspowner AS owner, coalesce(l.nspacl, acldefault('n', l.nspowner)) AS live_rights, s.nspacl AS rights
    FROM pg_namespace l, pg_namespace s WHERE l.nspname = $1 AND s.nspname = $2
), relations AS (
    SELECT CASE s.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind, format('%I.%I', $2, s.relname) AS name,
           l.oid AS live_id, l.relowner AS live_owner, s.relowner AS owner, s.relacl AS rights,
           coalesce(l.relacl, acldefault(CASE l.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", l.relowner))
               AS live_rights
    FROM pg_class l JOIN pg_class s USING (relname)
    WHERE l.relnamespace = to_regnamespace(quote_ident($1)) AND s.relnamespace = to_regnamespace(quote_ident($2))
      AND l.relkind IN ('r', 'p', 'v', 'm', 'S') AND s.relkind IN ('r', 'p', 'v', 'm', 'S')
), everything AS (
    SELECT kind, name, of_column, live_owner, owner, live_rights, rights FROM things
    UNION ALL SELECT kind, name, NULL, live_owner, owner, live_rights, rights FROM relations
    UNION ALL SELECT kind, name, quote_ident(attname), live_owner, live_owner, attacl, NULL
    FROM relations JOIN pg_attribute ON attrelid = live_id AND attacl IS NOT NULL AND NOT attisdropped
), statements AS (
    SELECT 1 AS step, name, format('REVOKE ALL ON %s %s FROM %s CASCADE', kind, name, who) AS statement
    FROM everything, LATERAL (
        SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS who
        FROM aclexplode(rights) a WHERE a.grantee <> owner) granted
    UNION ALL
    SELECT 2, name, format('ALTER %s %s OWNER TO %I', kind, name, pg_get_userbyid(live_owner))
    FROM everything WHERE owner <> live_owner AND kind <> 'SEQUENCE'
    UNION ALL
    SELECT 3, name, format('GRANT %s%s ON %s %s TO %s%s', a.privilege_type, ' (' || of_column || ')', kind, name,
                           CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
                           CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END)
    FROM everything, aclexplode(live_rights) a WHERE a.grantee <> live_owner
)
SELECT statement FROM statements ORDER BY step, name, statement
"""


async def take_rights(connection: Connection, live: str, shadow: str) -> None:
    """Let whoever may use the live schema and what is in it use the shadow alike, and nobody else."""
    for row in await connection.fetch(_TAKE_RIGHTS, live, shadow):
        await connection.execute(row["statement"])
