"""A Kafka that does not allow everything to everybody."""

from confluent_kafka.admin import (  # type: ignore[attr-defined]  # they are there, but not marked as exported
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from rollcall.embedded.kafka import EmbeddedKafka


class StrictKafka(EmbeddedKafka):
    """Asks who may do what: once anything is granted on a topic, a group or an id, nothing else is allowed there."""

    def _write_properties(self) -> None:
        super()._write_properties()
        with self._properties.open("a") as properties:
            properties.write("authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n")
            properties.write("allow.everyone.if.no.acl.found=true\n")

    def grant(self, kind: ResourceType, name: str, *operations: AclOperation, to: str = "User:ANONYMOUS") -> None:
        pattern, allow = ResourcePatternType.LITERAL, AclPermissionType.ALLOW
        bindings = [AclBinding(kind, name, pattern, to, "*", operation, allow) for operation in operations]
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        for granted in admin.create_acls(bindings).values():
            granted.result(30)
